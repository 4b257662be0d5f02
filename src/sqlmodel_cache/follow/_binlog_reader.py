"""The binary log as a server sends it to a replica: events of mysql-replication, and the rows in them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from pymysql.err import Error
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.constants.NONE_SOURCE import COLS_BITMAP
from pymysqlreplication.event import FormatDescriptionEvent
from pymysqlreplication.row_event import PartialUpdateRowsEvent, UpdateRowsEvent, WriteRowsEvent

from ._binlog_changes import Row
from ._binlog_server import Mark, Wire, connect
from ._source import SourceError

HEARTBEAT_SECONDS = 0.25  # between two events of a log to which nothing is added

_SAME = {None, "utf8", "ascii", "cp1252", "binary"}  # encodings that Python and the server understand alike


# It announces a connection that `Log` does not let it make.
logging.getLogger("pymysqlreplication").addFilter(lambda record: "Re-request" not in record.getMessage())


class Unreadable(Exception):
    """An event was passed over, and with it the rows that it describes."""


class Log:
    """A server's log from a mark on.

    Args:
        settings: those of `pymysql.connect`.
        mark: where it begins.
        names: of the tables whose rows are read; may change later.

    Attributes:
        began: when its first file was begun, in seconds of Unix time.

    Raises:
        pymysql.Error, SourceError: there is none.
    """

    def __init__(self, settings: Mapping[str, Any], mark: Mark, names: set[str]) -> None:
        self._opened: list[Wire] = []
        self._reader = BinLogStreamReader(
            dict(settings),
            server_id=(1 << 31) + secrets.randbelow(1 << 31),
            blocking=True,
            resume_stream=True,
            log_file=mark.file,
            log_pos=mark.position,
            slave_heartbeat=HEARTBEAT_SECONDS,
            filter_non_implemented_events=False,
            only_tables=names,
            pymysql_wrapper=self._connect,
            enable_logging=False,
        )
        try:
            while not isinstance(event := self.next(), FormatDescriptionEvent):
                pass
        except BaseException:
            self.close()
            raise
        self.began = int(event.timestamp)
        self._opened[1].close()  # it has told whether columns have names, and is not asked again

    def _connect(self, db: str | None = None, **settings: Any) -> Wire:
        """Connect for the log, and for questions about it, but not again: the server may be another one by then."""
        if len(self._opened) == 2:
            raise SourceError("the server has ended the connection")
        database = {} if db is None else {"database": db}
        self._opened.append(connect({**settings, **database}))
        return self._opened[-1]

    def next(self) -> Any:
        """Return the next event, a heartbeat if there is none.

        Raises:
            Unreadable: it is passed over.
            pymysql.Error, SourceError: the server does not send it.
        """
        try:
            event = self._reader.fetchone()
        except (Error, OSError, SourceError):
            raise
        except Exception as error:
            raise Unreadable(repr(error)) from error
        if event is None:
            raise SourceError("the server has ended the log")
        return event

    def descriptor(self) -> int:
        """Return the connection's file descriptor."""
        return self._opened[0].descriptor()

    def cut(self) -> None:
        """End `next`, from any thread."""
        for connection in self._opened:
            connection.cut()

    def close(self) -> None:
        """Close the connection."""
        for connection in self._opened:
            with suppress(Error):
                connection.close()


def rows(event: Any) -> Iterator[Row]:
    """Yield the rows of an event.

    Raises:
        ValueError: the log does not name the columns.
    """
    names = [column.name for column in event.columns]
    if not all(names):
        raise ValueError("columns without names: binlog_row_metadata is not FULL")
    if isinstance(event, PartialUpdateRowsEvent):
        raise ValueError("partial updates")
    doubtful = {column.name for column in event.columns if column.character_set_name not in _SAME}

    def image(values: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
        return {
            name.lower(): object() if name in doubtful else value
            for name, value in values.items()
            if sources.get(name) != COLS_BITMAP
        }

    for row in event.rows:
        if isinstance(event, UpdateRowsEvent):
            before = image(row["before_values"], row["before_none_sources"])
            yield Row(before, image(row["after_values"], row["after_none_sources"]))
        elif isinstance(event, WriteRowsEvent):
            yield Row(None, image(row["values"], row["none_sources"]))
        else:
            yield Row(image(row["values"], row["none_sources"]), None)
