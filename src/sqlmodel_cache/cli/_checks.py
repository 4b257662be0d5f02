"""What `doctor` asks of a Redis server. Each check is about one thing, and says what to do where that is wrong.

It writes two keys below the prefix, under a name that no table has, and lets them expire within seconds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import redis
from redis import exceptions

from .. import _keys
from .._effects import Begin, End, Entry, Fill, Granted, Hit, Keys, Lease, Lookup
from ..config import Settings
from ..errors import TransportError
from ..transport import RedisAsyncTransport, RedisSyncTransport
from ..transport._cluster import SLOTS, slot_of
from ._app import first_line, size
from ._servers import Node, Servers, info, replies

Status = Literal["ok", "warning", "failure"]

OLDEST = (6, 2)  # of Redis: the oldest that is tested
SKEW = 1.0  # seconds between two clocks that are worth a word
LEEWAY = 60.0  # seconds by which encrypted payloads allow clocks to differ
LOOKS = 20  # round trips that are timed
PROBE_MS = 1_000
FULL = 0.9  # of maxmemory


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `doctor`. `remedy` is empty where there is nothing to do; `server` where it is about none."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
    server: str = ""
    unreachable: bool = False


def checks_of(node: Node, settings: Settings, servers: Servers) -> Iterator[Check]:
    """Yield what is to be said of a server; only that, where it does not answer."""
    try:
        for check in _Checks(node, settings, servers).all():
            yield Check(check.name, check.status, check.detail, check.remedy, node.name)
    except exceptions.AuthenticationError as error:
        remedy = "give the user and the password that the application has"
        yield Check("connection", "failure", first_line(error), remedy, node.name)
    except (exceptions.RedisError, OSError) as error:
        remedy = "is the address right, and is it up? A firewall, TLS (rediss://)?"
        yield Check("connection", "failure", first_line(error), remedy, node.name, unreachable=True)


class _Checks:
    def __init__(self, node: Node, settings: Settings, servers: Servers) -> None:
        self._node = node
        self._client = node.client
        self._settings = settings
        self._servers = servers
        self._entry = _probe(node, settings.key_prefix)

    def all(self) -> Iterator[Check]:
        self._look()  # so that a server that does not answer is told of once
        yield self._version()
        missing = self._missing()
        yield self._permissions(missing)
        writes = self._writes()
        yield writes
        if not missing and writes.status == "ok":
            yield self._protocol()
        yield self._clock()
        yield self._latency()
        yield from self._memory()
        yield from self._persistence()
        yield from self._replication()
        yield from self._cluster()
        yield self._tracking()

    def _look(self) -> float:
        began = time.perf_counter()
        [reply] = replies(self._client, [("MGET", *self._raw)])
        if isinstance(reply, Exception) and not isinstance(reply, exceptions.ResponseError):
            raise reply
        return time.perf_counter() - began

    @property
    def _raw(self) -> list[bytes]:
        return [key.encode("utf-8", "surrogatepass") for key in self._entry]

    def _version(self) -> Check:
        server = info(self._client, "server")
        valkey, told = server.get("valkey_version"), server.get("redis_version")
        if told is None:
            return Check("version", "warning", "the user may not ask for INFO", "ACL SETUSER ... +info")
        name = f"Valkey {valkey}" if valkey else f"Redis {told}"
        numbers = tuple(int(part) for part in str(told).split(".")[:2])
        if numbers < OLDEST:
            return Check("version", "warning", name, "nothing older than Redis 6.2 is tested")
        return Check("version", "ok", f"{name}, redis-py {redis.__version__}")

    def _missing(self) -> list[str]:
        """Return the rules that the user lacks, by doing what the library and its scripts do."""
        row = self._raw[0]
        commands: dict[str, tuple[Any, ...]] = {
            "+mget": ("MGET", *self._raw),
            "+get": ("GET", row),
            "+set": ("SET", row, "doctor", "PX", PROBE_MS),
            "+pexpire": ("PEXPIRE", row, PROBE_MS),
            "+pttl": ("PTTL", row),
            "+time": ("TIME",),
            "+eval": ("EVAL", "return 1", 0),
            "+evalsha": ("EVALSHA", "0" * 40, 0),
        }
        if self._settings.wait_replicas:
            commands["+wait"] = ("WAIT", 0, 1)
        missing = []
        for rule, reply in zip(commands, replies(self._client, commands.values()), strict=True):
            if isinstance(reply, exceptions.NoPermissionError):
                missing.append(f"~{self._settings.key_prefix}:*" if " key" in str(reply) else rule)
        return sorted(set(missing))

    def _permissions(self, missing: list[str]) -> Check:
        user = self._client.connection_pool.connection_kwargs.get("username") or "default"
        if missing:
            return Check("permissions", "failure", "commands are refused", f"ACL SETUSER {user} {' '.join(missing)}")
        if not info(self._client, "replication").get("master_replid"):
            remedy = f"ACL SETUSER {user} +info: without it, a restored or promoted server is noticed by the TTL only"
            return Check("permissions", "warning", "INFO does not tell the server's name", remedy)
        return Check("permissions", "ok", f"user {user} may send what the library sends")

    def _writes(self) -> Check:
        [reply] = replies(self._client, [("SET", self._raw[0], "doctor", "PX", PROBE_MS)])
        if not isinstance(reply, Exception):
            return Check("writes", "ok", "accepted")
        said = first_line(reply)
        remedies = {
            exceptions.ReadOnlyError: "it is a replica: give the address of the master",
            exceptions.MovedError: "it is a node of a cluster: --cluster, or a RedisCluster in the application",
            exceptions.OutOfMemoryError: "it is full: raise maxmemory, or set maxmemory-policy allkeys-lru",
            exceptions.NoPermissionError: "see permissions",
        }
        remedy = next((remedy for kind, remedy in remedies.items() if isinstance(reply, kind)), "")
        return Check("writes", "failure", said, remedy or "docs/operations.md: when Redis forgets or refuses")

    def _protocol(self) -> Check:
        """Run a whole life of a row through the library's own transport: miss, fill, hit, fence, release."""
        transport = self._settings.transport
        if isinstance(transport, RedisAsyncTransport):
            transport = transport.twin()
        if not isinstance(transport, RedisSyncTransport):
            return Check("protocol", "warning", f"not tried: {type(transport).__name__} is the application's own")
        transport = RedisSyncTransport(transport.client, timeout=5, commit_timeout=5)
        try:
            self._live(transport)
        except (TransportError, _Unexpected) as error:
            return Check("protocol", "failure", first_line(error), "is a proxy, or a module, in between?")
        finally:
            transport.close()
            replies(self._client, (("PEXPIRE", key, PROBE_MS) for key in self._raw))
        return Check("protocol", "ok", "lease, fill, hit, fence and release work")

    def _live(self, transport: RedisSyncTransport) -> None:
        entry, mark = self._entry, b"doctor.."
        replies(self._client, [("SET", self._raw[0], "", "PX", 1)])  # whatever is left of another probe
        lease = transport.execute(Lease(entry, mark, os.urandom(16)))
        if not isinstance(lease, Granted) or not transport.execute(Fill(entry, lease, mark, b"row", PROBE_MS)):
            raise _Unexpected(f"no permission to fill: {type(lease).__name__}")
        found = transport.execute(Lookup(entry, mark)) or transport.execute(Lease(entry, mark, os.urandom(16)))
        if (found.payload if isinstance(found, Hit) else found) != b"row":
            raise _Unexpected("what was stored is not found")
        token, keys = os.urandom(16), Keys((entry.row,), ())
        transport.execute(Begin(keys, token, PROBE_MS))
        if transport.execute(Lookup(entry, mark)) is not None:
            raise _Unexpected("a row is found although a commit is in flight")
        transport.execute(End(keys, token, os.urandom(16)))

    def _clock(self) -> Check:
        before = time.time()
        [reply] = replies(self._client, [("TIME",)])
        after = time.time()
        if isinstance(reply, Exception):
            return Check("clock", "warning", f"not told: {first_line(reply)}")
        told = float(reply[0]) + (float(reply[1]) / 1e6 if len(reply) > 1 else 0.0)
        skew = max(0.0, before - told, told - after)
        if skew < SKEW:
            return Check("clock", "ok", "as this host's, by less than a second")
        sealed = bool(self._settings.encryption_keys) and skew > LEEWAY
        effect = "encrypted rows may not open" if sealed else "rows are renewed at the wrong time (refresh_ahead)"
        return Check("clock", "failure" if sealed else "warning", f"{skew:.1f} s off this host's", f"NTP: {effect}")

    def _latency(self) -> Check:
        taken = [self._look() for _ in range(LOOKS)]
        median, bound = statistics.median(taken), self._settings.timeout_ms / 1000
        detail = f"a look-up takes {median * 1000:.2f} ms in the median of {LOOKS}, {max(taken) * 1000:.2f} ms at most"
        if median > bound / 4:
            remedy = f"configure(timeout=...) is {bound:g} s: above it, reads go to the database"
            return Check("latency", "warning", detail, remedy)
        return Check("latency", "ok", detail)

    def _memory(self) -> Iterator[Check]:
        memory = info(self._client, "memory")
        if "maxmemory" not in memory:
            return
        bound, used, policy = memory["maxmemory"], memory["used_memory"], memory.get("maxmemory_policy", "noeviction")
        detail = f"maxmemory {size(bound) if bound else 'not set'}, {policy}, {size(used)} used"
        if not bound:
            remedy = (
                "CONFIG SET maxmemory ..., maxmemory-policy allkeys-lru: so it cannot take all of the host's memory"
            )
            yield Check("eviction", "warning", detail, remedy)
        elif policy == "noeviction":
            full = "it is nearly full, and then" if used > FULL * bound else "when it is full,"
            remedy = f"CONFIG SET maxmemory-policy allkeys-lru: {full} nothing is stored and commits cannot be fenced"
            yield Check("eviction", "warning", detail, remedy)
        else:
            yield Check("eviction", "ok", detail)

    def _persistence(self) -> Iterator[Check]:
        told = info(self._client, "persistence")
        if str(told.get("rdb_last_bgsave_status", "ok")) != "ok":
            remedy = "mend the disk, or CONFIG SET stop-writes-on-bgsave-error no: a cache needs no snapshots"
            yield Check("snapshots", "warning", "the last one has failed: writes may be refused", remedy)

    def _replication(self) -> Iterator[Check]:
        told = info(self._client, "replication")
        if not told:
            return
        wanted, there = self._settings.wait_replicas, int(told.get("connected_slaves", 0))
        if told.get("role") != "master":
            yield Check("replication", "failure", f"role {told.get('role')}", "give the address of the master")
        elif wanted > there:
            remedy = f"wait_replicas={wanted}: no commit can be fenced until so many are connected"
            yield Check("replication", "failure", f"{there} replicas are connected", remedy)
        else:
            yield Check("replication", "ok", f"master, {there} replicas, wait_replicas={wanted}")

    def _cluster(self) -> Iterator[Check]:
        enabled = bool(info(self._client, "cluster").get("cluster_enabled"))
        if not self._servers.is_cluster:
            if enabled:
                remedy = "--cluster, or a redis.cluster.RedisCluster in the application"
                yield Check("cluster", "failure", "a node of a cluster, and the client does not know it", remedy)
            return
        owned = sum(last - first + 1 for node in self._servers.nodes for first, last in node.slots)
        if owned < SLOTS:
            yield Check("cluster", "failure", f"{SLOTS - owned} slots have no owner", "redis-cli --cluster fix")
        elif not self._node.replicas:
            yield Check("cluster", "warning", "no replica: its rows are the database's when it dies", "add a replica")
        else:
            yield Check(
                "cluster", "ok", f"{len(self._servers.nodes)} primaries, {self._node.replicas} replicas of this"
            )

    def _tracking(self) -> Check:
        """Ask for what the near cache needs, in the protocol that this connection has."""
        told = replies(self._client, [("HELLO",), ("CLIENT", "TRACKING", "OFF")])
        refused = next((reply for reply in told if isinstance(reply, Exception)), None)
        near = self._settings.near_cache is not None
        if refused is None:
            return Check("tracking", "ok", "possible" + (", and the near cache asks for it" if near else ""))
        if near:
            return Check("tracking", "failure", first_line(refused), "near_cache needs RESP3: ACL ... +hello +client")
        return Check("tracking", "ok", f"not possible, and not asked for: {first_line(refused)}")


class _Unexpected(Exception):
    """A reply that the protocol does not allow."""


def _probe(node: Node, key_prefix: str) -> Entry:
    """Return keys that no table has, on this node."""
    pk = os.urandom(8).hex()
    prefix = _keys.escape(key_prefix)
    for number in range(SLOTS * 8):
        entry = _keys.entry(prefix, "doctor", f"probe{number}", pk)
        slot = slot_of([entry.table])
        if not node.slots or any(first <= slot <= last for first, last in node.slots):
            return entry
    raise AssertionError("a node that owns slots owns one of these")
