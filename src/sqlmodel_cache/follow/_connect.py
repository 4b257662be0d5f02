"""Connections to PostgreSQL, on which a follower or its server is missed within seconds when it is gone or frozen."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

SENDER_TIMEOUT = 3.0  # seconds; a follower that was silent for so long is no longer the one
_IDLE_MS = 3000  # the same before it replicates: it may have the lock already

_SETTINGS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "client_encoding": "UTF8",
    "application_name": "sqlmodel-cache follow",
}


def connect(where: str) -> psycopg.Connection[Any]:
    """Return a connection in autocommit. `where` is a connect string, as libpq reads it."""
    return psycopg.connect(make_conninfo(where, **_SETTINGS), autocommit=True)


def connect_replication(where: str) -> pq.abc.PGconn:
    """Return a connection that may replicate.

    Raises:
        psycopg.OperationalError: there is none.
    """
    given = conninfo_to_dict(where).get("options") or ""
    options = f"{given} -c wal_sender_timeout={round(SENDER_TIMEOUT * 1000)} -c datestyle=ISO".strip()
    settings: dict[str, Any] = {**_SETTINGS, "replication": "database", "options": options}
    connection = pq.PGconn.connect(make_conninfo(where, **settings).encode())
    if connection.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError(connection.error_message.decode(errors="replace").strip())
    if connection.server_version >= 140_000:
        connection.exec_(f"SET idle_session_timeout = {_IDLE_MS}".encode())
    return connection
