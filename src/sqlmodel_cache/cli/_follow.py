"""`sqlmodel-cache follow`: invalidates what any program changes in a database."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Annotated

import typer
from rich.logging import RichHandler

from ..configure import SQLModelCache
from ._app import CommandError, ExitCode, app, err, first_line, out
from ._target import import_module

if TYPE_CHECKING:
    from ..follow import Follower


@app.command()
def follow(
    database: Annotated[
        str, typer.Argument(metavar="DATABASE_URL", help="postgresql+psycopg://..., mysql+pymysql://...")
    ],
    models: Annotated[list[str], typer.Argument(metavar="MODULE...", help="with the models, such as app.models")],
    transport: Annotated[str | None, typer.Option(help="redis://...; left out where a module configures")] = None,
    key_prefix: Annotated[str, typer.Option(help="as in configure()")] = "sqlmodelcache",
    namespace: Annotated[list[str] | None, typer.Option(help="as in configure(); each, where it is a callable")] = None,
    name: Annotated[str | None, typer.Option(help="of the publication, slot, lock; or of a row in its table")] = None,
    outbox: Annotated[bool, typer.Option("--outbox", help="read a table that triggers fill: no log is read")] = False,
    setup: Annotated[bool, typer.Option("--setup", help="prepare the database, and end")] = False,
    teardown: Annotated[bool, typer.Option("--teardown", help="take that back, and end")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the SQL of --setup or --teardown")] = False,
    max_slot_bytes: Annotated[int | None, typer.Option(help="let go of the slot when more is kept for it")] = None,
    alarm_bytes: Annotated[int, typer.Option(help="warn when more than that is kept for the follower")] = 1 << 30,
) -> None:
    """Invalidate what any program changes in a database: psql, triggers, other services."""
    handler = RichHandler(console=err, show_path=False, rich_tracebacks=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    for module in models:
        import_module("MODULE", module)
    if transport is not None or SQLModelCache.get_config() is None:
        if transport is None:
            raise typer.BadParameter("give --transport redis://..., or a module that calls SQLModelCache.configure()")
        one = namespace[0] if namespace and len(namespace) == 1 else None
        SQLModelCache.configure(transport, key_prefix=key_prefix, namespace=one)
    follower = SQLModelCache.follower(
        database,
        name=name,
        namespaces=namespace,
        outbox=outbox,
        max_slot_bytes=max_slot_bytes,
        alarm_bytes=alarm_bytes,
    )
    if setup or teardown:
        _prepare(follower, teardown=teardown, dry_run=dry_run)
    else:
        asyncio.run(_until_told(follower))


def _prepare(follower: Follower, *, teardown: bool, dry_run: bool) -> None:
    from ..follow._source import SourceError

    source = follower.source
    try:
        statements = source.teardown_sql() if teardown else source.setup_sql()
        for statement in statements:
            out.print(f"{statement};", markup=False)
        if not dry_run:
            (source.teardown if teardown else source.setup)()
    except SourceError as error:
        raise CommandError(f"the database says: {first_line(error)}", ExitCode.UNREACHABLE) from None
    if not statements:
        err.print("nothing to do")


async def _until_told(follower: Follower) -> None:
    running = asyncio.ensure_future(follower.arun())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        err.print(f"stopped: {follower.stats}", markup=False)
