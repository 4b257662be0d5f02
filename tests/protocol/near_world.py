"""Steps readers and writers behind a near cache in every possible order, with what Redis tells in between.

One process has the near cache: its readers R and its writer W. X is a writer of another process. What they send is
executed in one step and replied to in another. What is written is told in order, each message in a step of its own,
over a connection that may be cut, found to be lost, and opened again. As in `schedules.py` the search is breadth
first; here a state is reached by replaying the steps that led to it.

The oracle, in every state that can be reached:

    a   a get of this process does not hit near what is older than a commit of its own that has returned
    b   it does not hit near what is older than a commit of its own that has taken effect
    c   it hits near only what the cache itself holds, once everything has been told
    d   it does hit near, at the second try, when all is quiet and the cache holds the row
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from protocol.programs import ENTRY, FENCE_TTL_MS, FINGERPRINT, ROW, TTL_MS, Process, decode, payload_of

from sqlmodel_cache import MemoryTransport, _protocol
from sqlmodel_cache._effects import Begin, Commit, End, Fill, Keys, Lease, Load, Loaded, Lookup, Outcome, Together
from sqlmodel_cache._near import Near
from sqlmodel_cache._plan import Effect, Plan, perform, run
from sqlmodel_cache._protocol import Reading
from sqlmodel_cache.errors import TransportError

LOOKUP = Lookup(ENTRY, FINGERPRINT, near=True)
EVERYTHING = "everything"

Program = Callable[[Process], Plan[Any]]


def in_front(near: Near, plan: Plan[Any]) -> Plan[Any]:
    """Return a plan whose effects go through a near cache, as the driver does it."""
    try:
        effect = next(plan)
        while True:
            try:
                passes = type(effect) not in near.kinds or (isinstance(effect, Lookup) and not effect.near)
                reply = yield from perform(effect) if passes else near.plan(effect)
            except TransportError as error:
                effect = plan.throw(error)
            else:
                effect = plan.send(reply)
    except StopIteration as done:
        return done.value
    finally:
        plan.close()


def look_up(process: Process) -> Plan[Any]:
    """A reader that does not fill."""
    yield from perform(LOOKUP)


def look_up_together(process: Process) -> Plan[Any]:
    """The same, with several look-ups at once."""
    yield from perform(Together((LOOKUP, LOOKUP)))


def read(process: Process) -> Plan[Any]:
    """A reader that fills."""
    reading = Reading(FINGERPRINT, decode, TTL_MS, near=True)
    yield from _protocol.read(ENTRY, reading, new_id=process.new_id)


def fill_and_look_up(process: Process) -> Plan[Any]:
    """A reader that has missed, fills, and is asked again."""
    reading = Reading(FINGERPRINT, decode, TTL_MS, near=True)
    yield from _protocol.missed(ENTRY, reading, new_id=process.new_id)
    yield from perform(LOOKUP)


def write(keys: Keys = ROW) -> Program:
    """Return a writer."""

    def program(process: Process) -> Plan[Any]:
        debts, new_id = process.debts, process.new_id
        yield from _protocol.commit(keys, debts, refuse=False, fence_ttl_ms=FENCE_TTL_MS, new_id=new_id)

    return program


@dataclass(frozen=True)
class Scene:
    """Who takes part, and what may go wrong, how often."""

    readers: tuple[Program, ...] = (look_up,)
    writer: Program | None = None  # of this process
    other: Program | None = None  # of another one
    warm: bool = True  # the cache holds the row
    near_warm: bool = False  # this process does, too
    cuts: int = 0  # of the connection that tells
    lost: int = 0  # replies that do not arrive, though the command did
    late: int = 0  # commands that arrive after their sender has given them up
    flushes: int = 0
    evictions: int = 0  # of the row in the cache
    promise: str = "abcd"
    near: type[Near] = Near


@dataclass
class Actor:
    """A program under way."""

    name: str
    plan: Plan[Any]
    process: Process
    effect: Effect[Any] | None = None
    reply: Any = None
    begun: bool = False
    replied: bool = False  # the cache has; the program has not heard it
    log: list[str] = field(default_factory=list)


class World:
    """One state, reached by the steps in `path`."""

    def __init__(self, scene: Scene) -> None:
        self.store = MemoryTransport(clock=lambda: 1_000.0)
        self.near = scene.near(10, 60.0, clock=lambda: 0.0)
        self.near.alive(0.0)
        self.told: list[Any] = []  # what is on its way to this process
        self.line = "up"
        self.current = self.committed = self.returned = 0
        self.budgets = {name: getattr(scene, name) for name in ("cuts", "lost", "late", "flushes", "evictions")}
        self.stray: list[Effect[Any]] = []
        if scene.warm:
            run(read(Process("warm")), lambda effect: self._execute(effect, quietly=True))
        if scene.near_warm:
            run(self.near.plan(LOOKUP), self.store.execute)
        programs = [(f"R{at}", program) for at, program in enumerate(scene.readers, 1)]
        programs += [(name, program) for name, program in (("W", scene.writer), ("X", scene.other)) if program]
        self.actors = [self._actor(name, program) for name, program in programs]

    def _actor(self, name: str, program: Program) -> Actor:
        process = Process(name)
        plan = program(process)
        return Actor(name, plan if name == "X" else in_front(self.near, plan), process)

    def _go_on(self, actor: Actor, step: Callable[[], Effect[Any]]) -> None:
        actor.begun, actor.replied = True, False
        try:
            actor.effect = step()
        except (StopIteration, TransportError):
            actor.effect = None
            if actor.name == "W":
                self.returned = self.committed
        ticket = self.near._count if type(actor.effect) in (Lookup, Together) else 0  # what a plan may remember of it
        actor.log.append(f"{actor.effect} {ticket}")

    # steps

    def steps(self) -> Iterator[str]:
        """Yield the names of what may happen next."""
        for actor in self.actors:
            if not actor.begun:
                yield f"{actor.name}: begins"
            if actor.effect is None:
                continue
            what = f"{actor.name}: {type(actor.effect).__name__}"
            if actor.replied:
                yield f"{what} replies"
                yield from [f"{what}: the reply is lost"] if self.budgets["lost"] and self._may_fail(actor) else []
            else:
                yield f"{what} is executed"
                yield from [f"{what} is late"] if self.budgets["late"] and self._may_fail(actor) else []
        yield from [f"stray {at}" for at in range(len(self.stray))]
        if self.told:
            yield "told"
        if self.line == "up" and self.budgets["cuts"]:
            yield "cut"
        if self.line == "cut":
            yield "found lost"
        if self.line == "lost":
            yield "opened"
        if self.budgets["flushes"]:
            yield "flush"
        if self.budgets["evictions"]:
            yield "evicted"

    def _may_fail(self, actor: Actor) -> bool:
        return type(actor.effect) not in (Load, Commit)

    def do(self, step: str) -> None:
        """Take a step."""
        who, _, what = step.partition(": ")
        actor = next((actor for actor in self.actors if actor.name == who), None)
        if actor is not None:
            if what == "begins":
                self._go_on(actor, lambda: next(actor.plan))
            elif what.endswith("is executed"):
                actor.reply, actor.replied = self._perform(actor), True
            elif what.endswith("replies"):
                self._go_on(actor, lambda: actor.plan.send(actor.reply))
            else:
                if what.endswith("late") and actor.effect is not None:
                    self.stray.append(actor.effect)
                    self.budgets["late"] -= 1
                else:
                    self.budgets["lost"] -= 1
                self._go_on(actor, lambda: actor.plan.throw(TransportError("lost")))
        elif step.startswith("stray"):
            self._execute(self.stray.pop(int(step[6:])))
        elif step == "told":
            self._hear(self.told.pop(0))
        elif step == "cut":
            self.line, self.told = "cut", []
            self.budgets["cuts"] -= 1
        elif step == "found lost":
            self.line = "lost"
            self.near.lost()
        elif step == "opened":
            self.line = "up"
            self.near.alive(0.0)
        elif step == "flush":
            self.store.clear()
            self._tell(EVERYTHING)
            self.budgets["flushes"] -= 1
        else:
            self.store.evict(ENTRY.row)
            self._tell([ENTRY.row])
            self.budgets["evictions"] -= 1

    def _perform(self, actor: Actor) -> Any:
        effect: Any = actor.effect
        if isinstance(effect, Load):
            return Loaded(self.current, payload_of(self.current) if effect.encode else None)
        if isinstance(effect, Commit):
            self.current += 1
            if actor.name == "W":
                self.committed = self.current
            return Outcome.COMMITTED
        return self._execute(effect)

    def _execute(self, effect: Effect[Any], *, quietly: bool = False) -> Any:
        if quietly and isinstance(effect, Load):
            return Loaded(0, payload_of(0))
        reply = self.store.execute(effect)
        if isinstance(effect, Begin | End):
            self._tell([*effect.keys.rows, *effect.keys.tables], quietly=quietly)
        elif isinstance(effect, Lease | Fill):
            self._tell([effect.entry.row], quietly=quietly)
        return reply

    def _tell(self, what: Any, *, quietly: bool = False) -> None:
        if self.line == "up" and not quietly:
            self.told.append(what)

    def _hear(self, what: Any) -> None:
        if what == EVERYTHING:
            self.near.empty()
        else:
            self.near.hear(what)

    # the oracle

    def violations(self) -> Iterator[str]:
        """Yield the letters of what is broken now."""
        payload = self.near.find(LOOKUP)
        hit = None if payload is None else decode(payload)
        if hit is not None and hit < self.returned:
            yield "a"
        if hit is not None and hit < self.committed:
            yield "b"
        complete = self.line == "up" and not self.told
        if complete and payload is not None and payload != self.store.execute(LOOKUP):
            yield "c"
        quiet = complete and not self.stray and all(actor.begun and actor.effect is None for actor in self.actors)
        if quiet and self.store.execute(LOOKUP) is not None:
            run(self.near.plan(LOOKUP), self.store.execute)
            if self.near.find(LOOKUP) is None:
                yield "d"

    def digest(self) -> object:
        """Return a value that is equal for states in which the same will happen."""
        near = self.near
        held = [(row, bytes(one.payload), one.heard) for row, one in near._rows.items()]
        heard = near._count, tuple(near._moved.items()), tuple(near._moved_tables.items()), near._floor
        actors = tuple((tuple(actor.log), actor.replied, repr(actor.reply)) for actor in self.actors)
        store = repr(self.store._rows), repr(self.store._tables), self.store._count
        told, stray = repr(self.told), repr(self.stray)
        versions = self.current, self.committed, self.returned
        return store, tuple(held), heard, actors, told, stray, versions, self.line, tuple(self.budgets.values())


@dataclass
class Found:
    """What an exploration found: how many states, and a shortest path to each violation."""

    states: int = 0
    steps: int = 0
    near_hits: int = 0  # states in which a get hits near
    traces: dict[str, list[str]] = field(default_factory=dict)


def explore(scene: Scene, until: str | None = None) -> Found:
    """Return what every schedule of a scene leads to; stops at the first violation of `until`."""
    found = Found()
    paths: list[tuple[str, ...]] = [()]
    seen: set[object] = set()
    for path in paths:  # grows while it is walked
        world = World(scene)
        for step in path:
            world.do(step)
        digest = hash(world.digest())
        if digest in seen:
            continue
        seen.add(digest)
        found.states += 1
        found.near_hits += world.near.find(LOOKUP) is not None
        steps = list(world.steps())
        for letter in scene.promise:
            if letter in world.violations():
                found.traces.setdefault(letter, list(path))
        if until is not None and until in found.traces:
            break
        paths += [(*path, step) for step in steps]
        found.steps += len(steps)
    return found
