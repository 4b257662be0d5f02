"""A Redis that answers with an error: each state with what a get, a commit in both modes and the counters show.

The table is that of docs/operations.md. No state raises to a reader, none gives it an old row, and each heals.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import redis
from models import add_hero, get_hero
from servers import RedisServer
from sqlalchemy import Engine
from trouble.places import Place, admin, cached, hits, owes, rename
from waiting import until

from sqlmodel_cache import InvalidationError, RedisSyncTransport, SQLModelCache

BRIEF = 1.0  # seconds; a server that is busy answers nobody for a moment before it says so


@dataclass(frozen=True)
class State:
    """How a server gets into a state, and what a program sees there.

    Args:
        enter: brings the server into the state for as long as the block.
        hits: whether a row that was cached before is hit in it.
        word: what the errors say.
        known: whether the connections from before are used, or new ones.
    """

    enter: Callable[[Place, RedisServer], object]
    hits: bool
    word: str
    known: bool = True


@contextmanager
def misconf(place: Place, server: RedisServer) -> Iterator[None]:
    """Snapshots fail, and so writes are refused: `stop-writes-on-bgsave-error`."""
    with admin(server) as client:
        (place.folder / "one" / "taken.rdb").mkdir()
        client.config_set("dbfilename", "taken.rdb")
        client.config_set("save", "3600 1")
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        yield
        client.config_set("dbfilename", "dump.rdb")
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok")


@contextmanager
def readonly(place: Place, server: RedisServer) -> Iterator[None]:
    """The server has become a replica, and closed its connections."""
    master = place.server("master")
    with admin(server) as client, admin(master) as other:
        client.replicaof("127.0.0.1", str(master.port))
        until(lambda: client.info("replication")["master_link_status"] == "up")
        other.set("x", "x")
        client.client_kill_filter(_type="normal", skipme=True)
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def loading(place: Place, server: RedisServer) -> Iterator[None]:
    """The server is reading a large file, as after a restart."""
    with admin(server) as client:
        client.config_set("rdbcompression", "no")
        for number in range(20):
            client.set(f"filler {number}", b"x" * 2_100_000)  # it answers, to refuse, after every 2 MB
        client.config_set("key-load-delay", 100_000)  # microseconds, so that the state outlasts the block
        reload = threading.Thread(target=_quietly, args=(server, "DEBUG", "RELOAD"))
        reload.start()
        until(lambda: _refuses(client, "LOADING"))
        yield
        reload.join()


@contextmanager
def busy(place: Place, server: RedisServer) -> Iterator[None]:
    """A script of somebody else's does not end."""
    with admin(server) as client:
        client.config_set("lua-time-limit", 1)
        script = threading.Thread(target=_quietly, args=(server, "EVAL", "while true do end", "0"))
        script.start()
        until(lambda: _refuses(client, "BUSY"))
        yield
        client.script_kill()
        script.join()


@contextmanager
def acl(rule: str, server: RedisServer) -> Iterator[None]:
    """The user may not do what it must."""
    with admin(server) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", *rule.split())
        yield
        client.execute_command("ACL", "SETUSER", "app", "+@all", "allkeys")


@contextmanager
def password(server: RedisServer) -> Iterator[None]:
    """The server wants a password, or another one."""
    with admin(server) as client:
        client.config_set("requirepass", "other")
        yield
        client.config_set("requirepass", "")


def _quietly(server: RedisServer, *words: str) -> None:
    with admin(server) as client:
        try:
            client.execute_command(*words)
        except redis.ResponseError as error:
            print(error)


def _refuses(client: redis.Redis, word: str) -> bool:
    try:
        client.get("x")
    except redis.RedisError as error:
        return word in f"{type(error).__name__} {error}".upper()
    return False


STATES = {
    "MISCONF": State(misconf, True, "MISCONF|snapshot"),
    "READONLY": State(readonly, False, "READONLY|ReadOnly"),
    "LOADING": State(loading, False, "Loading"),
    "BUSY": State(busy, False, "BUSY|Busy"),
    "NOAUTH": State(lambda place, server: password(server), False, "Authentication", known=False),
    "WRONGPASS": State(lambda place, server: password(server), False, "WRONGPASS|Authentication", known=False),
    "NOPERM, scripts": State(lambda place, server: acl("-evalsha -eval", server), True, "permission|NoPermission"),
    "NOPERM, MGET": State(lambda place, server: acl("-mget", server), False, "permission|NoPermission"),
    "NOPERM, keys": State(lambda place, server: acl("resetkeys", server), False, "permission|NoPermission"),
}
CREDENTIALS = {"WRONGPASS": {"username": "default", "password": "wrong"}} | {
    name: {"username": "app", "password": "secret"} for name in STATES if "NOPERM" in name
}


def configure(server: RedisServer, name: str, mode: str) -> None:
    """Configure the cache with what the state is about."""
    client = redis.Redis.from_url(server.url, **CREDENTIALS.get(name, {}))
    transport = RedisSyncTransport(client, timeout=BRIEF, commit_timeout=BRIEF)
    SQLModelCache.configure(transport, on_unreachable=mode)  # type: ignore[arg-type]


def prepare(engine: Engine, place: Place, name: str, mode: str) -> tuple[RedisServer, int, int]:
    """Return a server, a hero that is cached there, and one that is not."""
    server = place.server("one")
    with admin(server) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    pk, other = add_hero(engine), add_hero(engine, "Other")
    if STATES[name].known:
        configure(server, name, mode)
    else:
        SQLModelCache.configure(RedisSyncTransport(redis.Redis.from_url(server.url)))
    cached(engine, pk, "Rusty")
    return server, pk, other


@pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
@pytest.mark.parametrize("name", STATES)
def test_state_in_serve_mode(engine: Engine, place: Place, name: str) -> None:
    """Gets give the row, from the cache where it can be read; a commit goes on and is owed; afterwards all is well."""
    state = STATES[name]
    server, pk, other = prepare(engine, place, name, "serve")
    with state.enter(place, server):  # type: ignore[attr-defined]
        if not state.known:
            configure(server, name, "serve")
        assert hits(engine, pk, "Rusty") == state.hits
        assert not hits(engine, other, "Other")
        assert SQLModelCache.stats().errors > 0
        errors = SQLModelCache.stats().errors
        rename(engine, pk, "New")
        assert owes() or name == "NOPERM, MGET"
        assert SQLModelCache.stats().errors >= errors
        assert not hits(engine, pk, "New")
    until(lambda: get_hero(engine, pk).name == "New" and not owes())
    cached(engine, other, "Other")


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_user_that_may_write_only_in_refuse_mode(engine: Engine, place: Place) -> None:
    """A commit needs nothing but scripts: where rows cannot be looked up it is fenced all the same."""
    state = STATES["NOPERM, MGET"]
    server, pk, _ = prepare(engine, place, "NOPERM, MGET", "refuse")
    with state.enter(place, server):  # type: ignore[attr-defined]
        rename(engine, pk, "New")
        assert not hits(engine, pk, "New")
        assert not owes()


@pytest.mark.parametrize("engine", ["sqlite+aiosqlite"], indirect=True)
@pytest.mark.parametrize("name", [name for name in STATES if name != "NOPERM, MGET"])
def test_state_in_refuse_mode(engine: Engine, place: Place, name: str) -> None:
    """A commit that cannot be fenced is refused, says why, and has changed nothing; gets give the row."""
    state = STATES[name]
    server, pk, other = prepare(engine, place, name, "refuse")
    with state.enter(place, server):  # type: ignore[attr-defined]
        if not state.known:
            configure(server, name, "refuse")
        with pytest.raises(InvalidationError) as raised:
            rename(engine, pk, "New")
        assert any(word in str(raised.value.__cause__) for word in state.word.split("|"))
        assert get_hero(engine, pk).name == "Rusty"
        assert get_hero(engine, other).name == "Other"
        assert not owes()
    until(lambda: not SQLModelCache.stats().unreachable)
    rename(engine, pk, "New")
    assert get_hero(engine, pk).name == "New"
