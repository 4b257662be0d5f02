"""Which gets there were while somebody asked: what `SQLModelCache.trace()` lists, and what spans are made of.

While nobody asks, a get reads one name of this module.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .metrics import Outcome


@dataclass(frozen=True, slots=True)
class TracedGet:
    """One get of a cached model."""

    model: str  # "app.models:Hero"
    pk: str | None  # as in keys; None with `hash_keys`, and where the row's key is not known
    outcome: Outcome  # "hit", "near_hit", "miss" or "bypass"
    reason: str | None  # why it was a miss or a bypass; the words are those of `ModelStats`
    seconds: float  # that it took; rows of one get_many have equal parts

    def __str__(self) -> str:
        outcome = self.outcome if self.reason is None else f"{self.outcome} ({self.reason})"
        return f"{self.model} {self.pk or '-'}: {outcome}, {self.seconds * 1000:.3f} ms"


class Trace:
    """The gets of a block, in the order in which they ended. `print()` it."""

    def __init__(self) -> None:
        self._gets: list[TracedGet] = []
        self._ended = False

    @property
    def gets(self) -> tuple[TracedGet, ...]:
        """Those so far."""
        return tuple(self._gets)

    def add(self, get: TracedGet) -> None:
        """List a get, unless the block has ended."""
        if not self._ended:
            self._gets.append(get)

    def end(self) -> None:
        """List no more: the block's tasks may outlive it."""
        self._ended = True

    def __iter__(self) -> Iterator[TracedGet]:
        return iter(self.gets)

    def __len__(self) -> int:
        return len(self._gets)

    def __str__(self) -> str:
        return "\n".join(map(str, self._gets)) or "no get"


Watcher = Callable[[TracedGet], object]

active = False  # whether anybody asks, anywhere in the process: every get reads it

_traces: ContextVar[tuple[Trace, ...]] = ContextVar("sqlmodel_cache_traces", default=())
_lock = threading.Lock()  # guards the two below, and writes to `active`
_open = 0  # traces
_watchers: tuple[Watcher, ...] = ()


@contextmanager
def trace() -> Iterator[Trace]:
    """List the gets of this block: of its thread or task, and of those that inherit its context."""
    found = Trace()
    _traces.set((*_traces.get(), found))
    _change(opened=1)
    try:
        yield found
    finally:
        found.end()
        _change(opened=-1)
        # Not by its token: blocks may end in another order than they began in, and in another context.
        _traces.set(tuple(each for each in _traces.get() if each is not found))


def watch(watcher: Watcher) -> None:
    """Call something with every get of the process, in the thread and the context of the get. It must not raise."""
    _change(add=(watcher,))


def unwatch(watcher: Watcher) -> None:
    """Call it no more."""
    _change(remove=(watcher,))


def record(get: TracedGet) -> None:
    """Tell a get to all who ask."""
    for found in _traces.get():
        found.add(get)
    for watcher in _watchers:
        watcher(get)


def _change(*, opened: int = 0, add: tuple[Watcher, ...] = (), remove: tuple[Watcher, ...] = ()) -> None:
    global active, _open, _watchers
    with _lock:
        _open += opened
        _watchers = tuple(watcher for watcher in (*_watchers, *add) if watcher not in remove)
        active = bool(_open or _watchers)
