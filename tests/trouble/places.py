"""Addresses behind which one Redis follows another, and what a program does there: gets, commits, counts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import redis
import servers
from models import Hero, get_hero
from sqlalchemy import Engine
from sqlmodel import Session
from waiting import until

from sqlmodel_cache import RedisSyncTransport, SQLModelCache

PATIENCE = 20  # seconds


class Place:
    """An address that stays while servers come and go, like a virtual IP: a symbolic link to a server's socket."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="smc"))  # short: a socket's path has at most 107 bytes
        self._link = self.folder / "here"
        self._servers: list[servers.RedisServer] = []

    def server(self, name: str, *options: str) -> servers.RedisServer:
        """Return a new server, which keeps its files to itself."""
        home = self.folder / name
        home.mkdir()
        where = ("--unixsocket", str(home / "socket"), "--dir", str(home))
        debug = ("--enable-debug-command", "yes") if servers.redis_major() >= 7 else ()
        server = servers.RedisServer(None, *where, *debug, *options)
        self._servers.append(server)
        return server

    def leads_to(self, name: str) -> None:
        """Whoever connects from now on reaches this server; connections that are open stay where they are."""
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(self.folder / name / "socket")

    def client(self) -> redis.Redis:
        """Return a client of whatever server the address leads to."""
        return redis.Redis(unix_socket_path=str(self._link))

    def transport(self, **options: bool) -> RedisSyncTransport:
        """Return a transport to whatever server the address leads to."""
        return RedisSyncTransport(self.client(), timeout=PATIENCE, commit_timeout=PATIENCE, **options)

    def close(self) -> None:
        """Stop all servers, and remove their files."""
        for server in self._servers:
            server.stop()
        shutil.rmtree(self.folder)


def admin(server: servers.RedisServer) -> redis.Redis:
    """Return a client of a server itself."""
    return redis.Redis.from_url(server.url)


def follow(replica: servers.RedisServer, master: servers.RedisServer) -> None:
    """Make a server the replica of another, and wait until it has all that the other has."""
    with admin(replica) as client, admin(master) as other:
        client.replicaof("127.0.0.1", str(master.port))
        until(lambda: client.info("replication")["master_link_status"] == "up")
        until(lambda: client.dbsize() == other.dbsize())


def cut_off(replica: servers.RedisServer) -> None:
    """Let a replica hear nothing more from its master; it stays a replica, with what it has."""
    with admin(replica) as client:
        client.replicaof("127.0.0.1", str(servers.free_port()))
        assert client.info("replication")["role"] == "slave"


def promote(replica: servers.RedisServer) -> None:
    """Make a replica a master."""
    with admin(replica) as client:
        client.replicaof("NO", "ONE")
        assert client.info("replication")["role"] == "master"


def rename(engine: Engine, pk: int, name: str) -> None:
    """Commit another name of a hero."""
    with Session(engine) as session:
        session.get_one(Hero, pk).name = name
        session.commit()


def row_key(client: redis.Redis, pk: int) -> str:
    """Return the key of a hero's row in Redis."""
    [key] = client.scan_iter(f"*hero*}}:{pk}")
    return str(key.decode())


def is_there(client: redis.Redis, pk: int, name: str) -> bool:
    """Return whether a hero's row is a value in Redis, of that name, valid or not."""
    raw = client.get(row_key(client, pk))
    assert isinstance(raw, bytes)
    return raw[:1] == b"V" and name.encode() in raw


def hits(engine: Engine, pk: int, name: str) -> bool:
    """Return whether a get was a hit; whether or not, it must give this name."""
    before = SQLModelCache.stats().hits
    assert get_hero(engine, pk).name == name
    return SQLModelCache.stats().hits > before


def cached(engine: Engine, pk: int, name: str) -> None:
    """Get a hero until it is a hit: one fill may be lost, and a cache given up is asked again after a second."""
    until(lambda: hits(engine, pk, name))


def owes() -> bool:
    """Return whether the process owes the cache an invalidation."""
    cache = SQLModelCache._cache
    return cache is not None and bool(cache.driver.debts)
