"""Processes of the model's life: train, evaluate, promote, watch, roll back, replay, serve.

What a person decides, an approval or a roll-back, runs in the cluster if it is asked for outside of a pod.
"""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from levada.batch import SKIP_EXIT_CODE
from levada.cli.line import Cluster, Context, Namespace, in_gate
from levada.config import required, settings
from levada.errors import UserError

if TYPE_CHECKING:
    from levada.config import Settings
    from levada.pipeline import Pipeline
    from levada.registry.promote import Approval

NOT_PROMOTED: Final = 3
"""Exit code of an approval after which the version does not serve, because the gate or the champion changed."""

_PROMOTE_SECONDS: Final = 960.0
_ROLLBACK_SECONDS: Final = 360.0

Run = Annotated[str, typer.Option(help="Id of the DAG run; the same id gives the same version.")]
By = Annotated[str, typer.Option(help="Who decides.", envvar="LEVADA_APPROVER", show_default="the user's name")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(train)
    app.command()(evaluate)
    app.command()(promote)
    app.command()(watch)
    app.command()(rollback)
    app.command()(replay)
    app.command()(serve)


def train(run: Run) -> None:
    """Train the model of $LEVADA_PIPELINE from the lake and register a version."""
    from levada.registry.errors import NotEnoughData
    from levada.registry.train import train as start

    here, pipeline = _this_pipeline()
    try:
        start(here, pipeline, run)
    except NotEnoughData as error:
        print(f"levada: {error}", file=sys.stderr)
        raise typer.Exit(SKIP_EXIT_CODE) from None


def evaluate(run: Run) -> None:
    """Judge the version that a run registered, as promote would, and write nothing but the report."""
    from levada.registry.evaluate import evaluate as start

    here, pipeline = _this_pipeline()
    verdict = start(here, pipeline, run)
    for line in (verdict.outcome, *verdict.reasons):
        print(line)


def promote(
    run: Run,
    approve: Annotated[
        str | None, typer.Option(metavar="WHY", help="Let a version serve that needs approval, and why.")
    ] = None,
    by: By = "",
    pipeline: Annotated[
        str | None, typer.Option(help="Name of the pipeline, where $LEVADA_PIPELINE does not say it.")
    ] = None,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Judge the version that a run registered, sign the outcome and let it serve if it earned that.

    The exit code is 3 if it was approved and does not serve all the same.
    """
    approval = None if approve is None else _approval(by, "--approve", approve)
    here = settings()
    name = required(pipeline or here.pipeline, "LEVADA_PIPELINE (or --pipeline)")
    if here.mlflow is None:
        given = [] if approval is None else [f"--approve={approval.why}", f"--by={approval.by}"]
        in_gate(name, ["promote", f"--run={run}", *given], cluster, context, namespace, timeout=_PROMOTE_SECONDS)
    from levada.registry.promote import promote as start

    record = start(here, _started(here, name), run, approval)
    print(f"version {record.version}: {record.outcome}: {record.reason}")
    if approval is not None and record.outcome != "promoted":
        raise typer.Exit(NOT_PROMOTED)


def watch(
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="End with the exit code for nothing to do, unless a training should follow."),
    ] = False,
) -> None:
    """Look at the champion of $LEVADA_PIPELINE: drift of what it is asked, quality on what came true."""
    from levada.registry.errors import NotEnoughData
    from levada.registry.watch import watch as start

    here, pipeline = _this_pipeline()
    try:
        found, waits = start(here, pipeline)
    except NotEnoughData as error:
        print(f"levada: {error}", file=sys.stderr)
        raise typer.Exit(SKIP_EXIT_CODE) from None
    for line in found.alarms or (found.note or "no alarm",):
        print(line)
    if retrain and (waits or not found.alarms):
        if found.alarms:
            print(f"version {waits} waits for approval already: no further training")
        raise typer.Exit(SKIP_EXIT_CODE)


def rollback(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    why: Annotated[str, typer.Option(help="Why; it is written into the signed record.")] = "no reason given",
    by: By = "",
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Let the champion before the present one serve again."""
    approval = _approval(by, "--why", why)
    here = settings()
    if here.mlflow is None:
        command = ["rollback", f"--why={approval.why}", f"--by={approval.by}", "--", pipeline]
        in_gate(pipeline, command, cluster, context, namespace, timeout=_ROLLBACK_SECONDS)
    from levada.process import configure_logging
    from levada.registry.rollback import rollback as start

    configure_logging(here.log_level)
    print(start(here, pipeline, approval).reason)


def replay(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    version: Annotated[str, typer.Argument(help="Number of the registered version.")],
) -> None:
    """Train a version again from its record and say whether the same model comes out; exit code 1 if it does not."""
    from levada.process import configure_logging
    from levada.registry.replay import replay as start

    here = settings()
    configure_logging(here.log_level)
    done = start(here, pipeline, version)
    for metric, (recorded, replayed) in done.metrics.items():
        print(f"{metric:<18} recorded {recorded:.10g}  replayed {replayed:.10g}")
    print(f"scores of the held-out rows differ by at most {done.difference:.2g}")
    for line in done.changed:
        print(f"changed since: {line}")
    print("the same model" if done.same else "another model")
    if not done.same:
        raise typer.Exit(1)


def serve() -> None:
    """Answer predictions of $LEVADA_PIPELINE from its champion."""
    from levada.serving.serve import serve as start

    start(*_this_pipeline(rules=False))


def _approval(by: str, option: str, why: str) -> Approval:
    from levada.registry.promote import Approval

    if not why.strip():
        raise UserError(
            f"{option} is blank: write why, as it shall stand in the signed record, like "
            f'{option} "the new scale was calibrated on Monday"'
        )
    return Approval(by or getpass.getuser(), why)


def _this_pipeline(*, rules: bool = True) -> tuple[Settings, Pipeline]:
    here = settings()
    return here, _started(here, required(here.pipeline, "LEVADA_PIPELINE"), rules=rules)


def _started(here: Settings, name: str, *, rules: bool = True) -> Pipeline:
    """The declaration, once the process logs as all do."""
    from levada.pipeline import load_pipeline
    from levada.process import configure_logging

    configure_logging(here.log_level)
    return load_pipeline(here.pipelines, name, rules=rules)
