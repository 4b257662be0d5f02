"""Runs commands in this process, and makes what they are about."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import redis
from models import Hero
from sqlmodel import Session, SQLModel, create_engine
from typer.testing import CliRunner

from sqlmodel_cache import SQLModelCache
from sqlmodel_cache.cli._commands import app


@dataclass
class Done:
    """What a command has said."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What it has printed, with --json."""
        return json.loads(self.stdout)


def run(*words: object, typed: str | None = None, **environment: str) -> Done:
    """Run a command; without the servers of this process's environment, and with one line width."""
    kept = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL")}
    with mock.patch.dict(os.environ, kept, clear=True):
        result = CliRunner().invoke(app, list(map(str, words)), input=typed, env={"COLUMNS": "200", **environment})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def sqlite(folder: Path, heroes: int = 0) -> str:
    """Return the URL of an SQLite file with so many heroes, 1 to `heroes`."""
    url = f"sqlite:///{folder}/cli.db"
    engine = create_engine(url)
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Hero(id=number, name=f"hero {number}", age=number) for number in range(1, heroes + 1))
        session.commit()
    engine.dispose()
    return url


def get(database: str, redis_url: str, model: type, *pks: Any, **settings: Any) -> int:
    """Get rows as an application would, and return how many were hits."""
    engine = create_engine(database)
    SQLModelCache.configure(redis_url, timeout=30, commit_timeout=30, **settings)
    for pk in pks:
        with Session(engine) as session:
            session.get(model, pk)
    hits = SQLModelCache.stats().hits
    SQLModelCache.reset()
    engine.dispose()
    return hits


def rows_in(client: redis.Redis) -> list[str]:
    """Return the keys that hold a row's value."""
    return sorted(key.decode() for key in client.keys("*}:*") if (client.get(key) or b"")[:1] == b"V")
