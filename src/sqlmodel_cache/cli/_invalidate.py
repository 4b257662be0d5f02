"""`sqlmodel-cache invalidate`: a row, or a table, by the library's own invalidation."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._entities import Entities
from ..configure import SQLModelCache
from ._app import CommandError, ExitCode, app, err, out, print_json
from ._target import AsJson, Database, Model, Target, parts, with_target


@app.command()
@with_target
def invalidate(
    target: Target,
    model: Model,
    pk: Annotated[
        list[str] | None, typer.Argument(metavar="[PK]...", help="one for each column; without, the whole table")
    ] = None,
    database: Database = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="ask nothing before a whole table is invalidated")] = False,
    as_json: AsJson = False,
) -> None:
    """Invalidate a row, or all rows of a model: gets that begin afterwards read the database."""
    class_ = target.load(model)
    target.configure()
    table, _ = Entities().named(class_)
    key = parts("PK", pk, table.pk_types, table.pk_columns) if pk else None
    what = f"{model} {' '.join(pk)}" if pk else f"all rows of {model}"
    if key is None and not yes:
        if not sys.stdin.isatty() and as_json:
            raise CommandError("it is about a whole table, and nobody can be asked: give --yes")
        if not typer.confirm(f"Invalidate {what}? Every get will read the database once", err=True):
            err.print("nothing was invalidated")
            raise typer.Exit(ExitCode.FINDING)
    target.on(database, lambda engine: SQLModelCache.invalidate(class_, key, bind=engine))
    names = SQLModelCache.stats().invalidated
    if as_json:
        print_json({"model": model, "pk": pk or None, "invalidated_keys": names})
    else:
        out.print(f"invalidated {what}", markup=False)
