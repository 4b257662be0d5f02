"""Two engines on one database: for `def` endpoints and for `async def` endpoints."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Session, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from .models import Hero, Team

HEROES = 1_000
TEAMS = 20

url = make_url(os.environ.get("DATABASE_URL") or "sqlite:///heroes.db")
drivers = {"sqlite": ("sqlite", "sqlite+aiosqlite"), "postgresql": ("postgresql+psycopg", "postgresql+asyncpg")}
sync_driver, async_driver = drivers[url.get_backend_name()]

engine = create_engine(url.set(drivername=sync_driver))
async_engine = create_async_engine(url.set(drivername=async_driver))


def prepare() -> None:
    """Create the tables, and fill them if they are empty."""
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        if session.scalar(select(func.count()).select_from(Hero)):
            return
        session.add_all(Team(name=f"Team {number}") for number in range(1, TEAMS + 1))
        session.flush()
        session.add_all(Hero(name=f"Hero {number}", team_id=1 + number % TEAMS) for number in range(1, HEROES + 1))
        session.commit()


async def close() -> None:
    """Close all connections."""
    await async_engine.dispose()
    engine.dispose()


def sync_session() -> Iterator[Session]:
    """Yield a session for one request."""
    with Session(engine) as session:
        yield session


async def async_session() -> AsyncIterator[AsyncSession]:
    """Yield a session for one request."""
    async with AsyncSession(async_engine) as session:
        yield session


SyncDep = Annotated[Session, Depends(sync_session)]
AsyncDep = Annotated[AsyncSession, Depends(async_session)]
