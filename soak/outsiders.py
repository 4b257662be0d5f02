"""Writers without the library: sessions as in psql, and another application, with models of its own.

Nothing here may import the library, and each process says so when it ends.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

import psycopg
from sqlalchemy import BigInteger, bindparam, create_engine, make_url, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from soak.ledger import Ledger, Writing
from soak.rows import BUCKET, ROWS, some_rows
from soak.tally import Tally

PAUSE_SECONDS = 0.1  # at most, between a lane's transactions


@dataclass(frozen=True)
class Outsider:
    """What an outsider's process shall be: "psql" or "application"."""

    name: str
    first_lane: int
    lanes: int
    seed: int
    database_url: str
    writes: bool = True


class UndoneError(Exception):
    """Raised inside a transaction or a savepoint to roll it back."""


def write_outside(outsider: Outsider, ledger: Ledger, pipe: Pipe) -> None:
    """Be an outsider's process, until the ledger says stop."""
    random.seed(outsider.seed)
    tally = Tally()
    turn = {"psql": _psql, "application": _application}[outsider.name]

    def run(lane: int) -> None:
        try:
            with turn(outsider.database_url) as write:
                while not ledger.stop.value:
                    _once(write, ledger.transaction(lane), tally)
                    time.sleep(random.uniform(0, PAUSE_SECONDS))
        except Exception:
            tally.errors.append(traceback.format_exc())
            ledger.stop.value = 1

    with tally.reporting(pipe):
        lanes = range(outsider.first_lane, outsider.first_lane + outsider.lanes)
        threads = [threading.Thread(target=run, args=(lane,)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if "sqlmodel_cache" in sys.modules:
            tally.errors.append("an outsider has the library")


def _once(write: Callable[[Writing], None], account: Writing, tally: Tally) -> None:
    try:
        write(account)
    except (UndoneError, psycopg.errors.LockNotAvailable):
        account.undo()
        tally.counts["rolled back"] += 1
    else:
        account.returned()
        tally.counts["outside writes"] += 1


# as in psql


Connection = psycopg.Connection[Any]


@contextmanager
def _psql(url: str) -> Iterator[Callable[[Writing], None]]:
    with psycopg.connect(url, autocommit=True) as connection:

        def write(account: Writing) -> None:
            with connection.transaction():
                random.choice(BY_PSQL)(connection, account)
                if random.random() < 0.1:
                    raise UndoneError
                account.sent()

        yield write


def _lock(connection: Connection, pks: list[int]) -> list[int]:
    """Keep other writers away from rows, and return those that exist."""
    connection.execute("SELECT pg_advisory_xact_lock(n) FROM unnest(%s::int[]) AS n", (sorted(pks),))
    return [pk for (pk,) in connection.execute("SELECT id FROM soak_item WHERE id = ANY (%s) ORDER BY id", (pks,))]


def _draw(connection: Connection, account: Writing, pks: list[int], *, deleted: bool = False) -> int:
    row = connection.execute("SELECT nextval('soak_version')").fetchone()
    assert row is not None
    version: int = row[0]
    account.draft(version, pks, deleted=deleted)
    query = "INSERT INTO soak_journal SELECT %s, n, %s FROM unnest(%s::int[]) AS n"
    connection.execute(query, (version, deleted, pks))
    return version


def _upsert(connection: Connection, account: Writing) -> None:
    """A row that may be there or not."""
    [pk] = some_rows(1)
    _lock(connection, [pk])
    version = _draw(connection, account, [pk])
    connection.execute(
        "INSERT INTO soak_item VALUES (%s, %s, %s, %s) "
        "ON CONFLICT (id) DO UPDATE SET version = excluded.version, note = excluded.note",
        (pk, pk // BUCKET, version, str(version)),
    )


def _several(connection: Connection, account: Writing) -> None:
    """Rows by one statement that names them."""
    pks = _lock(connection, some_rows(4))
    version = _draw(connection, account, pks)
    query = "UPDATE soak_item SET version = %s, note = %s WHERE id = ANY (%s)"
    connection.execute(query, (version, str(version), pks))


def _bucket(connection: Connection, account: Writing) -> None:
    """All rows of a bucket, in a block of the server's own language."""
    first = some_rows(1)[0] // BUCKET * BUCKET
    pks = _lock(connection, list(range(first, first + BUCKET)))
    version = _draw(connection, account, pks)
    connection.execute(
        f"DO $$ BEGIN UPDATE soak_item SET version = {version}, note = '{version}' "
        f"WHERE bucket = {first // BUCKET}; END $$"
    )


def _drop(connection: Connection, account: Writing) -> None:
    """A row that goes, for the library to insert again before the follower has heard of it."""
    pks = _lock(connection, some_rows(1))
    _draw(connection, account, pks, deleted=True)
    connection.execute("DELETE FROM soak_item WHERE id = ANY (%s)", (pks,))


def _copy(connection: Connection, account: Writing) -> None:
    """Rows that go, and come again by COPY."""
    pks = some_rows(3)
    _lock(connection, pks)
    _draw(connection, account, pks, deleted=True)
    connection.execute("DELETE FROM soak_item WHERE id = ANY (%s)", (pks,))
    version = _draw(connection, account, pks)
    with connection.cursor().copy("COPY soak_item FROM STDIN") as copy:
        for pk in pks:
            copy.write_row((pk, pk // BUCKET, version, str(version)))


def _rename(connection: Connection, account: Writing) -> None:
    """A row that takes the primary key of another, which is gone; its own comes back with another row."""
    pks = _lock(connection, some_rows(2))
    if len(pks) < 2:
        raise UndoneError
    first, second = random.sample(pks, 2)
    _draw(connection, account, pks, deleted=True)
    connection.execute("DELETE FROM soak_item WHERE id = %s", (second,))
    version = _draw(connection, account, [second])
    query = "UPDATE soak_item SET id = %s, bucket = %s, version = %s, note = %s WHERE id = %s"
    connection.execute(query, (second, second // BUCKET, version, str(version), first))
    if random.random() < 0.7:
        version = _draw(connection, account, [first])
        connection.execute(
            "INSERT INTO soak_item VALUES (%s, %s, %s, %s)", (first, first // BUCKET, version, str(version))
        )


def _savepoint(connection: Connection, account: Writing) -> None:
    """A row, and another whose change is undone by a savepoint."""
    pks = _lock(connection, some_rows(2))
    for pk in pks:
        keep = len(account.versions)
        try:
            with connection.transaction():
                version = _draw(connection, account, [pk])
                connection.execute(
                    "UPDATE soak_item SET version = %s, note = %s WHERE id = %s", (version, str(version), pk)
                )
                if pk != pks[0]:
                    raise UndoneError
        except UndoneError:
            account.undo(keep)


def _truncate(connection: Connection, account: Writing) -> None:
    """All rows go by TRUNCATE, and come again."""
    pks = list(range(ROWS))
    connection.execute("SET LOCAL lock_timeout = '100ms'")  # whoever waits for others' rows while they wait for these
    _lock(connection, pks)
    _draw(connection, account, pks, deleted=True)
    connection.execute("TRUNCATE soak_item")
    version = _draw(connection, account, pks)
    query = "INSERT INTO soak_item SELECT n, n / %s, %s, %s FROM generate_series(0, %s) AS n"
    connection.execute(query, (BUCKET, version, str(version), ROWS - 1))


BY_PSQL: tuple[Callable[[Connection, Writing], None], ...] = (
    *((_upsert, _several, _bucket, _drop, _copy, _rename, _savepoint) * 5),
    _truncate,
)


# another application


class Base(DeclarativeBase):
    """Of the application's own models."""


class Row(Base):
    """A row, as another application sees it."""

    __tablename__ = "soak_item"
    id: Mapped[int] = mapped_column(primary_key=True)
    bucket: Mapped[int]
    version: Mapped[int] = mapped_column(BigInteger)
    note: Mapped[str]


@contextmanager
def _application(url: str) -> Iterator[Callable[[Writing], None]]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))

    def write(account: Writing) -> None:
        with Session(engine) as session:
            random.choice(BY_APPLICATION)(session, account)
            session.flush()
            if random.random() < 0.1:
                raise UndoneError
            account.sent()
            session.commit()

    yield write
    engine.dispose()


def _locked(session: Session, pks: list[int]) -> list[Row]:
    lock = text("SELECT pg_advisory_xact_lock(n) FROM unnest(CAST(:pks AS integer[])) AS n")
    session.execute(lock, {"pks": sorted(pks)})
    return list(session.scalars(select(Row).where(Row.id.in_(pks)).order_by(Row.id)))


def _drawn(session: Session, account: Writing, pks: list[int], *, deleted: bool = False) -> int:
    version: int = session.execute(text("SELECT nextval('soak_version')")).scalar_one()
    account.draft(version, pks, deleted=deleted)
    journal = text("INSERT INTO soak_journal (version, item, deleted) VALUES (:version, :item, :deleted)")
    session.execute(journal, [{"version": version, "item": pk, "deleted": deleted} for pk in pks])
    return version


def _change(session: Session, account: Writing) -> None:
    """Rows by the unit of work, and those that are missing."""
    pks = some_rows(3)
    rows = {row.id: row for row in _locked(session, pks)}
    for pk in pks:
        version = _drawn(session, account, [pk])
        if pk not in rows:
            session.add(Row(id=pk, bucket=pk // BUCKET, version=version, note=str(version)))
        else:
            rows[pk].version, rows[pk].note = version, str(version)


def _remove(session: Session, account: Writing) -> None:
    """A row that goes."""
    for row in _locked(session, some_rows(1)):
        _drawn(session, account, [row.id], deleted=True)
        session.delete(row)
        session.flush()


def _bulk(session: Session, account: Writing) -> None:
    """Rows by Core."""
    pks = [row.id for row in _locked(session, some_rows(3))]
    if pks:
        version = _drawn(session, account, pks)
        statement = update(Row.__table__).where(Row.__table__.c.id == bindparam("pk"))  # type: ignore[arg-type]
        values = [{"pk": pk, "version": version, "note": str(version)} for pk in pks]
        session.connection().execute(statement, values)


BY_APPLICATION: tuple[Callable[[Session, Writing], None], ...] = (_change, _change, _change, _remove, _bulk)
