"""As what the answers to a read are counted: stands between its plan and the cache, and decides on nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._driver import NotAsked
from ._effects import Fill, Hit, Together
from ._plan import Effect
from ._protocol import Answer, Source
from .metrics import MissReason, ModelCounters, Outcome, RefusedReason


class Counting:
    """Executes the effects of one read that go to the cache, and takes note of what its rows are counted by."""

    def __init__(self, counters: ModelCounters, ask: Callable[[Effect[Any]], Any]) -> None:
        self.counters = counters
        self._ask = ask
        self.asked = True  # until the cache is not asked because it has not answered lately
        self.renews = False  # whether a row that is read was found valid before

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the cache's reply."""
        try:
            reply = self._ask(effect)
        except NotAsked:
            self.asked = False
            raise
        if isinstance(effect, Together):
            for each, its in zip(effect.effects, reply, strict=True):
                self._take(each, its)
        else:
            self._take(effect, reply)
        return reply

    def _take(self, effect: Effect[Any], reply: Any) -> None:
        if isinstance(effect, Fill):
            self.counters.bytes_written += len(effect.payload) if reply is True else 0
        elif isinstance(reply, Hit):
            self.counters.bytes_read += len(reply.payload)
        elif isinstance(reply, bytes):
            self.counters.bytes_read += len(reply)

    def count(
        self, answer: Answer[Any, Any], seconds: float, not_stored: RefusedReason
    ) -> tuple[Outcome, MissReason | None]:
        """Count an answer, which took some seconds, and return as what; `not_stored` is why it had no payload."""
        counters = self.counters
        counters.corrupt += answer.corrupt
        if answer.source in HITS:
            counters.hit(seconds, 0)  # whose bytes have been counted
            counters.near_hits += answer.near
            return ("near_hit" if answer.near else "hit"), None
        reason = self._reason(answer)
        counters.miss(seconds, reason)
        match answer.source:
            case Source.FILLED:
                counters.fills += 1
            case Source.SHARED:
                counters.shared += 1
            case Source.REFUSED:
                counters.not_stored["late"] += 1
            case Source.UNCACHED:
                counters.not_stored[not_stored] += 1
        return "miss", reason

    def _reason(self, answer: Answer[Any, Any]) -> MissReason:
        if answer.source is Source.FENCED:
            return "fenced"
        if answer.source is Source.UNREACHABLE:
            return "error" if self.asked else "breaker"
        if answer.corrupt:
            return "corrupt"
        return "renewal" if self.renews else "absent"


HITS = (Source.HIT, Source.ABSENT)
