"""`levada images`: build, list and push the images of the line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The images of the line.")

Names = Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]…", help="Which images; all if none is named.")]


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


@app.command()
def build(
    images: Names = None,
    values: Annotated[Path | None, typer.Option(help="Also write a values file that names these images.")] = None,
) -> None:
    """Build the images whose inputs changed, and print the size of each."""
    import yaml

    from levada.cluster import images as room
    from levada.cluster.progress import Console

    archives = room.build(images, Console())
    if values:
        values.write_text(yaml.safe_dump(room.values(archives)))
    _table([archive.name.removeprefix("levada/") for archive in archives])


@app.command("list")
def list_() -> None:
    """Print every image with its size, digest and build time."""
    from levada.cluster import images as room

    _table(room.names())


@app.command()
def push(
    registry: Annotated[str, typer.Argument(help="Registry and path, for example registry.example.com/mirror.")],
    images: Names = None,
) -> None:
    """Build what changed, then copy the images to a registry (`skopeo login` before) with their digests unchanged."""
    from levada.cluster import images as room
    from levada.cluster.progress import Console

    progress = Console()
    room.push(room.build(images, progress), registry, progress)


def _table(names: list[str]) -> None:
    from levada.cluster import images as room

    typer.echo(f"{'image':<26}{'tag':<18}{'digest':<22}{'MiB':>5}{'above its base':>16}{'built in':>10}")
    records = room.listed()
    for name in names:
        if built := records[name]:
            sizes = f"{_mib(built.size):>5}{_mib(built.above):>16}{built.seconds:>8.0f} s"
            typer.echo(f"levada/{name:<19}{built.tag:<18}{built.digest[:19]:<22}{sizes}")
        else:
            typer.echo(f"levada/{name:<19}not built yet")
