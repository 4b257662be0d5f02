"""The model of these tests, and what a test may ask of the near cache."""

from __future__ import annotations

from collections.abc import Callable

import waiting
from sqlalchemy import Engine
from sqlmodel import Field, Session, SQLModel

from sqlmodel_cache import CacheConfig, SQLModelCache
from sqlmodel_cache._near import Near


class Star(SQLModel, table=True):
    """Kept near."""

    __tablename__ = "near_star"
    __cache_config__ = CacheConfig(near=True, unique=[("name",)])
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    size: int = 0


def add_stars(engine: Engine, count: int = 1) -> None:
    """Insert stars with the ids from 1 on."""
    with Session(engine) as session:
        session.add_all([Star(id=number, name=f"Star {number}") for number in range(1, count + 1)])
        session.commit()


def get_star(engine: Engine, pk: int = 1) -> Star:
    """Return a star as a new session gets it."""
    with Session(engine) as session:
        return session.get_one(Star, pk)


def resize(engine: Engine, size: int, pk: int = 1) -> None:
    """Change a star, and commit."""
    with Session(engine) as session:
        session.get_one(Star, pk).size = size
        session.commit()


def near() -> Near:
    """Return the near cache that is configured."""
    cache = SQLModelCache._cache
    assert cache is not None
    assert cache.near is not None
    return cache.near


def until(condition: Callable[[], object]) -> None:
    """Wait for what a server, or the thread that listens to it, has to do."""
    waiting.until(condition, seconds=20.0)


def near_hits(engine: Engine, pk: int = 1) -> int:
    """Get a star, and return how many near hits that was."""
    before = SQLModelCache.stats().near_hits
    get_star(engine, pk)
    return SQLModelCache.stats().near_hits - before


def hear_everything() -> None:
    """Wait until all has been heard that has been written so far: two answers to PINGs, the later one sent since."""
    for _ in range(2):
        answered = near()._alive_until
        until(lambda answered=answered: near()._alive_until > answered)  # type: ignore[misc]


def warm(engine: Engine, pk: int = 1) -> None:
    """Let a star be near, with nothing on its way that could change that."""
    until(lambda: near_hits(engine, pk))
    hear_everything()
    until(lambda: near_hits(engine, pk))
