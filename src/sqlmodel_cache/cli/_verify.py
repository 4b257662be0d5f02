"""`sqlmodel-cache verify`: cached rows, compared with the database."""

from __future__ import annotations

from typing import Annotated

import typer

from ..configure import SQLModelCache
from ._app import ExitCode, app, out, print_json
from ._target import AsJson, Database, Model, Target, with_target


@app.command()
@with_target
def verify(
    target: Target,
    model: Model,
    sample: Annotated[int, typer.Option(min=1, help="about how many rows of the table are looked up")] = 10_000,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Compare cached rows with the database; changes nothing. Exit code 1: some of them differ."""
    class_ = target.load(model)
    target.configure()
    found = target.on(database, lambda engine: SQLModelCache.verify(class_, engine, sample=sample))
    if as_json:
        print_json(found.as_dict())
    else:
        out.print(str(found), markup=False)
    raise typer.Exit(ExitCode.OK if found.ok else ExitCode.FINDING)
