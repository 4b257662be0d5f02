"""The alphabet of the protocol: one frozen dataclass per round trip, and the replies.

`Lookup`, `Lease`, `Fill`, `Begin` and `End` go to the cache, through a transport. `Load` and `Commit` go to the
database, through the session that runs the plan. Times are in milliseconds; ids are 16 random bytes that are used
for one effect only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from ._plan import Effect

Row = TypeVar("Row")


VARIANTS = 4
"""How many payloads a row has at most, each under another fingerprint: two releases, two drivers, a subclass."""

ABSENT = b"\xc0"
"""The payload that says that there is no such row: msgpack's nil, which no row is, and no row that was cut short."""


class Entry(NamedTuple):
    """The two keys of a cached row, which share one hash slot."""

    row: str
    table: str


@dataclass(frozen=True, slots=True)
class Hit:
    """The payload of a valid value."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Granted:
    """Permission to fill: the version of the row's fence or value, and its table's, at the time of the lease."""

    version: bytes
    table_version: bytes


@dataclass(frozen=True, slots=True)
class Fenced:
    """A commit that touches the row is in flight: read the database and do not fill."""


LeaseReply: TypeAlias = Hit | Granted | Fenced


@dataclass(frozen=True, slots=True)
class Lookup(Effect[bytes | None]):
    """Return the payload if the row is a value with this fingerprint and its table is unchanged and unfenced."""

    entry: Entry
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Lease(Effect[LeaseReply]):
    """Return a valid payload, or permission to fill, or `Fenced`. `replace` distrusts the payload that is there."""

    entry: Entry
    fingerprint: bytes
    id: bytes
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Fill(Effect[bool]):
    """Store a payload; return False if the lease is no longer the row's version or a commit is in flight.

    A value of that version keeps the payloads of other fingerprints, up to `VARIANTS`, and what is left of its TTL.
    """

    entry: Entry
    lease: Granted
    fingerprint: bytes
    payload: bytes = field(repr=False)
    ttl_ms: int = 0


class Keys(NamedTuple):
    """The keys that one transaction writes: single rows, and whole tables by their shards."""

    rows: tuple[str, ...]
    tables: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rows or self.tables)

    def without(self, others: Keys) -> Keys:
        """Return the keys that are not among others."""
        rows, tables = set(others.rows), set(others.tables)
        return Keys(
            tuple(key for key in self.rows if key not in rows), tuple(key for key in self.tables if key not in tables)
        )


@dataclass(frozen=True, slots=True)
class Begin(Effect[None]):
    """Give every key a new version and a pending token that lapses after `fence_ttl_ms`."""

    keys: Keys
    id: bytes
    fence_ttl_ms: int


@dataclass(frozen=True, slots=True)
class End(Effect[None]):
    """Remove the token from every key; a key that does not hold it gets a new version instead."""

    keys: Keys
    token: bytes
    id: bytes


class Outcome(Enum):
    """What is known of a COMMIT that was sent."""

    COMMITTED = "committed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Commit(Effect[Outcome]):
    """Send the database's COMMIT."""


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Row]):
    """A row from the database.

    `payload` is None when it must not be cached: the row is missing and its absence not cached, the transaction's own
    write, of an older snapshot, or has values that the codec cannot carry.
    """

    row: Row
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Load(Effect[Loaded[Row]]):
    """Send the SELECT. `encode` is False when its payload is not wanted."""

    encode: bool = True
