"""`mlops artifacts`: what the files of models take, whether they are what was saved, and what nobody needs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlops_assets.terminal import print_table

if TYPE_CHECKING:
    from resources.artifacts.objects import Usage

artifacts = typer.Typer(help="The files of models: what they take, whether they are whole, what nobody needs.")

Json = Annotated[bool, typer.Option("--json", help="For a program")]


@artifacts.callback(invoke_without_command=True)
def usage(context: typer.Context, as_json: Json = False) -> None:
    """The files of models: what they take, whether they are whole, what nobody needs. Without a command, the first."""
    if context.invoked_subcommand is not None:
        return
    from resources.artifacts.audit import object_stores
    from resources.environment import resources_for

    used = {str(store.root): store.usage() for store in object_stores(resources_for()["mlflow"])}
    if as_json:
        typer.echo(json.dumps({root: asdict(one) for root, one in used.items()}, indent=2))
        return
    print_table(
        "Artifacts by content",
        ["objects under", "objects", "stored", "names", "without sharing", "saved", "unused"],
        [(root, *_cells(one)) for root, one in used.items()],
    )


@artifacts.command()
def verify(as_json: Json = False) -> None:
    """Read every version, Bento and object, and say what is not what was saved; exit code 1 when anything is not."""
    from mlops_assets.catalog import gather
    from resources.artifacts import audit
    from resources.environment import resources_for

    stores = resources_for()
    names = [model.registered_name for model in gather().models.values()]
    found = [
        *audit.versions(stores["mlflow"], names),
        *audit.bentos(stores["bentos"]),
        *audit.objects(audit.object_stores(stores["mlflow"])),
    ]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        print_table("Artifacts, every byte read", ["what", "how it stands"], [(one.what, one.problem) for one in found])
    if damaged := sum(not one.whole for one in found):
        typer.secho(f"{damaged} of {len(found)} are damaged", fg="red", err=True)
        raise typer.Exit(1)


@artifacts.command()
def collect() -> None:
    """Delete the objects that no run and no Bento refers to; safe while others write."""
    from resources.artifacts.audit import object_stores
    from resources.environment import resources_for

    for store in object_stores(resources_for()["mlflow"]):
        gone = store.collect()
        typer.echo(f"{store.root}: {gone.objects} objects deleted, {_megabytes(gone.stored_bytes)} free")


def _cells(used: Usage) -> tuple[str, ...]:
    saved = max(0, used.linked_bytes - used.stored_bytes + used.unused_bytes)
    return (
        str(used.objects),
        _megabytes(used.stored_bytes),
        str(used.links),
        _megabytes(used.linked_bytes),
        _megabytes(saved),
        f"{used.unused} ({_megabytes(used.unused_bytes)})",
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
