"""Commands of the pods that move events: collector, sink, and the Jobs that prepare the stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from levada.config import required, settings
from levada.pipeline import load_pipeline

_Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to keep trying.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.command("collect")(collect)
    app.command("sink")(sink)
    app.command("wait")(wait)
    for name, text, command in (
        ("stores", "Databases, roles and buckets.", apply_stores),
        ("credentials", "Secrets that are made once and kept.", apply_credentials),
    ):
        group = typer.Typer(no_args_is_help=True, help=text)
        group.callback()(lambda: None)  # so that `apply` stays a word of its own
        group.command("apply")(command)
        app.add_typer(group, name=name)


def collect() -> None:
    """Take events by HTTP and answer once Kafka has them."""
    from levada.ingest.collector import run

    run(settings())


def sink(
    accept: Annotated[
        bool,
        typer.Option(
            "--accept",
            help="Let the table go on with the topic as it is now, after it was replaced or cut short; then stop.",
        ),
    ] = False,
) -> None:
    """Carry the events of LEVADA_PIPELINE, and its logged predictions, from Kafka to the lake."""
    config = settings()
    if not accept:
        from levada.stream.sink import run

        run(config)
        return
    from levada import lake
    from levada.stream.start import accept as accept_topic

    pipeline = load_pipeline(config.pipelines, required(config.pipeline, "LEVADA_PIPELINE"))
    kafka = required(config.kafka, "LEVADA_KAFKA__BOOTSTRAP")
    for stream in pipeline.streams:
        for partition, offset in accept_topic(lake.catalog(config), kafka, stream).items():
            typer.echo(f"topic {stream.topic_name}, partition {partition}: goes on at offset {offset}")


def apply_stores(
    roles: Annotated[Path, typer.Option(help="Folder with a folder a role: username, password.")] = Path(
        "/etc/levada/credentials/postgres-roles"
    ),
    timeout: _Timeout = 300,
) -> None:
    """Make the databases of LEVADA_STORES__DATABASES with their owners, and the buckets of LEVADA_STORES__BUCKETS."""
    from levada.stores import apply, wait

    config, wanted = settings(), apply.StoresSettings.read()
    # Buckets first: consumers wait for a database of their own, and then all of this is there.
    if wanted.buckets:
        s3 = required(config.s3, "LEVADA_S3__REGION")
        wait.wait("s3", wait.s3(s3), timeout=timeout, report=typer.echo)
        apply.apply_buckets(s3, wanted.buckets, typer.echo)
    if wanted.databases:
        postgres = required(config.postgres, "LEVADA_POSTGRES__HOST")
        owners = {database: apply.role_in(roles / role) for role, database in wanted.databases.items()}
        wait.wait("postgres", wait.postgres(postgres), timeout=timeout, report=typer.echo)
        apply.apply_postgres(postgres, owners, typer.echo)


def apply_credentials(
    spec: Annotated[Path, typer.Option(help="File that says which Secrets there must be.")],
    instance: Annotated[str, typer.Option(help="Name of the release, for the label.")] = "levada",
) -> None:
    """Make the Secrets that are missing, and the keys that are missing in them."""
    from levada.stores import credentials

    credentials.apply(
        credentials.Cluster.of_this_pod(), credentials.load_spec(spec), instance=instance, report=typer.echo
    )


def wait(
    targets: Annotated[list[str], typer.Argument(help="postgres, kafka, s3, mlflow, or an http(s) address.")],
    timeout: _Timeout = 300,
) -> None:
    """Return once everything that this pod needs is there."""
    from levada.stores import wait as waiting

    config = settings()
    for target in targets:
        match target:
            case "postgres":
                probe = waiting.postgres(required(config.postgres, "LEVADA_POSTGRES__HOST"))
            case "kafka":
                probe = waiting.kafka(required(config.kafka, "LEVADA_KAFKA__BOOTSTRAP"))
            case "s3":
                probe = waiting.s3(required(config.s3, "LEVADA_S3__REGION"))
            case "mlflow":
                probe = waiting.url(f"{required(config.mlflow, 'LEVADA_MLFLOW__URI').uri.rstrip('/')}/health")
            case address if address.startswith(("http://", "https://")):
                probe = waiting.url(address)
            case other:
                raise typer.BadParameter(f"{other}: wait for postgres, kafka, s3, mlflow or an http(s) address")
        waiting.wait(target, probe, timeout=timeout, report=typer.echo)
