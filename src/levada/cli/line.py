"""Commands about the line as a whole: up, down, status, model, check, demo, predict, logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

Cluster = Annotated[str, typer.Option(envvar="LEVADA_CLUSTER", help="Name of this machine's own cluster.")]
Context = Annotated[
    str | None, typer.Option(envvar="CONTEXT", help="Use this kube context instead of the machine's own cluster.")
]
Namespace = Annotated[str, typer.Option(help="Namespace of the line.")]
Values = Annotated[
    list[Path] | None,
    typer.Option("--values", "-f", help="Values file; may be given several times. Default: local and nano."),
]


def _target(cluster: str, context: str | None, namespace: str) -> Any:
    from levada.line.target import find

    return find(cluster=cluster, context=context, namespace=namespace)


def in_cluster(
    command: list[str], cluster: str, context: str | None, namespace: str, *, timeout: float, logged: bool = True
) -> NoReturn:
    """Run a command in a pod of the release, print what it prints and end as it ends."""
    from levada.line import remote

    target = _target(cluster, context, namespace)
    if logged:
        _end_as(remote.run(target, command, timeout=timeout))
    _end_as((remote.run_unlogged(target, command, timeout=timeout), 0))


def in_gate(
    pipeline: str, command: list[str], cluster: str, context: str | None, namespace: str, *, timeout: float
) -> NoReturn:
    """The same in a pod that has the gate's key."""
    from levada.line import remote

    _end_as(remote.run_gate(_target(cluster, context, namespace), pipeline, command, timeout=timeout))


def _end_as(done: tuple[str, int]) -> NoReturn:
    typer.echo(done[0], nl=False)
    raise typer.Exit(done[1])


def up(
    cluster: Cluster = "levada",
    context: Context = None,
    registry: Annotated[
        str | None, typer.Option(envvar="REGISTRY", help="Where to push the images for --context.")
    ] = None,
    namespace: Namespace = "levada",
    values: Values = None,
    demo_pipeline: Annotated[
        str, typer.Option("--demo", help="Pipeline to send through the line at the end; empty for none.")
    ] = "iris",
) -> None:
    """Bring everything up, from the cluster to a prediction; safe to run again."""
    from levada.cluster.progress import Console
    from levada.line import install
    from levada.line import up as line

    progress = Console()
    phases = line.Phases(progress)
    if context:
        target, images = line.prepare_context(context, registry, progress, phases, namespace)
    else:
        target, images = line.prepare(cluster, progress, phases, namespace)
    line.put_up(target, values or install.DEFAULT_VALUES, images, phases)
    report = None
    if demo_pipeline:
        with phases.phase("demo"):
            report = line.run_demo(target, demo_pipeline, None, lambda text: progress.detail(text))
    typer.echo("\nPhases")
    typer.echo(phases.summary())
    if report is not None:
        _print_report(report)
    target.close()


def down(
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Take everything down: the machine's own cluster, or the release where a context is given."""
    if context:
        from levada.line.install import uninstall

        uninstall(_target(cluster, context, namespace))
        typer.echo("The release is gone; its volumes and credentials stay, as its notes say.")
    else:
        from levada import cluster as clusters
        from levada.cluster.progress import Console

        clusters.down(cluster, Console())


def status(cluster: Cluster = "levada", context: Context = None, namespace: Namespace = "levada") -> None:
    """Show rooms, readiness, versions, memory, lag, rows and champions on one screen."""
    from levada.line import status as line

    target = _target(cluster, context, namespace)
    read = line.read(target)
    typer.echo(line.render(read))
    typer.echo("")
    there = {service["metadata"]["name"] for service in target.objects("services")}
    for title, component, port, secret in line.PLACES:
        if (service := target.name(component)) in there:
            typer.echo(f"{title:<12}{target.url(service, port):<26}{secret.format(release=target.release)}")
    target.close()
    raise typer.Exit(0 if read.ready else 1)


def model(
    pipeline: Annotated[str, typer.Argument(help="A declared pipeline with a model.")],
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Show champion, challenger, live quality, drift and trainings of a model on one screen."""
    from levada.line import model as line

    target = _target(cluster, context, namespace)
    try:
        typer.echo(line.render(line.read(target, pipeline)))
    finally:
        target.close()


def check(values: Annotated[list[Path], typer.Option("--values", "-f", help="Values file; may be repeated.")]) -> None:
    """Check the pipelines in values files before a rollout: rules and references that no schema sees."""
    from levada.line.install import check as checked

    for name, pipeline in checked(values).items():
        label = f", predicts {pipeline.model.label}" if pipeline.model else ""
        typer.echo(f"pipeline {name}: {len(pipeline.fields)} fields, topic {pipeline.topic_name}{label}: good")


def demo(
    pipeline: Annotated[str, typer.Argument(help="A declared pipeline with a model.")] = "iris",
    data: Annotated[Path | None, typer.Option(help="CSV of its rows; by default those of the example.")] = None,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Send rows by HTTP, train, gate and predict; assert that the model the gate names answers. Safe to run again."""
    from levada.line.up import run_demo

    target = _target(cluster, context, namespace)
    try:
        report = run_demo(target, pipeline, data, typer.echo)
    finally:
        target.close()
    _print_report(report)


def _print_report(report: Any) -> None:
    typer.echo(f"\nTimeline of pipeline {report.pipeline}")
    for hop in report.hops:
        typer.echo(f"{hop.seconds:7.1f} s  {hop.name:<15} {hop.detail}")
    typer.echo(f"{report.seconds:7.1f} s  from the first event to the last prediction")
    typer.echo(f"\n{report.sample}")
    typer.echo(
        f"Model {report.pipeline} version {report.version} answered, as the gate's outcome names; "
        f"{report.correct} of {report.rows} predictions equal the label."
    )


def predict(
    pipeline: Annotated[str, typer.Argument(help="A declared pipeline with a model.")],
    features: Annotated[list[str], typer.Argument(help="One JSON object, or feature=value for each feature.")],
    probabilities: Annotated[bool, typer.Option(help="Ask for the probability of each label, too.")] = False,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Ask the predictor of a pipeline for one prediction, with the line's own API key."""
    target = _target(cluster, context, namespace)
    if len(features) == 1 and features[0].lstrip().startswith("{"):
        instance = _json(features[0])
    else:
        pairs = [text.partition("=") for text in features]
        if wrong := [name for name, equals, _ in pairs if not equals]:
            sys.exit(f"levada: {wrong[0]!r} is not feature=value")
        instance = {name: _json(value) for name, _, value in pairs}
    answer = target.endpoint(f"predictor-{pipeline}", 8080).request(
        "POST", "/predict" + ("?probabilities=true" if probabilities else ""), json={"instances": [instance]},
        headers={"Authorization": f"Bearer {target.secret('api-key', 'key')}"}, retry_for=10,
    )  # fmt: skip
    target.close()
    typer.echo(json.dumps(answer.json(), indent=2))
    raise typer.Exit(0 if answer.is_success else 1)


def _json(text: str) -> Any:
    """A JSON value; what is not JSON is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def logs(
    component: Annotated[str, typer.Argument(help="As in `levada status`, such as collector or sink-iris.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as new lines come.")] = False,
    tail: Annotated[int, typer.Option(help="Lines from the end.")] = 100,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Show the log of a component."""
    target = _target(cluster, context, namespace)
    workloads = {
        workload["metadata"]["name"].removeprefix(f"{target.release}-"): workload
        for workload in target.objects("deployments,statefulsets")
    }
    if component not in workloads:
        sys.exit(f"levada: there is no component {component}; there are {', '.join(sorted(workloads))}")
    workload = workloads[component]
    name = f"{workload['kind'].lower()}/{workload['metadata']['name']}"
    command = [str(target.kubectl_binary), "--context", target.context, "--namespace", target.namespace, "logs", name]
    command += ["--all-containers", f"--tail={tail}", *(["--follow"] if follow else [])]
    raise typer.Exit(subprocess.run(command, env={**os.environ, **target.environment}, check=False).returncode)


def register(app: typer.Typer) -> None:
    """Put the commands of this group on the root."""
    for command in (up, down, status, model, check, demo, predict, logs):
        app.command()(command)
