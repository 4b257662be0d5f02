"""`cache_lifespan`: when the cache is configured, when it is closed, and what happens when something raises."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI, Request
from models import Hero
from sqlmodel import Session, SQLModel, create_engine
from starlette.applications import Starlette

from sqlmodel_cache import ConfigurationError, MemoryTransport, SQLModelCache
from sqlmodel_cache.contrib.fastapi import cache_lifespan


def configured() -> Any:
    """Return the prefix of what is configured, or None."""
    settings = SQLModelCache.get_config()
    return None if settings is None else settings.key_prefix


@contextlib.asynccontextmanager
async def running(app: Any) -> AsyncIterator[Any]:
    """Start an application and stop it, as a server does; yield its state."""
    async with app.router.lifespan_context(app) as state:
        yield state


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
async def test_cache_is_configured_while_the_application_runs(kind: Any) -> None:
    """It takes the place of a lifespan; before and afterwards nothing is configured."""
    app = kind(lifespan=cache_lifespan(transport=MemoryTransport(), key_prefix="mine"))
    assert configured() is None
    async with running(app):
        assert configured() == "mine"
    assert configured() is None
    async with running(app):  # an application may be started again, by tests
        assert configured() == "mine"


async def test_state_of_the_own_lifespan_reaches_requests() -> None:
    """What it yields is the application's state."""

    @contextlib.asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"name": "Rusty"}

    app = FastAPI(lifespan=cache_lifespan(own))

    @app.get("/")
    def read(request: Request) -> str:
        return str(request.state.name)

    async with running(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/")).json() == "Rusty"


async def test_commits_of_the_own_lifespan_are_seen(tmp_path: Path) -> None:
    """What it changes at start-up and at shut-down is invalidated: the cache is around it."""
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(engine)
    seen = []

    def rename(name: str) -> None:
        with Session(engine) as session:
            session.merge(Hero(id=1, name=name))
            session.commit()
        seen.append(SQLModelCache.stats().invalidated)

    rename("Nobody")

    @contextlib.asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        rename("Rusty")
        yield
        rename("Rusty-Man")
        engine.dispose()

    async with running(FastAPI(lifespan=cache_lifespan(own))):
        pass
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("when", ["start-up", "run", "shut-down"])
async def test_an_error_leaves_nothing_configured(when: str) -> None:
    """Whatever of the application raises, its error passes, and the cache is closed."""

    @contextlib.asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        if when == "start-up":
            raise LookupError(when)
        yield
        if when == "shut-down":
            raise LookupError(when)

    with pytest.raises(LookupError, match=when):
        async with running(FastAPI(lifespan=cache_lifespan(own))):
            if when == "run":
                raise LookupError(when)
    assert configured() is None
    async with running(FastAPI(lifespan=cache_lifespan(key_prefix="other"))):
        assert configured() == "other"


async def test_a_wrong_option_is_an_error_before_anything_starts() -> None:
    """`configure()` comes first, and what it refuses has started nothing."""

    @contextlib.asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        raise AssertionError("it has started")
        yield

    with pytest.raises(ConfigurationError, match="default_ttl"):
        async with running(FastAPI(lifespan=cache_lifespan(own, default_ttl=-1))):
            pass
    assert configured() is None
    async with running(FastAPI(lifespan=cache_lifespan(key_prefix="other"))):
        assert configured() == "other"


def test_what_is_no_option_is_an_error_at_once() -> None:
    """Where it is written, not when the server starts."""
    wrong: Any = cache_lifespan
    with pytest.raises(ConfigurationError, match="defualt_ttl"):
        wrong(defualt_ttl=1)
    with pytest.raises(ConfigurationError, match="lifespan"):
        wrong("redis://localhost")


async def test_applications_in_one_process_share_a_cache() -> None:
    """One that is mounted in another and started by it: the first to start configures, the last to end resets."""
    transport = MemoryTransport()
    inner = FastAPI(lifespan=cache_lifespan(transport=transport, key_prefix="mine"))

    @contextlib.asynccontextmanager
    async def start_inner(app: FastAPI) -> AsyncIterator[None]:
        async with running(inner):
            assert configured() == "mine"
            yield

    outer = FastAPI(lifespan=cache_lifespan(start_inner, transport=transport, key_prefix="mine"))
    outer.mount("/inner", inner)
    async with running(outer):
        config = SQLModelCache.get_config()
        async with running(inner):
            assert SQLModelCache.get_config() is config
        assert SQLModelCache.get_config() is config
    assert configured() is None


async def test_applications_with_other_options_are_refused() -> None:
    """A process has one cache: the second is not started, the first goes on."""
    async with running(FastAPI(lifespan=cache_lifespan(key_prefix="mine"))):
        with pytest.raises(ConfigurationError, match="another application"):
            async with running(FastAPI(lifespan=cache_lifespan(key_prefix="other"))):
                pass
        assert configured() == "mine"
    assert configured() is None


async def test_what_is_still_owed_at_the_end_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last chance to see it: it is forgotten with the process."""
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(engine)
    with caplog.at_level(logging.WARNING, "sqlmodel_cache"):
        async with running(FastAPI(lifespan=cache_lifespan(transport="redis://127.0.0.1:1"))):
            with Session(engine) as session:
                session.add(Hero(id=1, name="Rusty"))
                session.commit()
                session.get_one(Hero, 1).name = "Rusty-Man"
                session.commit()
        assert "before the cache could be told" in caplog.text
    engine.dispose()


async def test_connections_to_redis_are_closed(redis_url: str, redis_client: redis.Redis) -> None:
    """With a URL, the library has opened them all."""
    before = len(redis_client.client_list())
    async with running(FastAPI(lifespan=cache_lifespan(transport=redis_url))):
        engine = create_engine("sqlite://")
        SQLModel.metadata.create_all(engine)
        with Session(engine) as session:
            session.get(Hero, 1)
        engine.dispose()
        assert len(redis_client.client_list()) > before
    assert len(redis_client.client_list()) == before
