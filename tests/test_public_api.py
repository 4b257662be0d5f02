"""The surface that users hold on to: names, signatures, defaults. A change here is a change of the contract."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest

import sqlmodel_cache
from sqlmodel_cache import CacheConfig, MemoryTransport, RedisAsyncTransport, RedisSyncTransport, SQLModelCache, errors

PUBLIC = {
    "sqlmodel_cache": [
        "AsyncTransport",
        "CacheConfig",
        "CacheError",
        "CodecError",
        "ConfigurationError",
        "Discrepancy",
        "Explanation",
        "FollowerError",
        "Histogram",
        "InvalidationError",
        "MemoryTransport",
        "ModelStats",
        "NearCache",
        "RedisAsyncTransport",
        "RedisSyncTransport",
        "RowExplanation",
        "SQLModelCache",
        "Settings",
        "Stats",
        "SyncTransport",
        "Trace",
        "TracedGet",
        "TransportError",
        "Verification",
    ],
    "sqlmodel_cache.transport": [
        "AsyncTransport",
        "MemoryTransport",
        "RedisAsyncTransport",
        "RedisSyncTransport",
        "SyncTransport",
    ],
}

# Modules for tests alone: public is what they define.
FOR_TESTS = {
    "sqlmodel_cache.testing": ["CacheFixture", "fresh_cache"],
    "sqlmodel_cache.transport.faults": ["Fault", "FaultyTransport", "Operation"],
}


def own_names(module: ModuleType) -> list[str]:
    """Return the public names that a module shows and that this library's public modules define."""
    found = []
    for name, value in vars(module).items():
        origin = getattr(value, "__module__", "").split(".")
        ours = origin[0] == "sqlmodel_cache" and not any(part.startswith("_") for part in origin)
        if ours and not name.startswith("_") and inspect.isclass(value):
            found.append(name)
    return sorted(found)


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_complete_and_sorted(name: str) -> None:
    """`__all__` names what the module shows, in order, and nothing else."""
    module = importlib.import_module(name)
    assert module.__all__ == PUBLIC[name]
    assert module.__all__ == sorted(module.__all__)
    assert own_names(module) == module.__all__


@pytest.mark.parametrize("name", FOR_TESTS)
def test_modules_for_tests_name_what_they_define(name: str) -> None:
    """`__all__` names the module's own classes and functions, in order; each says what it is."""
    module = importlib.import_module(name)
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == name]
    public = [value for value in own if not value.__name__.startswith("_")]
    assert module.__all__ == FOR_TESTS[name] == sorted(value.__name__ for value in public)
    assert all(inspect.getdoc(value) for value in public)


def test_version_is_the_changelogs() -> None:
    """`__version__` has a section of its own in the changelog."""
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[?(\d[^\] ]*)", changelog, re.MULTILINE)[0] == sqlmodel_cache.__version__


SIGNATURES = {
    "configure": {
        "transport": None,
        "default_ttl": 300,
        "key_prefix": "sqlmodelcache",
        "enabled": True,
        "async_transport": None,
        "namespace": None,
        "fence_ttl": 60,
        "on_unreachable": "serve",
        "snapshot_reads": "requested",
        "fill_wait": 0.25,
        "near_cache": None,
        "max_payload_bytes": 1_048_576,
        "encryption_key": None,
        "hash_keys": False,
        "wait_replicas": 0,
        "timeout": 0.05,
        "commit_timeout": 1.0,
        "verify": 0.0,
    },
    "get_many": {
        "session": inspect.Parameter.empty,
        "entity": inspect.Parameter.empty,
        "idents": inspect.Parameter.empty,
        "execution_options": None,
    },
    "aget_many": {
        "session": inspect.Parameter.empty,
        "entity": inspect.Parameter.empty,
        "idents": inspect.Parameter.empty,
        "execution_options": None,
    },
    "get_by": {
        "session": inspect.Parameter.empty,
        "entity": inspect.Parameter.empty,
        "execution_options": None,
        "key": inspect.Parameter.empty,
    },
    "aget_by": {
        "session": inspect.Parameter.empty,
        "entity": inspect.Parameter.empty,
        "execution_options": None,
        "key": inspect.Parameter.empty,
    },
    "reset": {},
    "get_config": {},
    "stats": {},
    "invalidate": {"model": inspect.Parameter.empty, "pk": None, "bind": None},
    "invalidate_all": {"bind": None},
    "ainvalidate": {"model": inspect.Parameter.empty, "pk": None, "bind": None},
    "ainvalidate_all": {"bind": None},
    "close": {"timeout": 1},
    "aclose": {"timeout": 1},
    "follow": {"database": inspect.Parameter.empty, "setup": False, "options": inspect.Parameter.empty},
    "follower": {"database": inspect.Parameter.empty, "options": inspect.Parameter.empty},
    "trace": {},
    "verify": {"model": inspect.Parameter.empty, "bind": inspect.Parameter.empty, "sample": 10_000},
    "averify": {"model": inspect.Parameter.empty, "bind": inspect.Parameter.empty, "sample": 10_000},
    "explain": {"model": inspect.Parameter.empty, "pk": None, "bind": None},
    "aexplain": {
        "model": inspect.Parameter.empty,
        "pk": inspect.Parameter.empty,
        "bind": inspect.Parameter.empty,
    },
}


@pytest.mark.parametrize("method", SIGNATURES)
def test_sqlmodelcache_methods_have_their_signatures(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, their order and their defaults; all but the first ones by name only."""
    monkeypatch.undo()  # what the tests are given
    parameters = inspect.signature(getattr(SQLModelCache, method)).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == SIGNATURES[method]
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    by_position = [name for name, parameter in parameters.items() if parameter.kind not in kinds]
    assert set(by_position) <= {"transport", "model", "pk", "session", "entity", "idents", "database", "bind"}


def test_readme_lists_every_argument_of_configure() -> None:
    """README's table has a row for each argument, with its default."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", readme, re.MULTILINE)
    assert rows == [(name, repr(value).replace("'", '"')) for name, value in SIGNATURES["configure"].items()]


def test_get_config_returns_what_was_configured() -> None:
    """None before; afterwards every argument under its own name."""
    assert SQLModelCache.get_config() is None
    transport = MemoryTransport()
    SQLModelCache.configure(transport, default_ttl=timedelta(minutes=1), key_prefix="mine")
    found = SQLModelCache.get_config()
    assert found is not None
    assert (found.transport, found.default_ttl, found.key_prefix) == (transport, timedelta(minutes=1), "mine")
    assert {field.name for field in dataclasses.fields(found)} == set(SIGNATURES["configure"])


def test_cache_config_fields() -> None:
    """`CacheConfig(enabled=True, ttl=None, missing_ttl=None, many_to_one=False)`, immutable."""
    assert CacheConfig() == CacheConfig(True, None)
    assert CacheConfig() == CacheConfig(enabled=True, ttl=None, missing_ttl=None, many_to_one=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(CacheConfig(), "ttl", 1)  # noqa: B010  a checker would object to the statement


@pytest.mark.parametrize("transport", [RedisSyncTransport, RedisAsyncTransport])
def test_redis_transports_take_a_client(transport: type) -> None:
    """`RedisSyncTransport(client)`: the client by position, all else by name, by default as `configure()` says."""
    parameters = inspect.signature(transport).parameters
    assert list(parameters) == ["client", "timeout", "commit_timeout", "check_server"]
    assert [parameters[name].default for name in ("timeout", "commit_timeout")] == [None, None]


def test_errors_have_one_base() -> None:
    """Every error is a CacheError, is exported, and stands in the drawn tree."""
    tree = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    assert all(issubclass(value, sqlmodel_cache.CacheError) for value in tree.values())
    assert set(tree) <= set(sqlmodel_cache.__all__)
    assert all(name in (errors.__doc__ or "") for name in tree)


def test_public_things_are_documented() -> None:
    """Every public class and each of its public methods says what it is."""
    bare = []
    for name in sqlmodel_cache.__all__:
        value = getattr(sqlmodel_cache, name)
        members = [(f"{name}.{key}", member) for key, member in inspect.getmembers(value) if not key.startswith("_")]
        described = [(key, member) for key, member in members if inspect.isroutine(member) or inspect.isclass(member)]
        bare += [key for key, member in [(name, value), *described] if not inspect.getdoc(member)]
    assert bare == []
