"""What a binary log needs in order to be followed, said before anything is done, with the statement that mends it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from follow.conftest import eventually
from follow.maria import Place, following
from sqlalchemy import make_url
from sqlmodel import create_engine

from sqlmodel_cache import ConfigurationError, FollowerError, SQLModelCache
from sqlmodel_cache.follow._binlog_server import State, _rewrites, problems
from sqlmodel_cache.follow._source import Name

TESTS = Path(__file__).parents[1]

GOOD = {
    "binlog_format": "ROW",
    "binlog_row_metadata": "FULL",
    "log_bin": "ON",
    "log_bin_compress": "OFF",
    "log_slave_updates": "OFF",
    "lower_case_table_names": "0",
    "read_only": "OFF",
    "server_id": "1",
    "wsrep_on": "OFF",
}
GRANTS = (
    "GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO `x`@`%`",
    "GRANT SELECT, REFERENCES ON `my\\_app`.* TO `x`@`%`",
)


def state(grants: tuple[str, ...] = GRANTS, *, end: bool = True, replicates: bool = False, **changed: str) -> State:
    """Return the state of a server that can be followed, but for what is changed."""
    variables = {name: value for name, value in {**GOOD, **changed}.items() if value}
    return State(variables, grants, ("binlog.000001", 4) if end else None, None, replicates, True, None)


@pytest.mark.parametrize(
    ("found", "said", "remedy"),
    [
        (state(log_bin="OFF"), "no binary log", "log_bin = binlog"),
        (state(server_id="0"), "server_id is 0", "SET GLOBAL server_id"),
        (state(binlog_format="MIXED"), "binlog_format is MIXED", "SET GLOBAL binlog_format = ROW"),
        (state(binlog_row_metadata="NO_LOG"), "binlog_row_metadata is NO_LOG", "SET GLOBAL binlog_row_metadata = FULL"),
        (state(binlog_row_metadata=""), "does not name columns", "upgrade"),
        (state(log_bin_compress="ON"), "log_bin_compress is ON", "SET GLOBAL log_bin_compress = OFF"),
        (state(binlog_transaction_compression="ON"), "transaction_compression is ON", "= OFF"),
        (state(binlog_order_commits="OFF"), "binlog_order_commits is OFF", "SET GLOBAL binlog_order_commits = ON"),
        (state(read_only="ON"), "read-only", "the primary"),
        (state(replicates=True), "leaves that out", "log_slave_updates = ON"),
        (state(wsrep_on="ON"), "Galera", "do not follow it"),
        (state(lower_case_table_names="1"), "'Team' in lower case", "in the model, too"),
        (state(GRANTS[1:]), "may not read the log", "GRANT REPLICATION SLAVE ON *.*"),
        (state(end=False), "where the log ends", "GRANT BINLOG MONITOR ON *.*"),
        (state(GRANTS[:1]), "may not see all tables", "GRANT SELECT, REFERENCES ON `my_app`.*"),
    ],
)
def test_what_is_missing_is_said(found: State, said: str, remedy: str) -> None:
    """Each by itself, with the remedy."""
    [problem] = problems(found, "my_app", ["hero", "Team"])
    assert said in problem.what
    assert remedy in problem.remedy


def test_nothing_is_missing() -> None:
    """A server that is prepared has no problems, to MySQL's `ALL PRIVILEGES` as to the single rights."""
    assert list(problems(state(), "my_app", ["hero"])) == []
    assert list(problems(state(("GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost`",)), "my_app", [])) == []


def test_rules_that_may_not_be_seen_are_taken_to_be_there() -> None:
    """Whoever has only SELECT on a database sees that a foreign key refers, and not what it does."""
    parent, child = Name("app", "team"), Name("app", "hero")
    row = (*child, "fk", *parent, "ID")
    assert _rewrites([(*row, "RESTRICT", "NO ACTION")], frozenset({child})) == {}
    assert [each.kind for each in _rewrites([(*row, None, None)], frozenset({child}))[parent]] == ["delete", "update"]
    [rewrite] = _rewrites([(*row, "SET NULL", "RESTRICT")], frozenset({child}))[parent]
    assert (rewrite.kind, rewrite.columns, rewrite.tables) == ("delete", {"id"}, {child})


@pytest.fixture
def closed(maria_data: Path) -> Iterator[servers.MariaServer]:
    """A server that was not prepared, and a user who may do little."""
    server = servers.MariaServer("--log-bin=binlog", "--server-id=1", copy_of=maria_data)
    try:
        with server.connect("root", "", None) as connection, connection.cursor() as cursor:
            cursor.execute("REVOKE BINLOG MONITOR ON *.* FROM app@'127.0.0.1'")
        yield server
    finally:
        server.stop()


def test_server_that_is_not_prepared_is_refused(closed: servers.MariaServer) -> None:
    """By the setup and by the follower, before anything is done."""
    SQLModelCache.configure()
    made = SQLModelCache.follower(closed.url)
    for begin in (made.source.setup, made.run):
        with pytest.raises(FollowerError) as failed:
            begin()
        assert [what for what, _ in failed.value.problems][:3] == [
            "binlog_format is MIXED",
            "binlog_row_metadata is NO_LOG",
            "the user may not ask where the log ends",
        ]
    with closed.connect() as connection, connection.cursor() as cursor:
        assert cursor.execute("SHOW TABLES") == 0


def test_setup_is_done_once_and_taken_back(place: Place) -> None:
    """A second setup does nothing; the table goes with the last name in it; without a setup nobody begins."""
    SQLModelCache.configure()
    made, other = (SQLModelCache.follower(place.engine, name=name) for name in ("o'ne", "two"))
    with pytest.raises(FollowerError, match="run the setup"):
        made.run()
    made.source.setup()
    assert made.source.setup_sql() == []
    made.source.setup()
    made.source.check()
    [statement] = other.source.setup_sql()[1:]
    assert statement.startswith("INSERT INTO `app`.sqlmodel_cache_follow")
    other.source.setup()
    for each in (made, other):
        each.source.teardown()
        assert each.source.teardown_sql() == []
    assert place.ask("SHOW TABLES LIKE 'sqlmodel%'") == []


def test_command_prints_the_statements(place: Place) -> None:
    """`--dry-run` runs none of them."""
    command = [sys.executable, "-m", "sqlmodel_cache.cli", "follow", place.server.url, "models"]
    command += ["--transport", "redis://localhost:1", "--setup", "--dry-run"]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CREATE TABLE IF NOT EXISTS `app`.sqlmodel_cache_follow")
    assert place.ask("SHOW TABLES LIKE 'sqlmodel%'") == []


def test_what_has_a_tables_name_and_is_none_is_a_problem(place: Place) -> None:
    """What a view shows changes elsewhere."""
    SQLModelCache.configure()
    place.write("DROP TABLE badge; CREATE VIEW badge AS SELECT 'x' AS code, 'y' AS label")
    with following(place, calm=False) as running:
        eventually(lambda: running.stats.problems)
        assert [problem.what for problem in running.stats.problems] == [
            "app.badge is a view: what it shows changes elsewhere"
        ]


@pytest.mark.parametrize(
    ("url", "options", "argument"),
    [
        ("mysql+pymysql://localhost", {}, "database="),
        ("mariadb+asyncmy://localhost/app", {"outbox": True, "namespaces": ["x"]}, "outbox="),
    ],
)
def test_arguments_that_do_not_fit_are_errors(url: str, options: dict[str, object], argument: str) -> None:
    """A server is not a database; there is no outbox."""
    SQLModelCache.configure()
    with pytest.raises(ConfigurationError, match=argument):
        SQLModelCache.follower(url, **options)


def test_name_of_a_database_is_that_of_its_url(place: Place) -> None:
    """So it is found by whatever driver the application uses, as long as its URL is the same."""
    SQLModelCache.configure()
    engine = create_engine(make_url(place.server.url))
    names = SQLModelCache.follower(place.engine).namespaces
    assert SQLModelCache.follower(engine).namespaces == names
    assert SQLModelCache.follower(place.server.url.replace("pymysql", "asyncmy")).namespaces == names
    engine.dispose()
