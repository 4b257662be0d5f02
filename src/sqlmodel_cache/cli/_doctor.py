"""`sqlmodel-cache doctor`: whether Redis, the database and the models are as the library needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated

import typer
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from .._namespace import Naming
from ..config import Settings
from ..configure import SQLModelCache
from ..errors import ConfigurationError
from ._app import CommandError, ExitCode, app, out, print_json
from ._checks import Check, checks_of
from ._servers import Servers
from ._target import AsJson, Database, Target, with_target

_STYLES = {"ok": "green", "warning": "yellow", "failure": "red"}


@app.command()
@with_target
def doctor(
    target: Target,
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="app.models:Hero")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Check Redis, and the database and models if they are given. Exit code 1 for warnings, 2 for failures."""
    classes = {name: target.load(name) for name in models or ()}
    settings = target.settings
    target.configure()
    found: list[Check] = []
    for check in _all(target, settings, database, classes):
        found.append(check)
        if not as_json:
            _print(check)
    counts = Counter(check.status for check in found)
    worst = next((status for status in ("failure", "warning") if counts[status]), "ok")
    if as_json:
        print_json({"status": worst, "checks": [asdict(check) for check in found]})
    else:
        out.print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['failure']} failures")
    raise typer.Exit(_code(found, worst))


def _code(found: list[Check], worst: str) -> ExitCode:
    if any(check.status == "failure" and check.unreachable for check in found):
        return ExitCode.UNREACHABLE
    return {"failure": ExitCode.USAGE, "warning": ExitCode.FINDING, "ok": ExitCode.OK}[worst]


def _all(target: Target, settings: Settings, database: str | None, classes: dict[str, type]) -> Iterator[Check]:
    packages = ("sqlmodel-cache", "sqlmodel", "sqlalchemy", "redis", "msgspec")
    yield Check("packages", "ok", ", ".join(f"{name} {version(name)}" for name in packages))
    try:
        servers = Servers(settings.transport, target.options.timeout)
    except CommandError as error:
        yield _failed("connection", error, "is the address right, and is it up?")
    else:
        try:
            for node in servers.nodes:
                yield from checks_of(node, settings, servers)
        finally:
            servers.close()
    if database is not None:
        try:
            yield from target.on(database, lambda engine: list(_database(engine, settings, target.options.namespace)))
        except CommandError as error:
            yield _failed("database", error, "is the URL right, and is it up?")
    for name, class_ in classes.items():
        yield _model(name, class_)


def _failed(name: str, error: CommandError, remedy: str) -> Check:
    return Check(name, "failure", str(error), remedy, unreachable=error.code == ExitCode.UNREACHABLE)


def _database(engine: Engine, settings: Settings, namespace: str | None) -> Iterator[Check]:
    dialect = engine.dialect
    numbers = ".".join(map(str, dialect.server_version_info or ()))
    yield Check("database", "ok", f"{dialect.name} {numbers}, by {dialect.driver}")
    asked = settings.namespace is None and namespace is None
    with Session(engine) as session:
        try:
            name = Naming(settings).namespace(session, engine) if namespace is None else namespace
            yield Check("database name", "ok", f"{name} in keys" + ("" if asked else ", as configured"))
        except LookupError as why:
            remedy = "the command line has no session of your application's: --namespace names one"
            yield Check("database name", "warning", str(why), remedy)
    if dialect.name == "postgresql":
        yield from _postgresql(engine, asked=asked)
    elif dialect.name == "sqlite" and not engine.url.database:
        yield Check("sharing", "warning", "a database in memory is its process's own", "nobody else hits its rows")


def _postgresql(engine: Engine, *, asked: bool) -> Iterator[Check]:
    with engine.connect() as connection:
        recovers, told, level = connection.execute(
            text(
                "SELECT pg_is_in_recovery(), coalesce(has_function_privilege(to_regprocedure("
                "'pg_catalog.pg_control_system()')::oid, 'EXECUTE'), false), "
                "current_setting('default_transaction_isolation')"
            )
        ).one()
    if recovers:
        remedy = "rows that are read from it are not stored; give the primary's URL to fill the cache"
        yield Check("primary", "warning", "the server replays another's log", remedy)
    if asked and not told:
        remedy = "write host and port alike in all processes, or configure(namespace=...)"
        yield Check("identity", "warning", "pg_control_system() is forbidden: the URL names the database", remedy)
    if level not in ("read committed", "read uncommitted"):
        remedy = "begun transactions take no hits and may not fill: docs/transactions.md"
        yield Check("isolation", "warning", f"{level} is this user's default", remedy)


def _model(name: str, class_: type) -> Check:
    try:
        explained = SQLModelCache.explain(class_)
    except ConfigurationError as error:
        return Check(f"model {name}", "failure", str(error), "mend its __cache_config__")
    if not explained.cached:
        return Check(f"model {name}", "warning", f"not cached: {explained.reason}", "docs/what-is-cached.md")
    if explained.refused:
        told = "; ".join(f"{other}: {why}" for other, why in explained.refused.items())
        return Check(f"model {name}", "warning", f"cached, but for some subclasses: {told}", "docs/what-is-cached.md")
    return Check(f"model {name}", "ok", f"cached for {explained.ttl:g} s, as {explained.table}")


def _print(check: Check) -> None:
    where = f" ({check.server})" if check.server else ""
    out.print(f"{check.status:<8}", style=_STYLES[check.status], end="")
    out.print(f"{check.name}{where}: {check.detail}", markup=False)
    if check.remedy:
        out.print(f"{'':<8}    {check.remedy}", markup=False)
