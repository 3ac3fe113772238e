"""`levada cluster`: a Kubernetes cluster of this machine's own."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="A real Kubernetes on this machine, built from source. Needs root.")

Name = Annotated[str, typer.Option(envvar="LEVADA_CLUSTER", help="Name of the cluster; several can run side by side.")]


@app.command()
def up(name: Name = "levada") -> None:
    """Build what is missing and start what does not run; safe to run again."""
    from levada.cluster import Console
    from levada.cluster import up as start

    cluster = start(name, Console())
    typer.echo(f"cluster {name} is ready: export KUBECONFIG={cluster.kubeconfig}")


@app.command()
def down(name: Name = "levada") -> None:
    """Stop a cluster and remove all of it, data too; only the cache of built programs stays."""
    from levada.cluster import Console
    from levada.cluster import down as stop

    stop(name, Console())


@app.command()
def status(name: Name = "levada") -> None:
    """Show what runs, and whether the nodes are ready; exit code 1 if something is not."""
    from levada.cluster import Cluster

    cluster = Cluster(name)
    seen = cluster.status()
    typer.echo(f"{'PROGRAM':<26}{'MACHINE':<32}{'PID':>7}{'MEMORY':>9}{'AGE':>6}")
    for part in seen.parts:
        if part.running:
            memory = f"{part.running.memory / 2**20:.0f} Mi"
            figures = f"{part.running.pid:>7}{memory:>9}{_age(part.running.age):>6}"
        else:
            figures = f"{'not running':>22}"
        typer.echo(f"{part.program:<26}{part.machine:<32}{figures}")
    total = sum(part.running.memory for part in seen.parts if part.running)
    memory = f"{total / 2**20:.0f} Mi"
    typer.echo(f"{'together':<26}{'':<32}{'':>7}{memory:>9}")
    typer.echo("")
    for node, ready in seen.nodes.items():
        typer.echo(f"node {node}: {'ready' if ready else 'NOT ready'}")
    for port, target in sorted(seen.ports.items()):
        typer.echo(f"127.0.0.1:{port:<6} leads to {target}")
    typer.echo(f"kubeconfig: {cluster.kubeconfig}")
    if seen.trouble:
        typer.echo(f"{seen.trouble}. Run: levada cluster up --name {name}", err=True)
        raise typer.Exit(1)


@app.command()
def kubeconfig(name: Name = "levada") -> None:
    """Print the path of the administrator's kubeconfig, as in: export KUBECONFIG=$(levada cluster kubeconfig)."""
    from levada.cluster import Cluster

    typer.echo(Cluster(name).kubeconfig)


@app.command()
def forward(
    namespace: Annotated[str, typer.Argument(help="Namespace of the Service.")],
    service: Annotated[str, typer.Argument(help="Name of the Service.")],
    port: Annotated[int, typer.Argument(help="Port of the Service.")],
    name: Name = "levada",
) -> None:
    """Have a port of 127.0.0.1 lead to a Service from now on, and print it."""
    from levada.cluster import Cluster

    typer.echo(f"127.0.0.1:{Cluster(name).forward(namespace, service, port)}")


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
