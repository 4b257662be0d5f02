"""What the tests ask of a row, and of the fences around it."""

from __future__ import annotations

from typing import Any

import redis
from models import Hero
from sqlalchemy import Engine, text
from sqlmodel import Session
from transport.backends import PAST, Fence, parse

from sqlmodel_cache import SQLModelCache


def held(client: redis.Redis) -> dict[bytes, Any]:
    """Return what every key holds."""
    keys: Any = client.keys("*")
    return {key: parse(raw) for key in keys if isinstance(raw := client.get(key), bytes)}


def lapse(client: redis.Redis) -> int:
    """Let the deadline of every token pass, and return how many there were."""
    tokens = 0
    for key, mark in held(client).items():
        if isinstance(mark, Fence):
            tokens += len(mark.pending)
            client.set(key, Fence(mark.version, tuple((token, PAST) for token in mark.tokens)).raw(), keepttl=True)
    return tokens


def truth(engine: Engine, pk: int) -> str | None:
    """Return a hero's name as the database has it."""
    with engine.connect() as connection:
        found: str | None = connection.execute(text(f"SELECT name FROM hero WHERE id = {pk}")).scalar_one_or_none()
        return found


def name_of(engine: Engine, pk: int) -> str | None:
    """Return a hero's name as a new session gets it, which must be what the database has at that moment."""
    with Session(engine) as session:
        hero = session.get(Hero, pk)
        name = None if hero is None else hero.name
    assert name == truth(engine, pk)
    return name


def hits_of(engine: Engine, pk: int) -> int:
    """Return how many of two gets are hits."""
    before = SQLModelCache.stats().hits
    name_of(engine, pk)
    name_of(engine, pk)
    return SQLModelCache.stats().hits - before
