"""Preparing a database: idempotent, shown before it is done, taken back whole; what is wrong has an exact remedy."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from follow.conftest import catch_up, eventually, following
from follow.cut import Cut
from follow.tables import forget, make
from models import add_hero, get_hero
from sqlalchemy import Engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import create_engine

from sqlmodel_cache import ConfigurationError, FollowerError, SQLModelCache, cli

TESTS = Path(__file__).parents[1]


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command_line(database: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `sqlmodel-cache follow` on the shared models, and return its exit code, its output and its errors."""

    def run(*options: str) -> tuple[int, str, str]:
        url = database.url.render_as_string(hide_password=False)
        monkeypatch.setattr(sys, "argv", ["sqlmodel-cache", "follow", url, "models", *options])
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            SQLModelCache.reset()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def things(outside: psycopg.Connection[Any]) -> list[Any]:
    """Return what a setup leaves in a database."""
    query = "SELECT 'slot', slot_name FROM pg_replication_slots UNION SELECT 'publication', pubname FROM pg_publication"
    return sorted(outside.execute(query).fetchall())


def test_setup_is_shown_done_once_and_taken_back(command_line: Command, outside: psycopg.Connection[Any]) -> None:
    """`--dry-run` changes nothing, a second `--setup` neither, and `--teardown` leaves nothing."""
    options = ("--transport", "redis://localhost:1", "--setup")
    code, shown, errors = command_line(*options, "--dry-run")
    assert code == 0, errors
    assert things(outside) == []
    first, second, third = shown.splitlines()
    assert first.startswith('CREATE PUBLICATION "sqlmodel_cache_postgres" FOR TABLE "public".')
    assert '"public"."hero"' in first
    assert '"public"."follow_event"' in first
    assert '"public"."follow_event_new"' not in first  # a partition is published with its table
    assert second.startswith('COMMENT ON PUBLICATION "sqlmodel_cache_postgres"')
    assert third == "SELECT pg_create_logical_replication_slot('sqlmodel_cache_postgres', 'pgoutput');"
    assert command_line(*options)[:2] == (0, shown)
    assert things(outside) == [("publication", "sqlmodel_cache_postgres"), ("slot", "sqlmodel_cache_postgres")]
    assert command_line(*options) == (0, "", "nothing to do\n")
    code, gone, errors = command_line(*options[:2], "--teardown")
    assert code == 0, errors
    assert len(gone.splitlines()) == 2
    assert things(outside) == []


def test_command_without_a_setup_fails_with_the_remedy(database: Engine) -> None:
    """Exit code 1, and the command to run. The command is one that a shell can start."""
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "sqlmodel_cache.cli", "follow", url, "models"]
    command += ["--transport", "redis://localhost:1"]
    failed = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-2:] == [
        "there is no publication",
        "    run the setup: sqlmodel-cache follow --setup, or follow(setup=True)",
    ]


def test_setup_adds_tables_that_came_later(database: Engine, outside: psycopg.Connection[Any], humble: Engine) -> None:
    """A publication that lacks a table, rows, or a kind of change is completed; who may not do that refuses it."""
    SQLModelCache.configure()
    outside.execute("ALTER ROLE humble REPLICATION")
    source = SQLModelCache.follower(database).source
    source.setup()
    name = "sqlmodel_cache_postgres"
    outside.execute(f"ALTER PUBLICATION {name} DROP TABLE hero, team".encode())
    outside.execute(f"ALTER PUBLICATION {name} ADD TABLE team WHERE (id > 0)".encode())
    outside.execute(f"ALTER PUBLICATION {name} SET (publish = 'insert')".encode())
    statements = source.setup_sql()
    assert [statement.partition(" SET ")[0] for statement in statements] == [
        f'ALTER PUBLICATION "{name}"',
        f'ALTER PUBLICATION "{name}" DROP TABLE "public"."team"',
        f'ALTER PUBLICATION "{name}" ADD TABLE "public"."hero", "public"."team"',
    ]
    source.check()  # it will complete its own publication itself
    with pytest.raises(FollowerError) as failed:
        SQLModelCache.follower(humble).source.check()
    assert [what for what, _ in failed.value.problems] == [
        "the publication leaves out some changes",
        '"public"."hero" is not published',
        '"public"."team" is not published',
    ]
    source.setup()
    assert source.setup_sql() == []
    SQLModelCache.follower(humble).source.check()


def unlogged(outside: psycopg.Connection[Any]) -> Engine | None:
    """A table that is in no log."""
    outside.execute("ALTER TABLE gadget SET UNLOGGED")
    return None


def keyless(outside: psycopg.Connection[Any]) -> Engine | None:
    """A table whose UPDATEs would fail if they were published."""
    outside.execute("ALTER TABLE gadget DROP CONSTRAINT gadget_pkey")
    return None


@pytest.mark.parametrize(
    ("spoil", "what", "remedy"),
    [
        (unlogged, '"public"."gadget" is unlogged', 'ALTER TABLE "public"."gadget" SET LOGGED'),
        (keyless, '"public"."gadget" has no replica identity', 'ALTER TABLE "public"."gadget" REPLICA IDENTITY FULL'),
    ],
)
def test_table_that_cannot_be_followed_is_refused_with_the_remedy(
    database: Engine,
    outside: psycopg.Connection[Any],
    spoil: Callable[[psycopg.Connection[Any]], None],
    what: str,
    remedy: str,
) -> None:
    """Nothing is set up, and the statement that mends it, when it is run, does."""
    SQLModelCache.configure()
    spoil(outside)
    source = SQLModelCache.follower(database).source
    with pytest.raises(FollowerError) as failed:
        source.setup()
    ((said, advice),) = failed.value.problems
    assert said.startswith(what)
    assert advice.endswith(remedy)
    assert things(outside) == []
    outside.execute(remedy.encode())
    source.setup()


@pytest.fixture
def humble(database: Engine, outside: psycopg.Connection[Any]) -> Iterator[Engine]:
    """An engine of a role that may not replicate."""
    outside.execute("CREATE ROLE humble LOGIN PASSWORD 'x'")
    outside.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO humble")
    engine = create_engine(database.url.set(username="humble", password="x"))
    yield engine
    engine.dispose()
    outside.execute("DROP OWNED BY humble; DROP ROLE humble")


def test_role_without_the_right_is_refused_and_one_that_owns_nothing_follows(
    database: Engine, outside: psycopg.Connection[Any], humble: Engine
) -> None:
    """REPLICATION is all that a follower needs. Not owning the publication, it begins with everything each time."""
    SQLModelCache.configure()
    SQLModelCache.follower(database).source.setup()
    name = "sqlmodel_cache_postgres"
    with pytest.raises(FollowerError) as failed:
        SQLModelCache.follower(humble, name=name).run()
    ((said, remedy),) = failed.value.problems
    assert (said, remedy.partition(" (")[0]) == (
        "role humble may not replicate",
        'as superuser: ALTER ROLE "humble" REPLICATION',
    )
    outside.execute("ALTER ROLE humble REPLICATION")
    pk = add_hero(database)
    for _ in range(2):
        with following(humble, setup=False, calm=False, name=name) as running:
            eventually(lambda: running.stats.tables > 0)
            catch_up(outside)
            get_hero(database, pk)
            outside.execute("UPDATE hero SET name = name || '!'")
            catch_up(outside)
            assert SQLModelCache.stats().hits == 0
    assert get_hero(database, pk).name == "Rusty!!"


def test_comment_that_a_role_may_not_change_is_not_trusted(
    database: Engine, outside: psycopg.Connection[Any], humble: Engine
) -> None:
    """It may say that all is well with a slot that is gone: who cannot take that back does not read it."""
    cache = Cut()
    SQLModelCache.configure(cache)
    pk = add_hero(database)
    with following(database):
        pass
    get_hero(database, pk)
    outside.execute("ALTER ROLE humble REPLICATION")
    eventually(lambda: outside.execute("SELECT active FROM pg_replication_slots").fetchone() == (False,))
    outside.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    outside.execute("UPDATE hero SET name = 'new'")
    cache.cut = True
    options: dict[str, Any] = {"setup": False, "calm": False, "name": "sqlmodel_cache_postgres"}
    with following(humble, **options) as running:
        eventually(lambda: running.stats.failures > 0)
    cache.cut = False
    with following(humble, **options) as running:
        eventually(lambda: running.stats.tables > 0)
        assert running.stats.started_over == 0
        assert get_hero(database, pk).name == "new"


def test_server_without_logical_decoding_is_refused(postgres_url: str) -> None:
    """The setting and the restart are named."""
    SQLModelCache.configure()
    engine = create_engine(make_url(postgres_url).set(drivername="postgresql+psycopg"))
    with pytest.raises(FollowerError) as failed:
        SQLModelCache.follower(engine).source.setup()
    engine.dispose()
    said, remedy = failed.value.problems[0]
    assert said == "wal_level is replica"
    assert remedy.startswith("as superuser: ALTER SYSTEM SET wal_level = 'logical'; then restart the server")


@pytest.mark.parametrize("given", ["sqlite://", "oracle://localhost/x"])
def test_database_that_cannot_be_followed_is_an_error(given: str) -> None:
    """No log, no file: the argument is named."""
    SQLModelCache.configure()
    with pytest.raises(ConfigurationError, match="database="):
        SQLModelCache.follower(given)


def test_namespaces_of_sessions_have_to_be_named(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """A follower has no session to ask; told all namespaces, it invalidates in each."""
    SQLModelCache.configure(namespace=lambda session: "tenant")
    with pytest.raises(ConfigurationError, match="namespaces"):
        SQLModelCache.follower(database)
    pk = add_hero(database)
    with following(database, namespaces=["other", "tenant"]):
        catch_up(outside)
        for _ in range(2):
            get_hero(database, pk)
        assert SQLModelCache.stats().hits == 1
        outside.execute("UPDATE hero SET name = 'new'")
        catch_up(outside)
        assert get_hero(database, pk).name == "new"


async def test_follow_is_a_task_that_ends_when_it_is_cancelled(database: Engine, logical_url: str) -> None:
    """With an `AsyncEngine`, whose driver the follower does not use, and whose keys it does."""
    SQLModelCache.configure()
    engine = create_async_engine(make_url(logical_url).set(drivername="postgresql+asyncpg"))
    reports: list[Any] = []
    task = asyncio.create_task(SQLModelCache.follow(engine, setup=True, report=reports.append))
    await asyncio.to_thread(eventually, lambda: any(stats.leading for stats in reports))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reports[-1].leading is False
    await engine.dispose()


async def test_follow_needs_a_cache() -> None:
    """Without `configure()` there is nobody to tell."""
    with pytest.raises(ConfigurationError, match="configure"):
        await SQLModelCache.follow("postgresql://localhost/x")


def test_two_databases_of_one_server_are_followed_apart(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """Each has its own follower and slot, and a change in one leaves the other's rows cached."""
    outside.execute("DROP DATABASE IF EXISTS second")
    outside.execute("CREATE DATABASE second")
    second = create_engine(database.url.set(database="second"))
    make(second)
    SQLModelCache.configure()
    try:
        with following(database), following(second):
            pks = {engine: add_hero(engine) for engine in (database, second)}
            eventually(lambda: settled(outside))
            for engine in (database, second) * 2:
                get_hero(engine, pks[engine])
            assert SQLModelCache.stats().hits == 2
            with psycopg.connect(dbname="second", autocommit=True, **_where(outside)) as other:
                other.execute("UPDATE hero SET name = 'new'")
                eventually(lambda: get_hero(second, pks[second]).name == "new")
            before = SQLModelCache.stats().hits
            get_hero(database, pks[database])
            assert SQLModelCache.stats().hits == before + 1
    finally:
        forget(second)
        second.dispose()
        outside.execute("DROP DATABASE second WITH (FORCE)")


def settled(outside: psycopg.Connection[Any]) -> bool:
    """Whether every slot of the server has been confirmed up to the end of the log."""
    query = "SELECT bool_and(confirmed_flush_lsn >= pg_current_wal_flush_lsn()) FROM pg_replication_slots"
    return outside.execute(query).fetchone() == (True,)


def _where(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    return {"host": connection.info.host, "user": connection.info.user, "port": connection.info.port}
