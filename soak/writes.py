"""The ways to write, each a function of a session or connection, and of the account that it keeps.

They are sync functions; an `AsyncSession` runs them by `run_sync`. None of them commits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, text, update
from sqlmodel import Session

from soak.ledger import Writing
from soak.rows import BUCKET, some_rows
from soak.tables import Item

_LOCK = text("SELECT pg_advisory_xact_lock(n) FROM unnest(CAST(:pks AS integer[])) AS n")
_PRESENT = text("SELECT id FROM soak_item WHERE id = ANY(CAST(:pks AS integer[])) ORDER BY id")
_DRAW = text("SELECT nextval('soak_version')")
_JOURNAL = text("INSERT INTO soak_journal (version, item, deleted) VALUES (:version, :item, :deleted)")
_TRUTH = text("SELECT version FROM soak_item WHERE id = :pk")


class UndoneError(Exception):
    """Raised inside a savepoint to roll it back."""


class OwnWriteError(Exception):
    """Raised when a transaction does not read what it has written, or written and undone."""


def lock(session: Session | Connection, pks: list[int]) -> list[int]:
    """Keep other writers away from rows until the transaction ends, and return those that exist."""
    session.execute(_LOCK, {"pks": sorted(pks)})
    return list(session.execute(_PRESENT, {"pks": pks}).scalars())


def draw(session: Session | Connection, account: Writing, pks: list[int], *, deleted: bool = False) -> int:
    """Return a new version for rows that are locked, noted in the ledger and in the journal."""
    version: int = session.execute(_DRAW).scalar_one()
    account.draft(version, pks, deleted=deleted)
    session.execute(_JOURNAL, [{"version": version, "item": pk, "deleted": deleted} for pk in pks])
    return version


def check_own_writes(session: Session, account: Writing) -> None:
    """Get every row that the transaction has touched, which must be what its own SELECT says.

    Raises:
        OwnWriteError: one is not.
    """
    session.flush()
    session.expunge_all()
    for pk in account.touched:
        got = session.get(Item, pk)
        truth = session.execute(_TRUTH, {"pk": pk}).scalar_one_or_none()
        if (None if got is None else got.version) != truth:
            raise OwnWriteError(f"row {pk} is at {truth} in its own transaction, and get() returned {got!r}")


def change(session: Session, account: Writing, pk: int) -> None:
    """Change a row through the unit of work, or insert it where it is missing."""
    item = session.get(Item, pk, populate_existing=True)
    version = draw(session, account, [pk])
    if item is None:
        session.add(Item(id=pk, bucket=pk // BUCKET, version=version, note=str(version)))
    else:
        item.version, item.note = version, str(version)
    session.flush()


def one_row(session: Session, account: Writing) -> None:
    """A row by the unit of work."""
    [pk] = some_rows(1)
    lock(session, [pk])
    change(session, account, pk)


def several_rows(session: Session, account: Writing) -> None:
    """Rows of several buckets."""
    pks = some_rows(3)
    lock(session, pks)
    for pk in pks:
        change(session, account, pk)


def bulk(session: Session | Connection, account: Writing) -> None:
    """All rows of a bucket by one UPDATE, which names none of them."""
    bucket = some_rows(1)[0] // BUCKET
    present = lock(session, list(range(bucket * BUCKET, (bucket + 1) * BUCKET)))
    if present:
        version = draw(session, account, present)
        statement = update(Item).where(Item.bucket == bucket).values(version=version, note=str(version))  # type: ignore[arg-type]
        options = {"synchronize_session": False} if isinstance(session, Session) else {}
        session.execute(statement, execution_options=options)


def core(session: Session | Connection, account: Writing) -> None:
    """Rows by Core, several parameter sets in one statement."""
    present = lock(session, some_rows(2))
    if present:
        version = draw(session, account, present)
        table = Item.__table__  # type: ignore[attr-defined]
        statement = update(table).where(table.c.id == bindparam("pk"))
        connection = session.connection() if isinstance(session, Session) else session
        connection.execute(statement, [{"pk": pk, "version": version, "note": str(version)} for pk in present])


def in_text(session: Session | Connection, account: Writing) -> None:
    """A row by SQL text."""
    present = lock(session, some_rows(1))
    if present:
        version = draw(session, account, present)
        values = {"version": version, "note": str(version), "pk": present[0]}
        session.execute(text('UPDATE "soak_item" SET version = :version, note = :note WHERE id = :pk'), values)


def savepoints(session: Session, account: Writing) -> None:
    """Rows under nested savepoints, some of which are rolled back with what was written in them."""
    first, *inner = some_rows(4)
    lock(session, [first, *inner])
    change(session, account, first)
    for pk in inner:
        with _savepoint(session, account):
            change(session, account, pk)
            with _savepoint(session, account):
                change(session, account, inner[-1])


@contextmanager
def _savepoint(session: Session, account: Writing) -> Iterator[None]:
    keep = len(account.versions)
    try:
        with session.begin_nested():
            yield
            if random.random() < 0.5:
                raise UndoneError
    except UndoneError:
        account.undo(keep)


def remove(session: Session, account: Writing) -> None:
    """A row by the unit of work; mostly another takes its primary key at once."""
    [pk] = some_rows(1)
    lock(session, [pk])
    item = session.get(Item, pk, populate_existing=True)
    if item is not None:
        draw(session, account, [pk], deleted=True)
        session.delete(item)
        session.flush()
    if item is None or random.random() < 0.7:
        change(session, account, pk)


def replace(session: Session | Connection, account: Writing) -> None:
    """A row by DELETE and INSERT in Core."""
    [pk] = some_rows(1)
    lock(session, [pk])
    draw(session, account, [pk], deleted=True)
    session.execute(delete(Item).where(Item.id == pk))  # type: ignore[arg-type]
    if random.random() < 0.7:
        version = draw(session, account, [pk])
        session.execute(insert(Item).values(id=pk, bucket=pk // BUCKET, version=version, note=str(version)))


Write = Callable[[Any, Writing], None]
# Each as often as it stands here. Those that empty the cache of the whole table are few: there must be hits to judge.
BY_SESSION: tuple[Write, ...] = (one_row, several_rows, savepoints, remove, replace, core) * 4 + (bulk, in_text)
BY_CONNECTION: tuple[Write, ...] = (core, replace) * 5 + (bulk, in_text)
