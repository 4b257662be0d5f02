"""A driver that steps one plan by hand, for tests that say which effect must come next, and what they say it with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlmodel_cache import TransportError
from sqlmodel_cache import _protocol as protocol
from sqlmodel_cache._effects import ABSENT, Begin, End, Entry, Fill, Granted, Keys, Lease, Loaded, Lookup
from sqlmodel_cache._plan import Effect, Plan
from sqlmodel_cache.errors import CodecError

ENTRY = Entry("c:{t}:1", "c:{t}")
FINGERPRINT = b"release1"
KEYS = Keys((ENTRY.row,), (ENTRY.table,))
FENCE_TTL_MS = 60_000
TTL_MS = 300_000
GRANTED = Granted(b"row version", b"table version")
LOADED = Loaded("instance", b"row")
UNENCODED = Loaded("instance", None)
LOST = TransportError("lost")


class Ids:
    """Ids that can be told: id1, id2, ..."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return id_at(self.count)


def id_at(number: int) -> bytes:
    """Return the n-th id of a plan."""
    return f"id{number}".encode()


@dataclass
class Debts:
    """What is owed, and every change of it."""

    owed: list[Keys] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def owe(self, keys: Keys) -> None:
        """Remember keys."""
        self.told.append("owe")
        self.owed.append(keys)

    def ticket(self) -> int:
        """Return how much is owed."""
        return len(self.owed)

    def settle(self, keys: Keys, ticket: int) -> None:
        """Forget keys that were owed before the ticket."""
        self.told.append("settle")
        self.owed = [owed for number, owed in enumerate(self.owed) if owed != keys or number >= ticket]


class Driver:
    """Steps one plan: `asks` asserts its next effect and replies, `ends` asserts its result."""

    def __init__(self, plan: Plan[Any]) -> None:
        self._plan = plan
        self.result: Any = None
        self.is_done = False
        self._effect: Effect[Any] | None = None
        self._step(lambda: next(plan))

    def asks(self, effect: Effect[Any], reply: Any) -> None:
        """Assert that the plan's next effect is this one, and reply to it; an exception is thrown in."""
        assert not self.is_done, f"the plan has ended with {self.result}"
        assert self._effect == effect
        if isinstance(reply, Exception):
            self._step(lambda: self._plan.throw(reply))
        else:
            self._step(lambda: self._plan.send(reply))

    def ends(self, result: Any) -> None:
        """Assert that the plan has ended with this result."""
        assert self.is_done, f"the plan asks {self._effect}"
        assert self.result == result

    def _step(self, advance: Any) -> None:
        try:
            self._effect = advance()
        except StopIteration as done:
            self.is_done, self.result = True, done.value


def decode(payload: bytes) -> str:
    """Return a payload's text."""
    if payload in (b"bad", ABSENT):
        raise CodecError("not a row")
    return payload.decode()


def read(**options: Any) -> Driver:
    """Return a read of the row, at its first effect."""
    return Driver(protocol.read(ENTRY, reading(**options), new_id=Ids()))


def reading(**options: Any) -> protocol.Reading[str]:
    """Return how the row is wanted."""
    return protocol.Reading(FINGERPRINT, decode, TTL_MS, **options)


def lookup() -> Lookup:
    """Return a read's first effect."""
    return Lookup(ENTRY, FINGERPRINT)


def lease(number: int = 1, *, replace: bool = False) -> Lease:
    """Return a read's n-th lease."""
    return Lease(ENTRY, FINGERPRINT, id_at(number), replace)


def fill(payload: bytes = b"row") -> Fill:
    """Return a read's last effect."""
    return Fill(ENTRY, GRANTED, FINGERPRINT, payload, TTL_MS)


def begin(number: int) -> Begin:
    """Return a BEGIN with the n-th id."""
    return Begin(KEYS, id_at(number), FENCE_TTL_MS)


def end(token: int, number: int) -> End:
    """Return an END of a token, with the n-th id."""
    return End(KEYS, id_at(token), id_at(number))
