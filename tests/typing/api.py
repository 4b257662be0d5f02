"""What type checkers make of the library's surface. Never run: mypy --strict and pyright read it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import assert_type

import redis
import redis.asyncio
import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from fastapi import FastAPI
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel import Field, Session, SQLModel, create_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import (
    AsyncTransport,
    CacheConfig,
    ConfigurationError,
    Discrepancy,
    Explanation,
    MemoryTransport,
    NearCache,
    RedisAsyncTransport,
    RedisSyncTransport,
    RowExplanation,
    Settings,
    SQLModelCache,
    Stats,
    SyncTransport,
    Verification,
)
from sqlmodel_cache.config import Duration
from sqlmodel_cache.contrib.dashboard import cache_dashboard
from sqlmodel_cache.contrib.fastapi import cache_lifespan
from sqlmodel_cache.testing import CacheFixture, fresh_cache
from sqlmodel_cache.transport.faults import Fault, FaultyTransport


class Hero(SQLModel, table=True):
    """A cached model."""

    __cache_config__ = CacheConfig(ttl=timedelta(minutes=10))

    id: int | None = Field(default=None, primary_key=True)
    name: str


class Base(DeclarativeBase):
    """Plain SQLAlchemy."""


class Villain(Base):
    """A cached class of SQLAlchemy's own declarative."""

    __tablename__ = "villain"
    __cache_config__ = CacheConfig()

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def gets_keep_their_types(session: Session, plain: sqlalchemy.orm.Session) -> None:
    """A cached model's `get` is typed as any other's."""
    assert_type(session.get(Hero, 1), Hero | None)
    assert_type(plain.get(Hero, 1), Hero | None)
    assert_type(plain.get(Villain, 1), Villain | None)
    assert_type(plain.get_one(Villain, 1), Villain)
    assert_type(session.get_one(Hero, 1), Hero)
    assert_type(session.get(Hero, 1, execution_options={"cache": False}), Hero | None)
    assert_type(session.get(Hero, 1, execution_options={"cache_ttl": 60}), Hero | None)


async def async_gets_keep_their_types(session: AsyncSession, plain: sqlalchemy.ext.asyncio.AsyncSession) -> None:
    """The same for both kinds of async sessions."""
    assert_type(await session.get(Hero, 1), Hero | None)
    assert_type(await plain.get(Hero, 1), Hero | None)
    assert_type(await session.get_one(Hero, 1), Hero)
    assert_type(await session.get(Hero, 1, execution_options={"cache": False}), Hero | None)


def configure_takes(sync_client: redis.Redis, async_client: redis.asyncio.Redis) -> None:
    """Every kind of transport, and every spelling of a duration."""
    SQLModelCache.configure()
    SQLModelCache.configure(MemoryTransport(max_rows=100))
    SQLModelCache.configure("redis://localhost:6379")
    SQLModelCache.configure(transport=RedisSyncTransport(sync_client), default_ttl=300)
    SQLModelCache.configure(transport=RedisAsyncTransport(async_client, timeout=0.1), default_ttl=0.5)
    SQLModelCache.configure(
        transport=RedisSyncTransport(sync_client, timeout=0.1, commit_timeout=timedelta(seconds=1)),
        async_transport=RedisAsyncTransport(async_client),
        default_ttl=timedelta(hours=1),
        key_prefix="mine",
        enabled=False,
        fence_ttl=30,
        on_unreachable="refuse",
        snapshot_reads="database",
        timeout=0.1,
        commit_timeout=timedelta(seconds=2),
        max_payload_bytes=100_000,
        encryption_key=[b"0" * 32, "base64 text"],
    )
    SQLModelCache.configure("redis://localhost:6379", near_cache=NearCache())
    SQLModelCache.configure("redis://localhost:6379", near_cache=NearCache(max_rows=10, max_age=timedelta(seconds=1)))
    SQLModelCache.configure(hash_keys=True)
    SQLModelCache.configure(verify=0.001)
    SQLModelCache.configure(hash_keys="rollout")
    SQLModelCache.configure(namespace="one")
    SQLModelCache.configure(namespace=lambda session: "tenant")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
    """An application's own."""
    yield {"answer": 42}


def applications_take_the_cache() -> None:
    """A lifespan around the own one or alone, with the options of `configure()`; a dashboard to mount."""
    FastAPI(lifespan=cache_lifespan(lifespan, transport="redis://localhost:6379", default_ttl=timedelta(minutes=5)))
    FastAPI(lifespan=cache_lifespan(lifespan, MemoryTransport()))
    FastAPI(lifespan=cache_lifespan(transport=MemoryTransport(), on_unreachable="refuse"))
    app = FastAPI(lifespan=cache_lifespan())
    app.mount("/cache", cache_dashboard())
    app.mount("/admin/cache", cache_dashboard(actions=True, title="Heroes"))


def transports_have_kinds(sync_client: redis.Redis, async_client: redis.asyncio.Redis) -> None:
    """What is given to `configure()` can be held by its protocol."""
    held: SyncTransport = MemoryTransport()
    held = RedisSyncTransport(sync_client)
    awaited: AsyncTransport = RedisAsyncTransport(async_client)
    SQLModelCache.configure(held, async_transport=awaited)


def models_declare(ttl: Duration) -> None:
    """Every spelling of a model's declaration."""
    assert_type(CacheConfig(), CacheConfig)
    assert_type(CacheConfig(enabled=False), CacheConfig)
    assert_type(CacheConfig(near=True), CacheConfig)
    assert_type(CacheConfig(ttl=600), CacheConfig)
    assert_type(CacheConfig(many_to_one=True), CacheConfig)
    assert_type(CacheConfig(ttl=0.5), CacheConfig)
    assert_type(CacheConfig(exclude={"name"}), CacheConfig)
    assert_type(CacheConfig(ttl=ttl), CacheConfig)
    assert_type(CacheConfig(ttl=timedelta(minutes=10)).ttl, int | float | timedelta | None)


async def answers_have_types(engine: sqlalchemy.Engine, session: AsyncSession) -> None:
    """What the other methods return."""
    assert_type(SQLModelCache.get_config(), Settings | None)
    assert_type(SQLModelCache.stats(), Stats)
    assert_type(SQLModelCache.stats().hits, int)
    assert_type(SQLModelCache.stats().near_hits, int)
    assert_type(SQLModelCache.explain(Hero), Explanation)
    assert_type(SQLModelCache.explain(Hero).reason, str | None)
    assert_type(SQLModelCache.explain(Hero, 1, bind=create_engine("sqlite://")), RowExplanation)
    assert_type(await SQLModelCache.aexplain(Hero, 1, bind=session), RowExplanation)
    assert_type(SQLModelCache.stats().models["app:Hero"].hit_seconds.quantile(0.99), float)
    assert_type(SQLModelCache.verify(Hero, engine), Verification)
    assert_type(await SQLModelCache.averify(Hero, session, sample=100), Verification)
    assert_type(SQLModelCache.verify(Hero, engine).examples, tuple[Discrepancy, ...])
    assert_type(SQLModelCache.verify(Hero, engine).bound, float)
    SQLModelCache.reset()
    await SQLModelCache.aclose()
    try:
        CacheConfig(ttl=-1)
    except ConfigurationError as error:
        assert_type(error.argument, str)


def tests_have_types(client: redis.Redis) -> None:
    """A fixture can be annotated, and faults are context managers."""
    with fresh_cache() as cache, cache.expect(hits=1), cache.faults.fail("lookup", times=1) as fault:
        assert_type(cache, CacheFixture)
        assert_type(fault, Fault)
    SQLModelCache.configure(FaultyTransport(RedisSyncTransport(client)))
