"""The pytest plugin as an application's suite meets it: in a pytest of its own, found by its entry point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODELS = """
import pytest
from sqlmodel import Field, Session, SQLModel, create_engine
from sqlmodel.pool import StaticPool
from sqlmodel_cache import CacheConfig, SQLModelCache

class Hero(SQLModel, table=True):
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str

@pytest.fixture
def engine():
    engine = create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Hero(id=1, name="Rusty"))
        session.commit()
    yield engine
    engine.dispose()

def read(engine):
    with Session(engine) as session:
        return session.get(Hero, 1).name
"""


def run(folder: Path, source: str, *arguments: str) -> str:
    """Return what pytest prints of a suite, with every warning an error."""
    (folder / "test_suite.py").write_text(source)
    warnings = ["-W", "error", "-W", "ignore:Using `httpx`"]  # which Starlette's TestClient has announced to leave
    command = [sys.executable, *warnings, "-m", "pytest", "-q", *arguments, "test_suite.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    return done.stdout


def test_plugin_imports_nothing_before_it_is_used(tmp_path: Path) -> None:
    """A suite that does without it has no SQLAlchemy in it, and pytest's own `cache` is what it was."""
    source = """
import sys

def test_nothing_is_loaded(cache):
    heavy = [name for name in ("sqlalchemy", "sqlmodel", "redis", "sqlmodel_cache") if name in sys.modules]
    assert heavy == []
    assert "_sqlmodel_cache_pytest" in sys.modules
    cache.set("mine", 1)
    assert cache.get("mine", None) == 1
"""
    assert "1 passed" in run(tmp_path, source)


@pytest.mark.parametrize("arguments", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_each_test_has_a_cache_of_its_own(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Empty at the beginning, in whatever process, and under the name that the suite prefers."""
    source = f"""{MODELS}
@pytest.fixture
def cache(sqlmodel_cache):
    return sqlmodel_cache

@pytest.mark.parametrize("time", range(4))
def test_first_is_a_miss(engine, cache, time):
    with cache.expect(hits=1, misses=1, fills=1):
        assert (read(engine), read(engine)) == ("Rusty", "Rusty")
    assert len(cache.memory) == 1

def test_nothing_is_configured_without_it(engine):
    assert SQLModelCache.get_config() is None
"""
    assert "5 passed" in run(tmp_path, source, *arguments)


def test_configuration_is_restored(tmp_path: Path) -> None:
    """An application that has configured keeps its settings during a test, and its transport after it."""
    source = f"""{MODELS}
from sqlmodel_cache import RedisSyncTransport

SQLModelCache.configure("redis://127.0.0.1:1", default_ttl=77, key_prefix="mine")
BEFORE = SQLModelCache.get_config()

def test_uses_a_cache(engine, sqlmodel_cache):
    config = SQLModelCache.get_config()
    assert (config.default_ttl, config.key_prefix, config.transport) == (77, "mine", sqlmodel_cache.faults)
    with sqlmodel_cache.expect(hits=1, misses=1, errors=0):
        read(engine), read(engine)

def test_after_it_all_is_as_before():
    assert SQLModelCache.get_config() == BEFORE
    assert isinstance(SQLModelCache.get_config().transport, RedisSyncTransport)
    SQLModelCache.reset()
"""
    assert "2 passed" in run(tmp_path, source)


def test_failure_says_what_was_counted_and_asked(tmp_path: Path) -> None:
    """The message alone shows which get was not a hit; what is not named may be anything; a failure is not masked."""
    source = f"""{MODELS}
def test_misses(engine, sqlmodel_cache):
    with sqlmodel_cache.expect(hits=2, misses=0):
        read(engine), read(engine)

def test_asks_nothing(engine, sqlmodel_cache):
    with sqlmodel_cache.expect(hits=1):
        pass

def test_fails_by_itself(engine, sqlmodel_cache):
    with sqlmodel_cache.expect(hits=1):
        raise KeyError("its own")
"""
    printed = run(tmp_path, source)
    for line in (
        "expected hits=2, misses=0",
        "counted  hits=1, misses=1",
        "in all   hits=1, misses=1, fills=1",
        "lookup  hero 1: miss",
        "lease   hero 1: granted",
        "fill    hero 1: stored",
        "lookup  hero 1: hit",
        "the cache was asked nothing.",
        "KeyError: 'its own'",
    ):
        assert line in printed
    assert "3 failed" in printed
    assert printed.count("AssertionError: expected") == 4  # in the traceback and in the summary


def test_application_that_configures_when_it_starts_reaches_no_redis(tmp_path: Path) -> None:
    """With TestClient, and with an async client, a lifespan's `configure()` takes the test's cache."""
    source = """
from contextlib import asynccontextmanager

import asyncio
import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import CacheConfig, SQLModelCache

class Hero(SQLModel, table=True):
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str

engine = create_async_engine("sqlite+aiosqlite:///heroes.db")

@asynccontextmanager
async def lifespan(app):
    SQLModelCache.configure("redis://127.0.0.1:1", default_ttl=77)
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.drop_all)
        await connection.run_sync(SQLModel.metadata.create_all)
    async with AsyncSession(engine) as session:
        session.add(Hero(id=1, name="Rusty"))
        await session.commit()
    yield
    await SQLModelCache.aclose()
    await engine.dispose()

app = FastAPI(lifespan=lifespan)

async def session():
    async with AsyncSession(engine) as session:
        yield session

@app.get("/heroes/{id}")
async def hero(id: int, session: AsyncSession = Depends(session)) -> Hero:
    return await session.get(Hero, id)

def test_test_client(sqlmodel_cache):
    with TestClient(app) as client, sqlmodel_cache.expect(hits=1, misses=1, errors=0):
        assert client.get("/heroes/1").json() == client.get("/heroes/1").json()
        assert SQLModelCache.get_config().default_ttl == 77

def test_async_client(sqlmodel_cache):
    async def drive():
        transport = httpx.ASGITransport(app)
        async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            with sqlmodel_cache.expect(hits=1, misses=1, errors=0):
                assert (await client.get("/heroes/1")).json() == (await client.get("/heroes/1")).json()
            with sqlmodel_cache.faults.fail("lookup"), sqlmodel_cache.expect(errors=1):
                assert (await client.get("/heroes/1")).json()["name"] == "Rusty"
    asyncio.run(drive())
"""
    assert "2 passed" in run(tmp_path, source)
