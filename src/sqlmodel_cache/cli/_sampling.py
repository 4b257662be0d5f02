"""What Redis itself can tell of the cache: the keys, found by SCAN, no more of them than was asked for.

Nothing here touches a row: MEMORY and OBJECT leave its age and its frequency as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redis import exceptions

from .. import _keys
from ..transport._sampling import pattern_of
from ._app import CommandError
from ._servers import Node, Servers, replies

STEP = 1_000  # keys that one SCAN looks at: a millisecond of the server's time
PERMISSIONS = "+scan +dbsize +info +memory|usage +object|freq +object|idletime +pttl"


class Name(NamedTuple):
    """What a key says. `pk` is None for the table's shard, and begins with "/" for a hint of a unique key."""

    namespace: str
    table: str
    pk: str | None


@dataclass(slots=True)
class Extent:
    """How much was looked at."""

    examined: int = 0  # keys, whoever's
    keys: int = 0  # keys there are, whoever's

    @property
    def complete(self) -> bool:
        """Whether all were."""
        return self.examined >= self.keys

    @property
    def factor(self) -> float:
        """By what to multiply, to tell of all."""
        return 1.0 if self.complete or not self.examined else self.keys / self.examined


@dataclass(slots=True)
class Portion:
    """Keys that one SCAN has found, on their server."""

    client: Any
    names: dict[bytes, Name]
    bytes: list[int | None] = field(default_factory=list)  # of memory, in the order of the names


def parsed(key: bytes) -> Name | None:
    """Return what a key says, or None if it is none of the library's."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return None
    found = None if _CONTROL.search(text) else _KEY.fullmatch(text)
    return Name(found["namespace"], found["table"], found["pk"]) if found else None


_KEY = re.compile(r"[^{]*:\{(?P<namespace>[^/}]*)/(?P<table>[^}]*):\d+\}(?::(?P<pk>.*))?")
# The library escapes them; a stranger's would command the terminal, or turn its text around.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def sample(servers: Servers, key_prefix: str, limit: int, extent: Extent) -> Iterator[Portion]:
    """Yield the keys below a prefix, with their memory, until so many keys have been looked at.

    Raises:
        CommandError: the user may not SCAN.
    """
    for node in servers.nodes:
        try:
            yield from _of_node(node, key_prefix, -(-limit // len(servers.nodes)), extent)
        except exceptions.NoPermissionError as refused:
            raise CommandError(f"Redis refuses: {refused}. Sampling takes a user with {PERMISSIONS}") from None


def _of_node(node: Node, key_prefix: str, limit: int, extent: Extent) -> Iterator[Portion]:
    client = node.client
    here: int = client.execute_command("DBSIZE")
    extent.keys += here
    pattern = pattern_of(_keys.prefix(key_prefix))
    seen: set[bytes] = set()
    cursor, examined = 0, 0
    while examined < limit:
        count = min(STEP, limit - examined)
        reply = client.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", count)
        cursor, found = int(reply[0]), reply[1]
        examined += count
        names = {key: name for key in found if key not in seen and (name := parsed(key)) is not None}
        seen.update(names)
        portion = Portion(client, names)
        usage = replies(client, (("MEMORY", "USAGE", key) for key in names))
        portion.bytes = [each if isinstance(each, int) else None for each in usage]
        yield portion
        if cursor == 0:
            examined = here
            break
    extent.examined += min(examined, here)
