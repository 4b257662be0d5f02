"""What else a Redis may ask of its clients: a socket's path, TLS, an ACL user who may do little; and Valkey."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from servers import RedisCluster, RedisServer, valkey_executable
from transport.backends import FENCE_TTL_MS, FINGERPRINT, PAYLOAD, TTL_MS, id_of
from transport.topologies import Caller, caller_on, client_of

from sqlmodel_cache import RedisSyncTransport, TransportError
from sqlmodel_cache._effects import Begin, End, Entry, Fill, Hit, Keys, Lease, Lookup, Resign

ENTRY = Entry("sqlmodelcache:{db/hero:0}:1", "sqlmodelcache:{db/hero:0}")
ALL = Keys((ENTRY.row,), (ENTRY.table, "sqlmodelcache:{db/hero:1}", "sqlmodelcache:{db/hero:2}"))
TOKEN = id_of("token")
KINDS = pytest.mark.parametrize("kind", ["sync", "asyncio"])

# What docs/operations.md asks for; ACL_CLUSTER in a cluster only.
COMMANDS = ["+mget", "+evalsha", "+eval", "+get", "+set", "+pttl", "+pexpire", "+time"]
ACL = ["resetkeys", "~sqlmodelcache:*", "resetchannels", "-@all", *COMMANDS]
ACL_CLUSTER = ["+cluster|slots", "+asking"]


def module_of(kind: str) -> Any:
    """Return redis-py's module of a kind."""
    return redis if kind == "sync" else redis.asyncio


def check(call: Caller) -> None:
    """Assert that every effect is answered."""
    assert call(Lookup(ENTRY, FINGERPRINT)) is None
    granted = call(Lease(ENTRY, FINGERPRINT, id_of("lease"), elect_ms=1_000))
    assert call(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
    assert call(Lookup(ENTRY, FINGERPRINT)) == PAYLOAD
    assert call(Lease(ENTRY, FINGERPRINT, id_of("again"))) == Hit(PAYLOAD)
    assert call(Fill(ENTRY, granted, b"another!", PAYLOAD, TTL_MS)) is True
    assert call(Begin(ALL, TOKEN, FENCE_TTL_MS)) is None
    assert call(End(ALL, TOKEN, id_of("end"))) is None
    granted = call(Lease(ENTRY, FINGERPRINT, id_of("lease"), elect_ms=1_000))
    assert call(Resign(ENTRY, granted)) is None
    assert call(Begin(ALL, TOKEN, FENCE_TTL_MS)) is None
    assert call(End(ALL, TOKEN, id_of("end"))) is None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, which has a socket, too."""
    server = RedisServer(None, "--unixsocket", str(tmp_path / "redis.sock"))
    yield server
    server.stop()


def make_old(server: RedisServer) -> None:
    """Let the table's version be near its end: the next lease prolongs it."""
    server.say("SET", ENTRY.table, "T" + "s" * 16 + "v" * 12, "PX", 3_600_000)


@KINDS
def test_unix_socket(server: RedisServer, kind: str, tmp_path: Path) -> None:
    """A client on a socket's path, and its twin."""
    path = str(tmp_path / "redis.sock")
    with caller_on(module_of(kind).Redis(unix_socket_path=path)) as call:
        check(call)
        with caller_on(call.transport.twin().client) as twin:
            assert twin(Begin(ALL, TOKEN, FENCE_TTL_MS)) is None


@KINDS
def test_user_who_may_do_what_is_needed_and_nothing_else(server: RedisServer, kind: str) -> None:
    """The commands of docs/operations.md, on the keys of the prefix, are enough; other keys are refused."""
    server.say("ACL", "SETUSER", "cache", "on", ">secret", *ACL)
    make_old(server)
    user = {"username": "cache", "password": "secret"}
    with caller_on(module_of(kind).Redis(port=server.port, **user)) as call:
        check(call)
        elsewhere = Lookup(Entry("other:{db/hero:0}:1", "other:{db/hero:0}"), FINGERPRINT)
        with pytest.raises(TransportError, match="NoPermission"):
            call(elsewhere)
    server.say("ACL", "SETUSER", "cache", ">changed", "<secret")
    wrong = module_of(kind).Redis(port=server.port, **user)
    with caller_on(wrong) as call, pytest.raises(TransportError, match="Authentication"):
        call(Begin(ALL, TOKEN, FENCE_TTL_MS))


@KINDS
def test_user_of_a_cluster(cluster: RedisCluster, kind: str) -> None:
    """In a cluster, its map is needed, too; a slot that moves needs ASKING."""
    for node in cluster.nodes:
        node.say("ACL", "SETUSER", "cache", "on", ">secret", *ACL, *ACL_CLUSTER, "+command", "+info", "+cluster")
    with caller_on(client_of(cluster, to_async=kind == "asyncio", username="cache", password="secret")) as call:
        for node in cluster.nodes:
            node.say("ACL", "SETUSER", "cache", "-command", "-info", "-cluster", *ACL_CLUSTER)
        check(call)


@pytest.mark.parametrize("command", [word[1:] for word in COMMANDS])
def test_every_command_of_the_user_is_needed(server: RedisServer, command: str) -> None:
    """The list is no longer than it must be."""
    server.say("ACL", "SETUSER", "cache", "on", ">secret", *ACL, f"-{command}")
    make_old(server)
    client = redis.Redis(port=server.port, username="cache", password="secret")
    with caller_on(client) as call, pytest.raises((TransportError, AssertionError)):
        check(call)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "redis.pem"
    path.write_bytes(made.public_bytes(pem) + secret)
    return path


@contextmanager
def tls_in_front_of(server: RedisServer, certificate: Path) -> Iterator[int]:
    """Yield a port that speaks TLS for a Redis that does not: the servers of the wheels are built without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, outer), pump(inner, writer))

    front = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def close() -> None:
        front.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield front.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@KINDS
def test_tls(server: RedisServer, kind: str, certificate: Path) -> None:
    """A client with a certificate's authority is answered, and so is its twin; one without is not."""
    with tls_in_front_of(server, certificate) as port:
        trusting = {"ssl": True, "ssl_ca_certs": str(certificate)}
        with caller_on(module_of(kind).Redis(host="127.0.0.1", port=port, **trusting)) as call:
            check(call)
            with caller_on(call.transport.twin().client) as twin:
                assert twin(Begin(ALL, TOKEN, FENCE_TTL_MS)) is None
        wary = module_of(kind).Redis(host="127.0.0.1", port=port, ssl=True)
        with caller_on(wary) as call, pytest.raises(TransportError, match=r"(?i)certificate.verify.failed|Timeout"):
            call(Begin(ALL, TOKEN, FENCE_TTL_MS))


class Counting(redis.Connection):
    """A connection class of an application's own."""

    opened = 0

    def connect(self, *args: Any, **options: Any) -> None:
        """Count, and connect."""
        Counting.opened += 1
        super().connect(*args, **options)


class Client(redis.Redis):
    """A client class of an application's own."""


def test_clients_of_an_applications_own_classes(server: RedisServer) -> None:
    """A subclass, a blocking pool, a connection class: the settings and the class of connections are kept."""
    pool = redis.BlockingConnectionPool(connection_class=Counting, port=server.port, max_connections=2)
    for client in (Client(port=server.port), redis.Redis(connection_pool=pool)):
        with caller_on(client) as call:
            assert isinstance(call.transport, RedisSyncTransport)
            check(call)
        server.say("FLUSHALL")
    assert Counting.opened >= 1


@KINDS
def test_valkey(kind: str) -> None:
    """Valkey answers every effect as Redis does."""
    server = RedisServer(executable=valkey_executable())
    try:
        assert "server_name:valkey" in server.say("INFO", "server")
        with caller_on(module_of(kind).Redis(port=server.port)) as call:
            check(call)
    finally:
        server.stop()
