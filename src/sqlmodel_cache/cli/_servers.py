"""The Redis servers behind a transport, one by one: what the library itself never asks of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis
from redis import exceptions

from ..transport import _clients, _cluster
from ._app import CommandError, ExitCode


@dataclass(frozen=True, slots=True)
class Node:
    """A server that may be written to. `slots` are pairs of the first and the last, where it is a cluster's."""

    name: str
    client: Any  # a redis.Redis, which says too little of its replies
    slots: tuple[tuple[int, int], ...] = ()
    replicas: int | None = None


class Servers:
    """The servers that have the keys: one, or the primaries of a cluster.

    Args:
        transport: a Redis transport, sync or asyncio.
        timeout: seconds that a reply may take.
    """

    def __init__(self, transport: Any, timeout: float) -> None:
        client = getattr(transport, "client", None)
        if client is None:
            raise CommandError(f"the application's {type(transport).__name__} is not a Redis transport of the library")
        self._timeout = timeout
        self._opened: list[Any] = []
        self.is_cluster = _clients.is_cluster(client)
        if self.is_cluster:
            self._members = _clients.Members.of(client).twin(to_async=False)
            self.nodes = self._primaries()
        else:
            plain = client if isinstance(client, redis.Redis) else _clients.twin_client(client, to_async=False)
            self.nodes = [Node(_name(plain), self._open(_clients.bounded(plain, timeout)))]

    def _open(self, client: Any) -> Any:
        self._opened.append(client)
        return client

    def of(self, key: str) -> Any:
        """Return a client of the server that has a key."""
        slot = _cluster.slot_of([key])
        for node in self.nodes:
            if not self.is_cluster or any(first <= slot <= last for first, last in node.slots):
                return node.client
        raise CommandError(f"no node of the cluster owns slot {slot}", ExitCode.UNREACHABLE)

    def close(self) -> None:
        """Close the connections."""
        for client in self._opened:
            _clients.close_bounded(client)

    def _primaries(self) -> list[Node]:
        failure: Exception | None = None
        for seed in self._members.seeds:
            try:
                return self._read(self._client(seed).execute_command("CLUSTER", "SLOTS"), seed)
            except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
                failure = error
        raise CommandError(f"no node of the cluster answers: {failure}", ExitCode.UNREACHABLE)

    def _client(self, node: _cluster.Node) -> Any:
        return self._open(redis.Redis(connection_pool=self._members.pool(node, self._timeout, signs=False)))

    def _read(self, reply: Iterable[Any], asked: _cluster.Node) -> list[Node]:
        slots: dict[_cluster.Node, list[tuple[int, int]]] = {}
        replicas: dict[_cluster.Node, int] = {}
        for first, last, (host, port, *_), *others in reply:
            name = host.decode() if isinstance(host, bytes) else host
            node = (name if name and name != "?" else asked[0], int(port))
            node = self._members.remap(node) if self._members.remap else node
            slots.setdefault(node, []).append((int(first), int(last)))
            replicas[node] = len(others)
        return [
            Node(f"{node[0]}:{node[1]}", self._client(node), tuple(ranges), replicas[node])
            for node, ranges in sorted(slots.items())
        ]


def _name(client: Any) -> str:
    pool: Any = client.connection_pool
    settings = pool.connection_kwargs
    if "path" in settings:
        return str(settings["path"])
    if hasattr(pool, "service_name"):
        return str(pool.service_name)
    return f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"


def info(client: Any, section: str) -> dict[str, Any]:
    """Return a section of INFO, or nothing where the user may not ask for it."""
    try:
        found: dict[str, Any] = client.info(section)
    except exceptions.NoPermissionError:
        return {}
    return found


def replies(client: Any, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return the replies to commands in one round trip, or their errors."""
    with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        found: list[Any] = pipe.execute(raise_on_error=False)
    return found
