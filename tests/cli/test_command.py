"""What all commands have in common: exit codes, one line for an error, where models and settings come from."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import redis
from cli.commands import get, rows_in, run, sqlite
from models import Hero
from redis.asyncio import Redis as AsyncRedis
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import create_engine

from sqlmodel_cache import NearCache, RedisAsyncTransport, RedisSyncTransport, SQLModelCache
from sqlmodel_cache.cli._target import Options, Target

TESTS = Path(__file__).parents[1]
NOBODY = "redis://127.0.0.1:1"


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A database with heroes 1 to 3."""
    return sqlite(tmp_path, heroes=3)


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of an application."""
    module = types.ModuleType("cli_application")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def process(*words: str, cwd: Path = TESTS, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    kept = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL")}
    command = [sys.executable, "-m", "sqlmodel_cache.cli", *words]
    return subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=60)


def test_the_real_command(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """A model from the current directory, servers from the environment; nothing on stderr."""
    done = process("inspect", "models:Hero", "1", "--json", REDIS_URL=redis_url, DATABASE_URL=database)
    assert (done.returncode, done.stderr) == (1, "")
    assert '"state": "nothing"' in done.stdout
    wrong = process("inspect", "models:Hero", "1", REDIS_URL=redis_url)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "which database? Give --database, or DATABASE_URL: keys contain its name\n"


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_output_that_cannot_be_written_is_said(redis_url: str, redis_client: redis.Redis, words: tuple[str]) -> None:
    """A full disk is one line and 2; who reads no further is no error of a command's."""
    command = [sys.executable, "-m", "sqlmodel_cache.cli", "stats", "--transport", redis_url, *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "what was to be written is lost: No space left on device\n")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_completion_and_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell's completion is typer's own; every command is listed and described."""
    listed = run("--help").stdout
    assert "--install-completion" in listed
    for command in ("doctor", "stats", "top", "inspect", "invalidate", "warm", "follow"):
        assert f" {command} " in listed
        assert run(command, "--help").code == 0
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # pytest is no shell
    script = run("--show-completion", "bash")
    assert (script.code, "complete" in script.stdout) == (0, True)


WRONG = {
    "no such module": ("inspect nowhere.models:Hero 1", "there is no module nowhere"),
    "no such class": ("inspect models:Villain 1", "has no 'Villain'"),
    "no class": ("inspect models:add_hero 1", "not a class"),
    "no name": ("inspect models 1", "give module:name"),
    "not mapped": ("inspect models:Color 1", "__cache_config__"),
    "not cached": ("inspect models:Plain 1", "__cache_config__"),
    "not cached, to be warmed": ("warm models:Plain", "__cache_config__"),
    "not cached, to be invalidated": ("invalidate models:Plain 1", "__cache_config__"),
    "a key of another type": ("inspect models:Hero one", "the primary key is ID(int)"),
    "a key of another length": ("invalidate models:Hero 1 2", "the primary key is ID(int)"),
    "a key beyond the column": (f"inspect models:Hero {2**64}", "beyond what an integer column holds"),
    "a column that is not there": ("warm models:Hero --where nowhere=1", "no such column"),
    "no URL of Redis": ("stats --transport http://x", "not a Redis URL"),
    "no URL of a cluster": ("stats --cluster --transport http://x", "--transport"),
    "no URL of a database": ("inspect models:Hero 1 --database nothing://x", "nothing"),
    "no engine": ("inspect models:Hero 1 --database models:Hero", "not an engine"),
    "no driver": ("inspect models:Hero 1 --database oracle://x", "No module"),
    "no application": ("stats --app nowhere:configure", "there is no module nowhere"),
    "an application that does not configure": ("stats --app models", "has not called"),
    "an application and a transport": ("stats --app models --transport redis://x", "leave out"),
    "an empty prefix": ("doctor --key-prefix ' '", "key_prefix"),
    "a whole table, and nobody to ask": ("invalidate models:Hero --json", "--yes"),
    "no such module to follow": ("follow sqlite:///x.db nowhere --outbox --transport redis://x", "no module nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_2(case: str, redis_url: str, database: str) -> None:
    """It names what is wrong; nothing on stdout, no traceback."""
    command, said = WRONG[case]
    words = [word.strip("'") for word in command.replace("' '", "'_'").split()]
    words = [" " if word == "_" else word for word in words]
    done = run(*words, REDIS_URL=redis_url, DATABASE_URL=database)
    assert (done.code, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_unknown_options_are_2() -> None:
    """As typer says it."""
    done = run("stats", "--everything")
    assert done.code == 2
    assert "No such option: --everything" in done.stderr


@pytest.mark.parametrize("failure", ["raise KeyError('x')", "import nowhere_else"])
def test_what_fails_in_the_application_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    """The error's name and text, without a traceback."""
    (tmp_path / "broken.py").write_text(f"{failure}\n")
    monkeypatch.chdir(tmp_path)
    done = run("stats", "--app", "broken:configure")
    assert (done.code, len(done.stderr.splitlines())) == (2, 1)
    assert "--app=broken: importing it fails" in done.stderr


@pytest.mark.parametrize(
    "command",
    ["stats", "top", "inspect models:Hero 1", "invalidate models:Hero 1", "warm models:Hero", "doctor"],
)
def test_unreachable_is_3(command: str, database: str) -> None:
    """Redis, and the database."""
    done = run(*command.split(), REDIS_URL=NOBODY, DATABASE_URL=database)
    assert (done.code, "Traceback" in done.stderr) == (3, False)
    if command.startswith(("inspect", "invalidate", "warm")):
        gone = run(*command.split(), "--database", "postgresql+asyncpg://127.0.0.1:1/x", REDIS_URL=NOBODY)
        assert (gone.code, len(gone.stderr.splitlines())) == (3, 1)
        assert "the database does not answer" in gone.stderr


@pytest.mark.parametrize("words", ["", "--setup", "--namespace a --setup", "--namespace a --teardown --dry-run"])
@pytest.mark.parametrize("url", ["postgresql+psycopg://127.0.0.1:1/x", "sqlite:////nowhere/x.db --outbox"])
def test_follow_says_that_the_database_does_not_answer(url: str, words: str) -> None:
    """Whichever of its drivers says so, and at which step."""
    done = run("follow", *url.split(), "models", "--transport", NOBODY, *words.split())
    assert (done.code, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
    assert done.stderr.startswith("the database says: ")


def test_invalidate_a_row(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """Only that one; through an asyncio driver, too."""
    for url in (database, database.replace("sqlite:", "sqlite+aiosqlite:")):
        get(database, redis_url, Hero, 1, 2)
        done = run("invalidate", "models:Hero", 1, "--json", "--database", url, REDIS_URL=redis_url)
        assert (done.code, done.json) == (0, {"model": "models:Hero", "pk": ["1"], "invalidated_keys": 1})
        assert get(database, redis_url, Hero, 1) == 0
        assert get(database, redis_url, Hero, 2) == 1


def test_invalidate_a_table_asks(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """A no, or nobody there, changes nothing and is 1; a yes, or --yes, does it."""
    get(database, redis_url, Hero, 1, 2)
    for answer in ("n\n", ""):
        done = run("invalidate", "models:Hero", typed=answer, REDIS_URL=redis_url, DATABASE_URL=database)
        assert (done.code, "invalidated all" in done.stdout) == (1, False)
        assert get(database, redis_url, Hero, 1, 2) == 2
    for words, answer in (([], "y\n"), (["--yes"], None)):
        get(database, redis_url, Hero, 1, 2)
        done = run("invalidate", "models:Hero", *words, typed=answer, REDIS_URL=redis_url, DATABASE_URL=database)
        assert (done.code, done.stdout.splitlines()[-1]) == (0, "invalidated all rows of models:Hero")
        assert get(database, redis_url, Hero, 1, 2) == 0


def test_the_application_configures(redis_url: str, redis_client: redis.Redis, database: str, application: Any) -> None:
    """Prefix, namespace, encryption and time-outs are its own, but for a patience that suits a command."""
    settings: dict[str, Any] = {
        "key_prefix": "mine",
        "namespace": "tenant",
        "hash_keys": True,
        "encryption_key": b"k" * 32,
    }
    application.engine = create_engine(database)
    application.async_engine = create_async_engine(database.replace("sqlite:", "sqlite+aiosqlite:"))
    asyncio_client = AsyncRedis.from_url(redis_url)
    for transport in (
        redis_url,
        RedisSyncTransport(redis.Redis.from_url(redis_url), timeout=0.000001),
        RedisAsyncTransport(asyncio_client),
    ):
        redis_client.flushdb()
        application.configure = lambda transport=transport: SQLModelCache.configure(
            transport, timeout=0.001, **settings
        )
        for engine in ("engine", "async_engine"):
            words = ("models:Hero", "--app", "cli_application:configure", "--database", f"cli_application:{engine}")
            assert run("warm", *words).code == 0
            found = run("inspect", *words, "--json", "--", 1)
            assert (found.code, found.json["columns"]["name"]) == (0, "hero 1")
            assert found.json["key"].startswith("mine:{tenant/hero:")
        assert len(rows_in(redis_client)) == 3
        assert run("invalidate", *words, "--", 1).code == 0
        assert get(database, redis_url, Hero, 1, 2, **settings) == 1


def test_a_command_verifies_no_hits(redis_url: str, application: Any) -> None:
    """The application's share is of its own gets: no command has threads, or waits, for the sake of another's."""
    application.configure = lambda: SQLModelCache.configure(redis_url, verify=1.0, near_cache=NearCache())
    changed = Target(Options(app="cli_application:configure")).configure()
    assert (changed.verify, changed.near_cache) == (0.0, None)


def test_a_tenant_is_named(redis_url: str, redis_client: redis.Redis, database: str, application: Any) -> None:
    """Where the application's namespace is a callable, the command says which."""
    application.configure = lambda: SQLModelCache.configure(redis_url, namespace=nobody)
    words = ("inspect", "models:Hero", 1, "--app", "cli_application:configure", "--database", database, "--json")
    without = run(*words)
    assert (without.code, len(without.stderr.splitlines())) == (2, 1)
    assert "--namespace" in without.stderr
    get(database, redis_url, Hero, 1, namespace="a/b")
    assert run(*words, "--namespace", "a/b").code == 0


def nobody(session: object) -> str:
    """Return no tenant."""
    raise LookupError("no tenant")


def test_a_module_that_configures_when_it_is_imported(
    redis_url: str, redis_client: redis.Redis, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `follow` knows it: no transport has to be given."""
    source = "from models import Hero\nfrom sqlmodel_cache import SQLModelCache\n"
    (tmp_path / "own_models.py").write_text(f"{source}SQLModelCache.configure({redis_url!r}, key_prefix='mine')\n")
    monkeypatch.chdir(tmp_path)
    done = run("warm", "own_models:Hero", "--database", database)
    assert (done.code, done.stderr) == (0, "")
    assert {key.partition(":")[0] for key in rows_in(redis_client)} == {"mine"}
    monkeypatch.delitem(sys.modules, "own_models")
    twice = run("warm", "own_models:Hero", "--database", database, "--key-prefix", "other")
    assert (twice.code, len(twice.stderr.splitlines())) == (2, 1)
    monkeypatch.delitem(sys.modules, "own_models")


@pytest.mark.parametrize("what", ["memory", "async", "custom"])
def test_applications_that_a_command_cannot_reach(application: Any, what: str) -> None:
    """Rows in another process's memory, a coroutine function, a transport of its own."""

    class Custom:
        blocking = True

        def execute(self, effect: Any) -> Any: ...

        def close(self) -> None: ...

    async def later() -> None: ...

    application.configure = {
        "memory": lambda: SQLModelCache.configure(),
        "async": later,
        "custom": lambda: SQLModelCache.configure(Custom()),
    }[what]
    command = ("warm", "models:Hero") if what == "memory" else ("stats",)
    done = run(*command, "--app", "cli_application:configure", DATABASE_URL="sqlite://")
    assert (done.code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    said = {"memory": "in its own process's memory", "async": "a plain function", "custom": "not a Redis transport"}
    assert said[what] in done.stderr


def test_without_typer_it_says_what_to_install() -> None:
    """The script is installed without the extra, too."""
    source = "import sys; sys.modules['typer'] = None\nfrom sqlmodel_cache.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "the command line needs typer and rich: pip install 'sqlmodel-cache[cli]'",
    )
