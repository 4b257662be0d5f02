"""Who may import whom. Decisions are below, the outside world is above, and there are no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sqlmodel_cache"

# From the bottom to the top: each module with the modules that it may import, all of which stand above it in this list.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "metrics": {"errors"},
    "tracing": {"metrics"},
    "_plan": set(),
    "_sqlalchemy": set(),
    "_writeset": set(),
    "_sqltext": set(),
    "_effects": {"_plan", "errors"},
    "_keys": {"_effects"},
    "_journal": {"_effects", "_keys"},
    "config": {"_keys", "errors"},
    "_values": set(),
    "_carriers": {"_values"},
    "_described": set(),
    "_codec": {"_carriers", "_described", "_values", "errors"},
    "_protocol": {"_effects", "_plan", "errors"},
    "_searches": {"_effects", "_plan", "_protocol", "errors"},
    "_debts": {"_effects", "_keys"},
    "_verify": {"_effects", "_plan", "_protocol", "errors"},
    "verification": set(),
    "_sampling": set(),
    "_recovery": {"_debts", "_effects", "errors"},
    "_versions": {"_effects"},
    "_near": {"_effects", "_plan"},
    "_foreign_keys": set(),
    "_renewal": {"errors"},
    "_shapes": {"_codec", "_keys", "_renewal", "_sqlalchemy", "config", "errors", "metrics"},
    "_entities": {"_foreign_keys", "_keys", "_shapes", "_sqlalchemy", "config", "errors", "metrics"},
    "_statements": {"_codec", "_entities", "_shapes", "_sqlalchemy", "_sqltext", "_writeset"},
    "transport._sampling": {"_plan"},
    "transport.memory": {"_effects", "_plan", "errors", "transport._sampling"},
    "transport._servers": set(),
    "transport._commands": {"_effects", "_keys", "_plan", "errors", "transport._servers"},
    "transport._layout": {"transport._commands"},
    "transport._batches": {"_plan", "errors"},
    "transport._cluster": {"_keys", "_plan", "transport._commands", "transport._servers"},
    "transport._masters": set(),
    "transport._clients": {"errors", "transport._cluster", "transport._masters", "transport._servers"},
    "transport._wires": {
        "_effects",
        "_plan",
        "transport._clients",
        "transport._cluster",
        "transport._commands",
        "transport._servers",
    },
    "transport.redis": {
        "_effects",
        "_plan",
        "config",
        "errors",
        "transport._batches",
        "transport._clients",
        "transport._cluster",
        "transport._commands",
        "transport._sampling",
        "transport._servers",
        "transport._wires",
    },
    "transport.tracking": {"errors", "transport._clients", "transport._servers"},
    "transport": {"_plan", "transport.memory", "transport.redis"},
    "transport.faults": {
        "_effects",
        "_plan",
        "config",
        "errors",
        "transport",
        "transport.memory",
        "transport.redis",
    },
    "_sealing": {"_effects", "_plan", "errors"},
    "_driver": {
        "_debts",
        "_effects",
        "_near",
        "_plan",
        "_protocol",
        "_recovery",
        "_sealing",
        "_sqlalchemy",
        "errors",
        "transport",
    },
    "_namespace": {"_effects", "_keys", "_sqlalchemy", "_writeset", "config", "errors"},
    "_flights": {"_effects", "_plan", "_sqlalchemy"},
    "_unique": {"_keys", "_shapes", "config", "errors"},
    "_admission": {
        "_driver",
        "_effects",
        "_keys",
        "_namespace",
        "_shapes",
        "_sqlalchemy",
        "_writeset",
        "config",
        "errors",
        "metrics",
    },
    "_counting": {"_driver", "_effects", "_plan", "_protocol", "metrics"},
    "_reading": {
        "_admission",
        "_counting",
        "_driver",
        "_effects",
        "_entities",
        "_flights",
        "_namespace",
        "_plan",
        "_protocol",
        "_renewal",
        "_shapes",
        "_sqlalchemy",
        "_unique",
        "_versions",
        "config",
        "errors",
        "metrics",
        "tracing",
    },
    "_lazy": {"_entities", "_reading", "_sqlalchemy", "config"},
    "_queries": {
        "_admission",
        "_counting",
        "_driver",
        "_effects",
        "_plan",
        "_protocol",
        "_reading",
        "_searches",
        "_shapes",
        "_sqlalchemy",
        "_unique",
        "errors",
        "metrics",
        "tracing",
    },
    "explanation": {"_entities", "_lazy", "_shapes", "config", "errors"},
    "_inspecting": {
        "_admission",
        "_driver",
        "_effects",
        "_entities",
        "_namespace",
        "_shapes",
        "_writeset",
        "errors",
        "explanation",
    },
    "_writing": {
        "_driver",
        "_effects",
        "_entities",
        "_journal",
        "_keys",
        "_namespace",
        "_plan",
        "_protocol",
        "_shapes",
        "_statements",
        "_writeset",
        "config",
        "errors",
        "metrics",
    },
    "_verifier": {
        "_admission",
        "_driver",
        "_effects",
        "_plan",
        "_reading",
        "_sampling",
        "_shapes",
        "_sqlalchemy",
        "_values",
        "_verify",
        "_writeset",
        "errors",
        "verification",
    },
    "_sampler": {
        "_admission",
        "_shapes",
        "_sqlalchemy",
        "_verifier",
        "_verify",
        "_writeset",
    },
    "cache": {
        "_driver",
        "_entities",
        "_inspecting",
        "_keys",
        "_lazy",
        "_namespace",
        "_near",
        "_queries",
        "_reading",
        "_sampler",
        "_sealing",
        "_statements",
        "_verifier",
        "_writing",
        "config",
        "errors",
        "metrics",
        "transport",
        "transport.tracking",
    },
    "follow._pgoutput": set(),
    "follow._changes": {"_entities", "_keys", "_shapes", "_writeset", "follow._pgoutput"},
    "follow._source": {"follow._changes"},
    "follow._catalog": {"follow._source"},
    "follow._connect": set(),
    "follow._watch": {"follow._catalog", "follow._changes", "follow._source"},
    "follow._stream": {
        "errors",
        "follow._catalog",
        "follow._changes",
        "follow._connect",
        "follow._pgoutput",
        "follow._source",
        "follow._watch",
    },
    "follow._follower": {
        "_debts",
        "_driver",
        "_effects",
        "_namespace",
        "_plan",
        "_protocol",
        "errors",
        "follow._changes",
        "follow._source",
    },
    "follow._outbox": {"_shapes", "errors", "follow._changes", "follow._source"},
    "follow._outbox_postgresql": {
        "_shapes",
        "follow._catalog",
        "follow._connect",
        "follow._outbox",
        "follow._source",
    },
    "follow._outbox_sqlite": {"_shapes", "follow._outbox", "follow._source"},
    "follow._binlog_server": {"follow._source"},
    "follow._binlog_changes": {"_shapes", "_writeset", "follow._binlog_server", "follow._changes", "follow._source"},
    "follow._binlog_reader": {"follow._binlog_changes", "follow._binlog_server", "follow._source"},
    "follow._binlog": {
        "errors",
        "follow._binlog_changes",
        "follow._binlog_reader",
        "follow._binlog_server",
        "follow._changes",
        "follow._source",
    },
    "follow": {
        "_keys",
        "cache",
        "errors",
        "follow._binlog",
        "follow._changes",
        "follow._follower",
        "follow._outbox",
        "follow._outbox_postgresql",
        "follow._outbox_sqlite",
        "follow._source",
        "follow._stream",
    },
    "session": {"_effects", "_sqlalchemy", "_sqltext", "_writeset", "_writing", "cache", "config", "errors"},
    "configure": {
        "_entities",
        "_queries",
        "_sqlalchemy",
        "cache",
        "config",
        "errors",
        "explanation",
        "follow",
        "metrics",
        "session",
        "tracing",
        "transport",
        "transport.redis",
        "verification",
    },
    "testing": {
        "configure",
        "errors",
        "metrics",
        "transport.faults",
        "transport.memory",
        "transport.redis",
    },
    "cli._app": {"errors"},
    "cli._servers": {"cli._app", "transport", "transport._clients", "transport._cluster"},
    "cli._target": {"_sqlalchemy", "cli._app", "config", "configure", "transport", "transport._clients"},
    "cli._checks": {
        "_effects",
        "_keys",
        "cli._app",
        "cli._servers",
        "config",
        "errors",
        "transport",
        "transport._cluster",
    },
    "cli._doctor": {
        "_namespace",
        "cli._app",
        "cli._checks",
        "cli._servers",
        "cli._target",
        "config",
        "configure",
        "errors",
    },
    "cli._sampling": {"_keys", "cli._app", "cli._servers", "transport._sampling"},
    "cli._stats": {"cli._app", "cli._sampling", "cli._servers", "cli._target"},
    "cli._top": {"cli._app", "cli._sampling", "cli._servers", "cli._stats", "cli._target"},
    "cli._inspect": {
        "_admission",
        "_effects",
        "_entities",
        "_namespace",
        "_sealing",
        "_shapes",
        "_sqlalchemy",
        "_writeset",
        "cli._app",
        "cli._servers",
        "cli._target",
        "config",
        "errors",
        "transport",
        "transport._layout",
    },
    "cli._invalidate": {"_entities", "cli._app", "cli._target", "configure"},
    "cli._warm": {"_entities", "_shapes", "cli._app", "cli._target", "configure"},
    "cli._verify": {"cli._app", "cli._target", "configure"},
    "cli._follow": {"cli._app", "cli._target", "configure", "follow", "follow._source"},
    "cli._commands": {
        "cli._app",
        "cli._doctor",
        "cli._follow",
        "cli._inspect",
        "cli._invalidate",
        "cli._stats",
        "cli._top",
        "cli._verify",
        "cli._warm",
    },
    "cli": {"cli._commands"},
    "cli.__main__": {"cli"},
    "contrib": set(),
    "contrib.fastapi": {"configure", "errors"},
    "contrib.otel": {"configure", "metrics", "tracing"},
    "contrib.prometheus": {"configure", "metrics"},
    "contrib.dashboard._history": {"metrics"},
    "contrib.dashboard._views": {
        "_entities",
        "_keys",
        "_sqlalchemy",
        "cache",
        "configure",
        "contrib.dashboard._history",
        "errors",
        "metrics",
        "transport",
    },
    "contrib.dashboard": {
        "configure",
        "contrib.dashboard._history",
        "contrib.dashboard._views",
        "errors",
    },
    "__init__": {"config", "configure", "errors", "explanation", "metrics", "tracing", "transport", "verification"},
}

# Which of the library's dependencies a module may import; the others none.
DEPENDENCIES = {
    "pymysql",
    "pymysqlreplication",
    "asyncpg",
    "cryptography",
    "msgspec",
    "opentelemetry",
    "prometheus_client",
    "psycopg",
    "pydantic",
    "redis",
    "rich",
    "sqlalchemy",
    "sqlmodel",
    "typer",
}
THIRD_PARTY: dict[str, set[str]] = {
    "_sqlalchemy": {"sqlalchemy"},
    "_namespace": {"sqlalchemy"},
    "_writeset": {"sqlalchemy"},
    "_sqltext": {"sqlalchemy"},
    "_values": {"msgspec", "sqlalchemy"},
    "_carriers": {"sqlalchemy", "sqlmodel"},
    "_described": {"sqlalchemy"},
    "_codec": {"msgspec", "sqlalchemy"},
    "_foreign_keys": {"sqlalchemy"},
    "_shapes": {"sqlalchemy"},
    "_entities": {"sqlalchemy"},
    "explanation": {"sqlalchemy"},
    "_statements": {"sqlalchemy"},
    "transport._servers": {"redis"},
    "transport._commands": {"redis"},
    "transport._clients": {"redis"},
    "transport._masters": {"redis"},
    "transport._cluster": {"redis"},
    "transport._wires": {"redis"},
    "transport.redis": {"redis"},
    "follow._catalog": {"psycopg"},
    "follow._connect": {"psycopg"},
    "follow._watch": {"psycopg"},
    "follow._stream": {"psycopg"},
    "follow._outbox_postgresql": {"psycopg"},
    "follow._binlog_server": {"pymysql"},
    "follow._binlog_reader": {"pymysql", "pymysqlreplication"},
    "follow._binlog": {"pymysql", "pymysqlreplication"},
    "follow": {"psycopg", "sqlalchemy"},
    "transport.tracking": {"redis"},
    "_sealing": {"cryptography"},
    "_unique": {"msgspec", "sqlalchemy"},
    "_sampler": {"sqlalchemy"},
    "_sampling": {"sqlalchemy"},
    "_verifier": {"sqlalchemy"},
    "_admission": {"sqlalchemy"},
    "_inspecting": {"sqlalchemy"},
    "_reading": {"sqlalchemy"},
    "_lazy": {"sqlalchemy"},
    "_queries": {"sqlalchemy"},
    "_writing": {"sqlalchemy"},
    "session": {"sqlalchemy"},
    "configure": {"sqlalchemy"},
    "cli._verify": {"typer"},
    "cli._app": {"redis", "rich", "sqlalchemy", "typer"},
    "cli._servers": {"redis"},
    "cli._target": {"redis", "sqlalchemy", "typer"},
    "cli._checks": {"redis"},
    "cli._doctor": {"sqlalchemy", "typer"},
    "cli._sampling": {"redis"},
    "cli._stats": {"rich", "typer"},
    "cli._top": {"rich", "typer"},
    "cli._inspect": {"sqlalchemy", "typer"},
    "cli._invalidate": {"typer"},
    "cli._warm": {"rich", "sqlalchemy", "typer"},
    "cli._follow": {"rich", "typer"},
    "contrib.dashboard": {"msgspec"},
    "contrib.otel": {"opentelemetry"},
    "contrib.prometheus": {"prometheus_client"},
}


def modules() -> dict[str, ast.Module]:
    """Return the source of every module, by its name below the package."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


MODULES = modules()
PACKAGES = {"cli", "contrib", "contrib.dashboard", "follow", "transport"}


def imports(name: str) -> Iterator[tuple[str, str]]:
    """Yield each imported module and name: of this package without its name, and with a leading dot."""
    package = name.split(".") if name in PACKAGES else name.split(".")[:-1]
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                if node.level and inner in MODULES:
                    yield f".{inner}", ""
                else:
                    yield f".{module}" if node.level else module, alias.name


def test_layers_name_every_module_from_bottom_to_top() -> None:
    """The list is complete, and no module may import one that stands below it: so there can be no circle."""
    assert sorted(LAYERS) == sorted(MODULES)
    order = list(LAYERS)
    for name, allowed in LAYERS.items():
        assert allowed <= set(order[: order.index(name)]), name


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_kept(name: str) -> None:
    """A module imports only what its layer may."""
    assert {module[1:] for module, _ in imports(name) if module.startswith(".")} <= LAYERS[name]


@pytest.mark.parametrize("name", LAYERS)
def test_third_parties_stay_where_they_are(name: str) -> None:
    """The protocol knows neither SQLAlchemy nor Redis, the transports no SQLAlchemy, the rest no Redis."""
    found = {module.partition(".")[0] for module, _ in imports(name) if not module.startswith(".")}
    assert found & DEPENDENCIES == THIRD_PARTY.get(name, set())


def private(name: str) -> bool:
    """Return whether a name is somebody's private one."""
    return name.startswith("_") and not name.endswith("__")


def defined(tree: ast.Module) -> set[str]:
    """Return the names that a module gives to its own functions, classes and attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


# There is no other way to the connections that a client had opened before it was given to a transport.
OF_REDIS = {"transport._clients": {"_available_connections", "_in_use_connections"}}


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "_sqlalchemy"])
def test_private_names_of_others_are_used_in_one_module(name: str) -> None:
    """Only `_sqlalchemy.py` uses private names that SQLAlchemy, or anybody else, has defined; redis-py's are listed."""
    tree = MODULES[name]
    foreign = [
        f"{module}.{imported}"
        for module, imported in imports(name)
        if not module.startswith(".") and any(map(private, (*module.split("."), imported)))
    ]
    mine = defined(tree)
    foreign += [
        f"line {node.lineno}: .{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in mine | OF_REDIS.get(name, set())
    ]
    assert foreign == []


def test_lua_lies_beside_its_transport() -> None:
    """Every script is used by the Redis transport, by its file's name."""
    source = (SOURCE / "transport" / "_commands.py").read_text()
    scripts = sorted(path.stem for path in SOURCE.rglob("*.lua"))
    assert scripts == sorted(path.stem for path in (SOURCE / "transport" / "lua").iterdir())
    assert [script for script in scripts if f'"{script}' not in source and f"'{script}" not in source] == []
