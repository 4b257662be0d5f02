"""What an entry of the corpus is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from writes.tables import Hero

ALL = ("sqlite", "postgresql", "sqlite+aiosqlite", "postgresql+asyncpg")
SQLITE = ("sqlite", "sqlite+aiosqlite")
POSTGRES = ("postgresql", "postgresql+asyncpg")
PSYCOPG = ("postgresql",)  # its simple protocol takes several statements in one string

Via = Literal["session", "connection", "autocommit", "immediate"]
Row = tuple[Any, Any]  # a model and a primary key


@dataclass(frozen=True)
class Entry:
    """A write: `run` gets a Session, or a Connection when `via` says so.

    `changes` are the cached rows that it makes, changes or removes. A write via "autocommit" runs on a connection in
    that mode; one that is "immediate" is committed by the database at once, whatever SQLAlchemy thinks.
    """

    family: str
    name: str
    run: Callable[[Any], Any]
    changes: Collection[Row]
    via: Via = "session"
    on: tuple[str, ...] = ALL
    ddl: bool = False  # the tables are not as they were

    @property
    def models(self) -> list[Any]:
        """The models whose rows are read before and after."""
        return list(dict.fromkeys([Hero, *(model for model, _ in self.changes)]))

    def __str__(self) -> str:
        return f"{self.family}-{self.name}-{self.via}"


def rows(model: Any, *pks: Any) -> list[Row]:
    """Return rows of one model."""
    return [(model, pk) for pk in pks]
