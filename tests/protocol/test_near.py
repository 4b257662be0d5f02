"""The near cache in every order of steps: right as it is, and seen to be wrong without any one guard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from protocol.near_world import Scene, explore, fill_and_look_up, look_up, look_up_together, read, write
from protocol.programs import TABLE

from sqlmodel_cache._effects import Begin, End, Entry, Lookup, Together
from sqlmodel_cache._near import Near, Ticket
from sqlmodel_cache._plan import Plan, perform

OWN = Scene((look_up, look_up), write())
OWN_TABLE = Scene((look_up, look_up), write(TABLE))
OTHER = Scene((look_up, look_up), other=write())
OTHER_TABLE = replace(OTHER, other=write(TABLE))
BROKEN = Scene((look_up,), write(), near_warm=True, lost=1, late=1)
CUT = Scene((look_up,), other=write(), near_warm=True, cuts=1)
# A lost fence is one fault too many for (b), of the protocol as well.
FORGETFUL = Scene((fill_and_look_up,), write(), warm=False, evictions=1, promise="acd")

SCENES = {
    "own commit": OWN,
    "own commit of a table": OWN_TABLE,
    "own commit, look-ups together": replace(OWN, readers=(look_up, look_up_together)),
    "own commit, and a reader that fills": Scene((read, look_up), write(), warm=False),
    "own commit, replies lost and commands late": BROKEN,
    "own commit while the cache forgets the fence": FORGETFUL,
    "another's commit": OTHER,
    "another's commit of a table": OTHER_TABLE,
    "both commit": Scene((look_up,), write(), write(), near_warm=True),
    "another's commit while the connection is cut": CUT,
    "a flush": Scene((look_up,), other=write(), near_warm=True, flushes=1),
}


@pytest.mark.parametrize("name", SCENES)
def test_near_cache_is_coherent(name: str) -> None:
    """No schedule breaks a promise, and in some state of each a get hits near."""
    found = explore(SCENES[name])
    print(f"\n{name}: {found.states:,} states, {found.steps:,} steps, near hits in {found.near_hits:,}")
    assert not found.traces
    assert found.near_hits


class StoresAnything(Near):
    """A payload is stored whatever its ticket has missed."""

    def _has_moved(self, entry: Entry, heard: int) -> bool:
        return False


class TakesItsTicketAfterwards(Near):
    """The ticket is taken when the reply is there."""

    def _look_up(self, lookup: Lookup) -> Plan[bytes | None]:
        payload: bytes | None = self.find(lookup)
        if payload is None:
            payload = yield from perform(lookup)
            self.store(lookup, payload, self.ticket())
        return payload


class TakesItsTicketAfterwardsTogether(Near):
    """The same, where several look-ups are sent at once."""

    def _together(self, effects: Any) -> Plan[Any]:
        replies = yield from perform(Together(effects))
        for lookup, payload in zip(effects, replies, strict=True):
            self.store(lookup, payload, self.ticket())
        return replies


class HearsBefore(Near):
    """BEGIN and END are heard of before they are sent, and not at their replies."""

    def _tell(self, effect: Begin | End) -> Plan[None]:
        self.hear((*effect.keys.rows, *effect.keys.tables))
        yield from perform(effect)


class HearsBeginOnly(Near):
    """END is not heard of."""

    def _tell(self, effect: Begin | End) -> Plan[None]:
        return super()._tell(effect) if isinstance(effect, Begin) else perform(effect)


class HearsEndOnly(Near):
    """BEGIN is not heard of."""

    def _tell(self, effect: Begin | End) -> Plan[None]:
        return super()._tell(effect) if isinstance(effect, End) else perform(effect)


class HearsRepliesOnly(Near):
    """A command whose reply is lost is not heard of."""

    def _tell(self, effect: Begin | End) -> Plan[None]:
        yield from perform(effect)
        self.hear((*effect.keys.rows, *effect.keys.tables))


class IgnoresTables(Near):
    """A table that has been written does not concern its rows."""

    def hear(self, keys: Iterable[str]) -> None:
        super().hear([key for key in keys if not key.endswith("}")])


class IgnoresRows(Near):
    """A row that has been written is dead for the tickets, but stays."""

    def hear(self, keys: Iterable[str]) -> None:
        held = self._rows.copy()
        super().hear(keys)
        self._rows.update(held)


class IgnoresFlushes(Near):
    """A flush is not heard of."""

    def empty(self) -> None:
        pass

    def lost(self) -> None:
        self._alive_until = float("-inf")
        super().empty()


class IgnoresLoss(Near):
    """When the connection is lost nothing is served; when it is there again, what was served before."""

    def lost(self) -> None:
        self._alive_until = float("-inf")


class StoresWhileNobodyListens(Near):
    """A ticket is given while the connection is lost, too."""

    def ticket(self) -> Ticket | None:
        return Ticket(self._count, 60.0)


MUTANTS = [
    ("a", StoresAnything, OWN),
    ("c", StoresAnything, OTHER),
    ("a", TakesItsTicketAfterwards, OWN),
    ("a", TakesItsTicketAfterwardsTogether, replace(OWN, readers=(look_up_together,))),
    ("b", HearsBefore, OWN),
    ("a", HearsBeginOnly, FORGETFUL),
    ("b", HearsEndOnly, OWN),
    ("b", HearsRepliesOnly, BROKEN),
    ("a", IgnoresTables, OWN_TABLE),
    ("c", IgnoresTables, OTHER_TABLE),
    ("a", IgnoresRows, OWN),
    ("c", IgnoresRows, OTHER),
    ("c", IgnoresFlushes, SCENES["a flush"]),
    ("c", IgnoresLoss, CUT),
    ("c", StoresWhileNobodyListens, CUT),
]


@pytest.mark.parametrize(("letter", "mutant", "scene"), MUTANTS, ids=lambda value: getattr(value, "__name__", None))
def test_guard_is_needed(letter: str, mutant: type[Near], scene: Scene) -> None:
    """Without the guard some schedule breaks the promise, and its trace can be read."""
    found = explore(replace(scene, near=mutant), until=letter)
    assert letter in found.traces
    print(f"\nwithout the guard, {mutant.__name__}:", *found.traces[letter], sep="\n    ")
    assert len(found.traces[letter]) <= 18
