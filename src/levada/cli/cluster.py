"""`levada cluster`: a Kubernetes cluster of this machine's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from levada.errors import UserError

if TYPE_CHECKING:
    from levada.cluster import Cluster

app = typer.Typer(no_args_is_help=True, help="A real Kubernetes on this machine, built from source. Needs root.")

Name = Annotated[str, typer.Option(envvar="LEVADA_CLUSTER", help="Name of the cluster; several can run side by side.")]


Nodes = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=9,
        help="How many nodes, each in a zone of its own: a, b, c, … A cluster keeps its number and may grow, "
        "not shrink.  [default: 1 for a new cluster]",
    ),
]


@app.command()
def up(name: Name = "levada", nodes: Nodes = None) -> None:
    """Start a cluster; safe to run again.

    Builds what is missing, starts what does not run, undoes every fault.
    """
    from levada.cluster import Console
    from levada.cluster import up as start

    cluster = start(name, Console(), node_count=nodes)
    typer.echo(f"cluster {name} is ready: export KUBECONFIG={cluster.kubeconfig}")


@app.command()
def down(name: Name = "levada") -> None:
    """Remove a cluster with its data.

    Only the cache of built programs stays.
    """
    from levada.cluster import Console
    from levada.cluster import down as stop

    stop(name, Console())


@app.command()
def status(name: Name = "levada") -> None:
    """Show what runs, and which faults there are.

    The exit code is 1 if a program does not run or a node or an addon is not ready.
    """
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
    for node in cluster.plan.nodes:
        typer.echo(f"node {node.name}, zone {node.zone}: {'ready' if seen.nodes[node.name] else 'NOT ready'}")
    for fault in seen.faults:
        typer.echo(f"fault: {fault}")
    for port, target in sorted(seen.ports.items()):
        typer.echo(f"127.0.0.1:{port:<6} leads to {target}")
    typer.echo(f"kubeconfig: {cluster.kubeconfig}")
    if seen.trouble:
        typer.echo(f"{seen.trouble}. Run: levada cluster up --name {name}", err=True)
        raise typer.Exit(1)


@app.command()
def kubeconfig(name: Name = "levada") -> None:
    """Print where the kubeconfig is.

    As in: export KUBECONFIG=$(levada cluster kubeconfig). It is an administrator's.
    """
    from levada.cluster import Cluster

    typer.echo(Cluster(name).kubeconfig)


@app.command()
def forward(
    namespace: Annotated[str, typer.Argument(help="Namespace of the Service.")],
    service: Annotated[str, typer.Argument(help="Name of the Service.")],
    port: Annotated[int, typer.Argument(help="Port of the Service.")],
    name: Name = "levada",
) -> None:
    """Have a port of 127.0.0.1 lead to a Service.

    It is printed, and it is kept until the cluster is taken down.
    """
    from levada.cluster import Cluster

    typer.echo(f"127.0.0.1:{Cluster(name).forward(namespace, service, port)}")


Node = Annotated[str, typer.Argument(help="Number of the node (1, 2, …) or its whole name.")]


@app.command()
def kill(node: Node, name: Name = "levada") -> None:
    """Drill: take a node's power.

    All its processes end at once, and nothing of it says good-bye on the network. `start` gives it back.
    """
    cluster = _cluster(name)
    cluster.faults.kill(_number(cluster, node))
    _tell(cluster)


@app.command()
def start(node: Node, name: Name = "levada") -> None:
    """Drill: start a node that was killed.

    It comes back with its data; the command ends when it is ready.
    """
    cluster = _cluster(name)
    cluster.faults.start(_number(cluster, node))
    cluster.faults.wait_ready([_number(cluster, node)])
    _tell(cluster)


@app.command()
def pause(node: Node, name: Name = "levada") -> None:
    """Drill: have a node stand still.

    No process of it runs, no pod either; connections stay open and are not answered. `resume` undoes it.
    """
    cluster = _cluster(name)
    cluster.faults.pause(_number(cluster, node))
    _tell(cluster)


@app.command()
def resume(node: Node, name: Name = "levada") -> None:
    """Drill: have a paused node go on."""
    cluster = _cluster(name)
    cluster.faults.resume(_number(cluster, node))
    _tell(cluster)


@app.command()
def cut(
    node: Node,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Only between the node and this other one, or `control`; may be given again."),
    ] = None,
    direction: Annotated[
        Literal["both", "in", "out"],
        typer.Option(help="in: the node receives nothing. out: nothing that it sends arrives."),
    ] = "both",
    name: Name = "levada",
) -> None:
    """Drill: cut the link of a node.

    To everybody or to one peer, both ways or one; what is sent over it is gone without a word. Cuts add up, and
    `heal` mends them.

    `control` is the control plane, and with it everything outside the cluster: forwarded ports lead through it.
    """
    from levada.cluster import Direction

    cluster = _cluster(name)
    peers = None if peer is None else [_peer(cluster, each) for each in peer]
    cluster.faults.cut(_number(cluster, node), direction=Direction(direction), peers=peers)
    _tell(cluster)


@app.command()
def heal(
    node: Annotated[str | None, typer.Argument(help="Number or name of a node; all nodes if left out.")] = None,
    name: Name = "levada",
) -> None:
    """Drill: undo every fault.

    Mends links, resumes what is paused, starts what is off, and ends when the nodes are ready.
    """
    cluster = _cluster(name)
    number = None if node is None else _number(cluster, node)
    cluster.faults.heal(number)
    cluster.faults.wait_ready(None if number is None else [number])
    _tell(cluster)


def _cluster(name: str) -> Cluster:
    from levada.cluster import Cluster, Console

    return Cluster(name, Console())


def _number(cluster: Cluster, text: str) -> int:
    """The number of a node that a user named; the cluster tells whether it has that node."""
    number = text.removeprefix(f"{cluster.name}-")
    if not number.isdecimal():
        raise UserError(f"{text!r} is no node: say its number or its name, like 1 or {cluster.name}-1")
    return int(number)


def _peer(cluster: Cluster, text: str) -> int | Literal["control"]:
    return "control" if text == "control" else _number(cluster, text)


def _tell(cluster: Cluster) -> None:
    """Say which faults are in effect now."""
    for fault in cluster.faults.active() or ["no fault is in effect"]:
        typer.echo(fault)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
