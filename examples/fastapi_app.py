"""A FastAPI application whose reads by primary key are cached in Redis.

pip install "sqlmodel-cache[async]" fastapi uvicorn aiosqlite
REDIS_URL=redis://localhost:6379 uvicorn --app-dir examples fastapi_app:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import redis.asyncio
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import CacheConfig, RedisAsyncTransport, SQLModelCache, Stats

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///heroes.db"))


class HeroBase(SQLModel):
    """What a client sends."""

    name: str


class Hero(HeroBase, table=True):
    """The cached model."""

    __cache_config__ = CacheConfig(ttl=600)

    id: int | None = Field(default=None, primary_key=True)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Configure the cache for as long as the application runs."""
    r = redis.asyncio.Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379"))
    SQLModelCache.configure(transport=RedisAsyncTransport(r), default_ttl=300)
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    yield
    await SQLModelCache.aclose()
    SQLModelCache.reset()
    await engine.dispose()
    await r.aclose()


app = FastAPI(lifespan=lifespan)


async def get_session() -> AsyncIterator[AsyncSession]:
    """Yield a session for one request."""
    async with AsyncSession(engine) as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]


async def existing(hero_id: int, session: SessionDep) -> Hero:
    """Return the hero, from the cache or from the database."""
    hero = await session.get(Hero, hero_id)
    if hero is None:
        raise HTTPException(404)
    return hero


HeroDep = Annotated[Hero, Depends(existing)]


@app.post("/heroes", status_code=201)
async def create_hero(body: HeroBase, session: SessionDep) -> Hero:
    """Insert a hero."""
    hero = Hero(name=body.name)
    session.add(hero)
    await session.commit()
    await session.refresh(hero)
    return hero


@app.get("/heroes/{hero_id}")
async def read_hero(hero: HeroDep) -> Hero:
    """Return a hero."""
    return hero


@app.put("/heroes/{hero_id}")
async def rename_hero(hero: HeroDep, body: HeroBase, session: SessionDep) -> Hero:
    """Change a hero; every process reads the new row from the moment that this has answered."""
    hero.name = body.name
    await session.commit()
    await session.refresh(hero)
    return hero


@app.delete("/heroes/{hero_id}", status_code=204)
async def delete_hero(hero: HeroDep, session: SessionDep) -> None:
    """Delete a hero."""
    await session.delete(hero)
    await session.commit()


@app.get("/cache")
async def read_cache() -> Stats:
    """Return what this process has counted."""
    return SQLModelCache.stats()
