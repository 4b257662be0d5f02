"""A bounded look at the keys that are held, for a dashboard: which are large, and which are read a lot.

The plan says what is asked of one Redis server. It asks nothing that counts as a use of a key: who looks on must not
keep rows from being evicted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from .._plan import Effect, Plan, perform

STEP = 500  # keys that one SCAN looks at
STEPS = 20  # SCANs of one sample, however few keys they find
PROBES = 8  # keys that are asked to find out which of the two kinds of heat the server tells
PORTION = 100  # keys that one round trip asks about

Heat: TypeAlias = Literal[
    "frequency",  # Redis's counter of uses
    "recency",  # minus the seconds since the last use
    "order",  # minus the number of keys that were used since
]


@dataclass(frozen=True, slots=True)
class Held:
    """One key."""

    key: str
    bytes: int  # of memory, with its overhead in Redis; without, in this process
    ttl: float | None  # seconds
    heat: float  # larger is hotter: as `Sample.heat` says


class Sample(NamedTuple):
    """Some keys, whether they are all that there are, and what their heat means."""

    held: list[Held]
    complete: bool
    heat: Heat


@dataclass(frozen=True, slots=True)
class Say(Effect[list[Any]]):
    """Send a server some lines; the reply to each may be an error."""

    lines: Sequence[Sequence[Any]]


def pattern_of(prefix: str) -> str:
    """Return the pattern by which SCAN finds the keys that begin with a prefix."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"


def sample(prefix: str, most: int) -> Plan[Sample]:
    """Return what is known of the keys of one server that begin with a prefix; raises its errors."""
    pattern = pattern_of(prefix)
    keys: dict[bytes, None] = {}
    cursor = 0
    for _ in range(STEPS):
        [reply] = yield from perform(Say([("SCAN", cursor, "MATCH", pattern, "COUNT", STEP)]))
        cursor, found = int(_or_raise(reply)[0]), reply[1]
        keys.update(dict.fromkeys(found))
        if cursor == 0 or len(keys) >= most:
            break
    complete = cursor == 0 and len(keys) <= most
    names = list(keys)[:most]
    heat: Heat = "recency"
    if names:
        # Which of the two a server tells depends on its eviction policy. The other is an error, unless the key is gone.
        told = yield from perform(Say([("OBJECT", "FREQ", name) for name in names[:PROBES]]))
        heat = "recency" if any(isinstance(reply, Exception) for reply in told) else "frequency"
    held = []
    for start in range(0, len(names), PORTION):
        portion = names[start : start + PORTION]
        replies = yield from perform(Say([line for name in portion for line in _about(name, heat)]))
        for at, name in enumerate(portion):
            size, ttl_ms, how_hot = map(_or_raise, replies[3 * at : 3 * at + 3])
            if size is not None and how_hot is not None:  # otherwise it is gone
                ttl = int(ttl_ms) / 1000 if int(ttl_ms) >= 0 else None
                hotness = float(how_hot) if heat == "frequency" else -float(how_hot)
                held.append(Held(name.decode(errors="replace"), int(size), ttl, hotness))
    return Sample(held, complete, heat)


def _about(name: bytes, heat: Heat) -> list[tuple[Any, ...]]:
    subcommand = "FREQ" if heat == "frequency" else "IDLETIME"
    return [("MEMORY", "USAGE", name), ("PTTL", name), ("OBJECT", subcommand, name)]


def _or_raise(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


def together(samples: Sequence[Sample]) -> Sample:
    """Return the samples of several servers as one."""
    held = [each for one in samples for each in one.held]
    return Sample(held, all(one.complete for one in samples), samples[0].heat)
