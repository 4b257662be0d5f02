"""The alphabet of the protocol: one frozen dataclass per round trip, and the replies.

`Lookup`, `Lease`, `Fill`, `Resign`, `Begin`, `End` and `Peek` go to the cache, through a transport, and `Together`
takes several of them in one round trip. `Load`, `LoadMany`, `Locate` and `Commit` go to the database, through the
session that runs the plan. `Join`, `Depart`, `Land` and `Wait` stay in the process. Times are in milliseconds; ids are
16 random bytes that are used for one effect only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from ._plan import Effect
from .errors import TransportError

R = TypeVar("R")
Row = TypeVar("Row")


VARIANTS = 4
"""How many payloads a row has at most, each under another fingerprint: two releases, two drivers, a subclass."""

ABSENT = b"\xc0"
"""The payload that says that there is no such row: msgpack's nil, which no row is, and no row that was cut short."""


class NearPayload(bytes):
    """A payload that the near cache replies with, for those who count."""

    __slots__ = ()


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
    """Permission to fill: the version of the row's fence or value, and its table's, at the time of the lease.

    `elected` says that others are asked to wait for this fill: it comes soon, or `Resign` does.
    """

    version: bytes
    table_version: bytes
    elected: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Filling:
    """The same permission, but somebody else has been elected to fill, and has `left_ms` of the time to do so."""

    lease: Granted
    left_ms: int


@dataclass(frozen=True, slots=True)
class Fenced:
    """A commit that touches the row is in flight: read the database and do not fill."""


LeaseReply: TypeAlias = Hit | Granted | Filling | Fenced


@dataclass(slots=True, unsafe_hash=True)  # every hit makes one, and a frozen one takes twice as long to make
class Lookup(Effect[bytes | None]):
    """Return the payload if the row is a value with this fingerprint and its table is unchanged and unfenced.

    `near` allows the reply to come from this process's near cache, under the guarantee that it has.
    """

    entry: Entry
    fingerprint: bytes
    near: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Lease(Effect[LeaseReply]):
    """Return a valid payload, or permission to fill, or `Fenced`.

    Where the row is a fence, the first to ask is elected to fill it, and whoever asks within the next `elect_ms` is
    told so (`Filling`); 0 asks for no election and hears of none. `replace` asks for permission to fill although a
    valid payload may be there: it is corrupt, or about to expire.
    """

    entry: Entry
    fingerprint: bytes
    id: bytes
    replace: bool = False
    elect_ms: int = 0


@dataclass(frozen=True, slots=True)
class Fill(Effect[bool]):
    """Store a payload; return False if the lease is no longer the row's version or a commit is in flight.

    A value of that version keeps the payloads of other fingerprints, up to `VARIANTS`, and what is left of its TTL.
    With `renew` it keeps neither: other payloads would outlive the TTL under which they were stored.
    """

    entry: Entry
    lease: Granted
    fingerprint: bytes
    payload: bytes = field(repr=False)
    ttl_ms: int = 0
    renew: bool = False


@dataclass(frozen=True, slots=True)
class Peeked:
    """What is stored of a row.

    Attributes:
        payloads: of a value, by fingerprint; None if there is no value.
        pending: how many commits of the row are in flight, or were when they were last heard of; None if there is no
            fence.
        invalid: why a value is not valid, or None.
    """

    payloads: Mapping[bytes, bytes] | None = None
    pending: int | None = None
    invalid: Literal["pending", "written", "server"] | None = None


@dataclass(frozen=True, slots=True)
class Peek(Effect[Peeked]):
    """Return what is stored of a row, whoever may use it. Nothing depends on the reply but what people are told."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Resign(Effect[None]):
    """Give up an election: there is nothing to fill, and nobody needs to wait for it. The lease itself stands."""

    entry: Entry
    lease: Granted


class Keys(NamedTuple):
    """The keys that one transaction writes: single rows, and whole tables by their shards."""

    rows: tuple[str, ...]
    tables: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rows or self.tables)

    def including(self, others: Keys) -> Keys:
        """Return these keys, and others that are not among them."""
        more = others.without(self)
        return Keys(self.rows + more.rows, self.tables + more.tables)

    def without(self, others: Keys) -> Keys:
        """Return the keys that are not among others."""
        rows, tables = set(others.rows), set(others.tables)
        return Keys(
            tuple(key for key in self.rows if key not in rows), tuple(key for key in self.tables if key not in tables)
        )


NO_KEYS = Keys((), ())


@dataclass(frozen=True, slots=True)
class Begin(Effect[None]):
    """Give every key a new version and a pending token that lapses after `fence_ttl_ms`.

    Replies when so many replicas have it, and fails when they do not in time.
    """

    keys: Keys
    id: bytes
    fence_ttl_ms: int
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class End(Effect[None]):
    """Remove the token from every key; a key that does not hold it gets a new version instead.

    `replicas` as in `Begin`. `insists` is of a fence that was set: it is sent even to a cache that has been given up.
    """

    keys: Keys
    token: bytes
    id: bytes
    replicas: int = 0
    insists: bool = field(default=False, compare=False)  # how it is sent, not what it says


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
    """Send the SELECT. `encode` is False when its payload is not wanted.

    `spare` allows the reply None where no connection can be had: then nothing has happened to the transaction.
    """

    encode: bool = True
    spare: bool = False


@dataclass(frozen=True, slots=True)
class LoadMany(Effect[Sequence[Loaded[Row]]]):
    """Send one SELECT for several rows, given by their places among those asked for; replies in this order.

    `encode` says for each whether its payload is wanted.
    """

    places: tuple[int, ...]
    encode: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Located(Generic[Row]):
    """A row from the database that was asked for by a unique key.

    `entry` is where its primary key is cached, and `hint` the payload that leads there from the unique key; both are
    None when there is no such row, or nobody else may be told of it.
    """

    loaded: Loaded[Row]
    entry: Entry | None
    hint: bytes | None


@dataclass(frozen=True, slots=True)
class Locate(Effect[Located[Row]]):
    """Send the SELECT by the unique key. `encode` is False when no payload is wanted."""

    encode: bool = True


@dataclass(frozen=True, slots=True)
class Together(Effect[tuple["R | TransportError", ...]], Generic[R]):
    """Perform several effects of the cache in one round trip, in no particular order.

    Each is atomic, all together are not. One that has failed replies with its TransportError.
    """

    effects: tuple[Effect[R], ...]


# In the process: readers of one row that miss at the same time.


@dataclass(frozen=True, slots=True)
class Leads:
    """Nobody else in this process is about to load the row: do it, for those who join."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What the one who leads has loaded; None when there is nothing to share, or it took too long."""

    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Join(Effect["Leads | Landed"]):
    """Wait for a load of the row that has not been sent yet, at most `wait_ms`; lead one if there is none."""

    entry: Entry
    fingerprint: bytes
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Depart(Effect[None]):
    """Nobody may join any more: the SELECT is about to be sent."""


@dataclass(frozen=True, slots=True)
class Land(Effect[None]):
    """Tell those who joined what was loaded, or None."""

    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Wait(Effect[None]):
    """Let time pass."""

    ms: int
