"""`warm`: every row once, as any reader would store it; it stops cleanly, and goes on where it stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import types
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis
from cli.commands import Done, get, rows_in, run, sqlite
from models import Color, Gadget, Hero, Sample
from servers import RedisServer
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlmodel import Session, create_engine
from waiting import until

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _hears_ctrl_c() -> Iterator[None]:
    """What a shell has begun in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A database with heroes 1 to 25."""
    return sqlite(tmp_path, heroes=25)


def warm(redis_url: str, database: str, *words: object, model: str = "models:Hero", **environment: str) -> Done:
    """Warm heroes, ten at a time."""
    return run("warm", model, "--database", database, "--batch", 10, *words, REDIS_URL=redis_url, **environment)


@contextmanager
def at_select(number: int, act: Any, column: str = "hero.name") -> Iterator[None]:
    """Act just before a SELECT of whole rows, which have this column, the `number`th of them."""
    seen = 0

    def before(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal seen
        if statement.startswith("SELECT") and column in statement:
            seen += 1
            if seen == number:
                act()

    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", before)


def test_every_row_is_a_hit_afterwards(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """And a second run finds all of them cached."""
    done = warm(redis_url, database, "--json")
    assert done.code == 0
    found = done.json
    assert (found["rows"], found["stored"], found["cached"], found["done"]) == (25, 25, 0, True)
    assert (found["passed_over"], found["not_stored"], found["errors"]) == (0, 0, 0)
    assert found["last"] == ["25"]
    assert get(database, redis_url, Hero, *range(1, 26)) == 25
    again = warm(redis_url, database)
    assert (again.code, again.stderr) == (0, "")
    assert "0 stored, 25 were cached already" in again.stdout


def test_where_and_limit(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """A condition of SQL, with its colons and percent signs; the first rows of those."""
    done = warm(
        redis_url, database, "--where", "name LIKE 'hero 1%' OR name IN (':b', '12:30:45')", "--limit", 7, "--json"
    )
    assert (done.code, done.json["stored"]) == (0, 7)
    assert sorted(int(key.rpartition(":")[2]) for key in rows_in(redis_client)) == [1, 10, 11, 12, 13, 14, 15]
    none = warm(redis_url, database, "--where", "age > 1000", "--json")
    assert (none.code, none.json["rows"], none.json["done"]) == (0, 0, True)


def test_keys_of_several_columns(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """Each row once, whatever stands in the keys; `--after` begins behind one."""
    keys = [(owner, number) for owner in ("a", "a'b", "b:c", "zé") for number in (-1, 0, 7)]
    engine = create_engine(database)
    with Session(engine) as session:
        session.add_all(Gadget(owner=owner, number=number) for owner, number in keys)
        session.commit()
    engine.dispose()
    done = warm(redis_url, database, "--json", "--batch", 5, model="models:Gadget")
    assert (done.code, done.json["rows"], done.json["stored"]) == (0, 12, 12)
    assert get(database, redis_url, Gadget, *keys) == 12
    rest = warm(redis_url, database, "--after", "a'b", "--after", 0, "--json", model="models:Gadget")
    assert (rest.json["rows"], rest.json["cached"]) == (7, 7)
    wrong = warm(redis_url, database, "--after", "a'b", model="models:Gadget")
    assert (wrong.code, wrong.stderr) == (2, "--after=a'b: the primary key is OWNER(str) NUMBER(int)\n")


def test_keys_of_other_types(redis_url: str, redis_client: redis.Redis, database: str, tmp_path: Path) -> None:
    """A UUID stands in the file of --resume as text."""
    engine = create_engine(database)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    values: dict[str, Any] = {"amount": Decimal("1.50"), "day": date(2026, 1, 1), "at": moment, "ratio": 0.5}
    values |= {"naive": moment.replace(tzinfo=None), "spent": timedelta(seconds=1), "color": Color.RED}
    values |= {"raw": b"\0", "active": True, "tags": {}}
    with Session(engine) as session:
        session.add_all(Sample(id=uuid.UUID(int=number), **values) for number in (1, 2, 3))
        session.commit()
    engine.dispose()
    state = tmp_path / "state.json"
    words = ("--batch", 2, "--where", "1 = 1", "--resume", state, "--json")
    with at_select(1, interrupt, "sample.amount"):
        stopped = warm(redis_url, database, *words, model="models:Sample")
    assert (stopped.code, json.loads(state.read_text())["last"]) == (130, [str(uuid.UUID(int=2))])
    done = warm(redis_url, database, *words, model="models:Sample")
    assert (done.code, done.json["rows"]) == (0, 1)


def interrupt() -> None:
    """Press Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_stops_behind_the_batch_and_says_how_to_go_on(
    redis_url: str, redis_client: redis.Redis, database: str
) -> None:
    """The batch under way is stored; the command that it prints does the rest."""
    with at_select(2, interrupt):
        stopped = warm(redis_url, database)
    assert stopped.code == 130
    assert stopped.stderr == "stopped; go on with --after 20\n"
    assert len(rows_in(redis_client)) == 20
    rest = warm(redis_url, database, *stopped.stderr.split()[-2:], "--json")
    assert (rest.code, rest.json["rows"]) == (0, 5)
    assert len(rows_in(redis_client)) == 25


def test_a_second_ctrl_c_does_not_wait(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """It ends where it is, with the same code."""

    def twice() -> None:
        interrupt()
        interrupt()

    with at_select(2, twice):
        stopped = warm(redis_url, database)
    assert stopped.code == 130
    assert len(rows_in(redis_client)) == 10


def test_ctrl_c_with_an_asyncio_driver(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """The same."""
    with at_select(2, interrupt):
        stopped = warm(redis_url, database.replace("sqlite:", "sqlite+aiosqlite:"))
    assert (stopped.code, stopped.stderr) == (130, "stopped; go on with --after 20\n")
    assert len(rows_in(redis_client)) == 20


def test_resume_goes_on_where_it_stopped(
    redis_url: str, redis_client: redis.Redis, database: str, tmp_path: Path
) -> None:
    """The file is kept after each batch, holds the limit over both runs, and is gone at the end."""
    state = tmp_path / "state.json"
    words = ("--resume", state, "--limit", 22)
    with at_select(1, interrupt):
        stopped = warm(redis_url, database, *words)
    assert (stopped.code, stopped.stderr) == (130, f"stopped; go on with --resume {state}\n")
    assert json.loads(state.read_text()) == {
        "model": "models:Hero",
        "where": None,
        "database": database,
        "last": ["10"],
        "rows": 10,
    }
    other = warm(redis_url, database, *words, "--where", "age > 3")
    assert (other.code, len(other.stderr.splitlines())) == (2, 1)
    both = warm(redis_url, database, *words, "--after", 3)
    assert (both.code, len(both.stderr.splitlines())) == (2, 1)
    done = warm(redis_url, database, *words, "--json")
    assert (done.code, done.json["rows"], done.json["stored"]) == (0, 12, 12)
    assert not state.exists()
    assert len(rows_in(redis_client)) == 22


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"last": 3}', "\xff"])
def test_a_file_that_is_none_of_resumes(redis_url: str, database: str, tmp_path: Path, text: str) -> None:
    """It is not overwritten."""
    state = tmp_path / "state.json"
    state.write_bytes(text.encode("latin-1"))
    done = warm(redis_url, database, "--resume", state)
    assert (done.code, len(done.stderr.splitlines())) == (2, 1)
    assert state.read_bytes() == text.encode("latin-1")


def test_redis_ends_meanwhile(database: str, tmp_path: Path) -> None:
    """It stops there with 3, and the batch that failed is warmed by the next run."""
    server = RedisServer()
    state = tmp_path / "state.json"
    try:
        with at_select(2, server.stop):
            done = warm(server.url, database, "--resume", state, "--json")
        assert done.code == 3
        assert (done.json["rows"], done.json["errors"], done.json["last"]) == (20, 10, ["10"])
        assert done.stderr == f"Redis does not answer; when it does, go on with --resume {state}\n"
        server.start()
        rest = warm(server.url, database, "--resume", state, "--json")
        assert (rest.code, rest.json["stored"]) == (0, 15)
    finally:
        server.stop()


def test_rows_that_are_written_or_deleted_meanwhile(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """They are passed over: what was read is older than the commit, or not there any more."""

    def write() -> None:
        command = [sys.executable, "-c", WRITER, database, redis_url]
        subprocess.run(command, check=True, cwd=TESTS, timeout=60)

    with at_select(2, write):
        done = warm(redis_url, database, "--json")
    assert done.code == 0
    assert (done.json["stored"], done.json["passed_over"], done.json["not_stored"]) == (23, 2, 0)
    assert get(database, redis_url, Hero, 12, 13) == 0


WRITER = """
import sys
from models import Hero
from sqlmodel import Session, create_engine
from sqlmodel_cache import SQLModelCache

SQLModelCache.configure(sys.argv[2], timeout=30, commit_timeout=30)
with Session(create_engine(sys.argv[1])) as session:
    session.get_one(Hero, 12).name = "other"
    session.delete(session.get_one(Hero, 13))
    session.commit()
"""


def test_rows_that_cannot_be_stored(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """Exit code 1, and why."""
    engine = create_engine(database)
    with Session(engine) as session:
        session.add(Hero(id=26, name="x" * 2_000_000))
        session.commit()
    engine.dispose()
    done = warm(redis_url, database, "--json")
    assert (done.code, done.json["stored"], done.json["not_stored"]) == (1, 25, 1)
    assert "max_payload_bytes" in done.stderr
    engine = create_engine(database, isolation_level="SERIALIZABLE")
    with mock.patch.dict(sys.modules, {"cli_application": types.SimpleNamespace(engine=engine)}):
        by_rule = warm(redis_url, "cli_application:engine", "--json")
    assert (by_rule.code, by_rule.json["not_stored"]) == (1, 26)
    assert by_rule.stderr == "26 rows were not stored: bypass: isolation\n"
    ruled_out = warm(redis_url, database, "--json", "--hash-keys", "rollout")
    assert (ruled_out.code, len(ruled_out.stderr.splitlines())) == (2, 1)


def test_the_real_command_stops_at_a_signal(
    redis_url: str, redis_client: redis.Redis, database: str, tmp_path: Path
) -> None:
    """`sqlmodel-cache warm` in a process of its own, SIGTERM, and the rest."""
    state = tmp_path / "state.json"
    command = [sys.executable, "-m", "sqlmodel_cache.cli", "warm", "slow_models:Hero", "--database", database]
    command += ["--transport", redis_url, "--batch", "1", "--resume", str(state)]
    (tmp_path / "slow_models.py").write_text(SLOW.format(tests=str(TESTS), gate=str(tmp_path / "gate")))
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        until(state.exists)
        process.send_signal(signal.SIGTERM)
        (tmp_path / "gate").touch()
        assert process.stderr is not None
        said = process.stderr.read()
    assert (process.returncode, said) == (130, f"stopped; go on with --resume {state}\n")
    assert 0 < len(rows_in(redis_client)) < 25
    rest = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert rest.returncode == 0, rest.stderr
    assert len(rows_in(redis_client)) == 25
    assert not state.exists()


SLOW = """
import os, sys
sys.path.insert(0, {tests!r})
from models import Hero
from sqlalchemy import event
from sqlalchemy.engine import Engine
from waiting import until

seen = 0

@event.listens_for(Engine, "before_cursor_execute")
def before(conn, cursor, statement, *_):
    global seen
    if "hero.name" in statement:
        seen += 1
        if seen == 2:
            until(lambda: os.path.exists({gate!r}))
"""
