"""Steps several plans in every possible order, with faults at every step, and checks an oracle in every state.

Breadth first, so that a counterexample is a shortest one. A generator cannot be copied, but it is a function of the
replies that it has received: a process is kept as its list of replies, and its plan is replayed where its next effect
is not yet known. So states are plain values, and each is visited once, however many schedules lead to it.

The oracle, in every state that can be reached:

    a   a reader that begins now does not hit a row that is older than a commit which has returned
    b   it hits what the database holds now: hits are linearizable with the commit points
    c   it does not hit what nobody has committed
    j   what a reader is told, by a hit or by another reader, is not older than a commit that had returned when it
        began; and no verifier says that a cached row differs from the database's
    d   when all writers are done and all deadlines have passed, two quiet reads end in a hit: never stuck
    p   when all writers are done and owe nothing, no stale row is left behind
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from protocol.programs import ENTRY, HINT, HINTED, Abort, Process, Program, Snapshot, Update, has_key, payload_of
from protocol.scenario import LOST, OVER, Position, Proc, Report, Scenario, State, Step
from protocol.world import (
    DEAD,
    EMPTY,
    LIVE_ROW,
    LIVE_TABLE,
    Cells,
    Names,
    Shelf,
    elected,
    elsewhere,
    lapsed,
    pending,
    show,
    too_late,
    word,
)

from sqlmodel_cache._effects import (
    ABSENT,
    Begin,
    Commit,
    Depart,
    End,
    Entry,
    Fill,
    Filling,
    Granted,
    Join,
    Land,
    Landed,
    Leads,
    Lease,
    Load,
    Loaded,
    LoadMany,
    Locate,
    Located,
    Lookup,
    Outcome,
    Resign,
    Together,
    Wait,
)
from sqlmodel_cache._plan import Effect
from sqlmodel_cache._protocol import Answer
from sqlmodel_cache._verify import Compared
from sqlmodel_cache.errors import TransportError


def explore(scenario: Scenario, until: str | None = None) -> Report:
    """Return what every schedule of a scenario leads to; stops at the first violation of `until`."""
    return Explorer(scenario).run(until)


class Explorer:
    """One exploration."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.shelf = Shelf(scenario.transport, exact=scenario.restores)
        self.programs: list[Program] = []
        self.names: list[str] = []
        self._procs: list[Proc] = []
        self._proc_numbers: dict[Proc, int] = {}
        self._effects: list[Effect[Any]] = []
        self._effect_numbers: dict[Effect[Any], int] = {}
        self._positions: dict[tuple[int, tuple[Any, ...]], Position] = {}
        self._renamed: dict[tuple[int, bool, bool], int] = {}
        self._writers = len(scenario.writers)
        self._start = self.shelf.filled(scenario.warm) if scenario.warm is not None else EMPTY

    def run(self, until: str | None) -> Report:
        """Return the report."""
        report = Report()
        procs = tuple(self._number(Proc(self._program(i))) for i in range(self._writers + len(self.scenario.readers)))
        budgets = (self.scenario.crashes, self.scenario.lost, self.scenario.evictions)
        starts = dict.fromkeys((EMPTY, self._start))
        states = [State(cells, 0, 0, -1, procs, (), *budgets, copy=cells) for cells in starts]
        origin: list[tuple[int, str]] = [(-1, f"start: {show(state.cells)}") for state in states]
        number = {state: at for at, state in enumerate(states)}
        edges: list[list[int]] = []
        for at, state in enumerate(states):  # grows while it is walked
            for letter, why in self._violations(state):
                if letter not in report.traces:
                    report.traces[letter] = [*_trace(origin, at), why]
            if until is not None and until in report.traces:
                break
            edges.append(targets := [])
            for event, after in self._steps(state):
                report.seen[_kind(event)] += 1
                found = number.get(after)
                if found is None:
                    found = number[after] = len(states)
                    states.append(after)
                    origin.append((at, event))
                targets.append(found)
        report.states = len(states)
        report.steps = sum(map(len, edges))
        if until is None:
            report.schedules = _paths(edges, len(starts))
        return report

    # the oracle

    def _violations(self, state: State) -> Iterator[tuple[str, str]]:
        promise = self.scenario.promise
        if state.wrong and "j" in promise:
            yield "j", state.wrong
        quiet, owing = self._is_quiet(state)
        for fingerprint in self.scenario.fingerprints:
            hit = self.shelf.hit(state.cells, fingerprint, state.current)
            if hit is None or hit == state.current:
                continue
            told = f"commit() of v{state.returned} has returned" if state.returned else "no commit() has returned"
            why = f"a fresh reader hits v{hit}; v{state.current} is current, {told}"
            if hit < 0:
                why = f"a fresh reader hits an uncommitted value; v{state.current} is current"
            if "a" in promise and hit < state.returned:
                yield "a", why
            if "b" in promise:
                yield "b", why
            if "c" in promise and hit < 0:
                yield "c", why
            if "p" in promise and quiet and not owing:
                yield "p", f"{why}; nobody writes any more"
        if "d" in promise and quiet and not owing and not self.shelf.recovers(state.cells, state.current):
            yield "d", "all deadlines have passed, and two quiet reads do not end in a hit"

    def _is_quiet(self, state: State) -> tuple[bool, bool]:
        """Return whether all writers are done, and whether one owes an invalidation."""
        procs = [self._procs[number] for number in state.procs[: self._writers]]
        quiet = all(proc.status != "on" and proc.txn in ("", *OVER) for proc in procs)
        return quiet, any(proc.status == "owing" for proc in procs)

    # steps

    def _steps(self, state: State) -> Iterator[Step]:
        for at, number in enumerate(state.procs):
            proc = self._procs[number]
            if at < self._writers:
                yield from self._database_steps(state, at, proc)
            if proc.status == "on":
                yield from self._process_steps(state, at, proc)
        for number in dict.fromkeys(state.late):
            effect = self._effects[number]
            remaining = list(state.late)
            remaining.remove(number)
            cells, reply, names = self.shelf.execute(state.cells, effect)
            after = self._after(state._replace(late=tuple(remaining)), cells, names)
            yield f"late {type(effect).__name__} is executed: {word(effect, reply)}", after
        yield from self._cache_faults(state)

    def _database_steps(self, state: State, at: int, proc: Proc) -> Iterator[Step]:
        name = f"W{at + 1}"
        unlocked = state._replace(lock=-1 if state.lock == at else state.lock)
        if proc.txn == "committing":
            current = state.current + (state.lock == at)
            landed = self._with(unlocked._replace(current=current), at, proc._replace(txn="committed", version=current))
            yield f"{name}: COMMIT takes effect: v{current} is current", landed
            if self.scenario.refusals:
                yield f"{name}: the database refuses COMMIT", self._with(unlocked, at, proc._replace(txn="aborted"))
        elif proc.txn == "orphan":
            yield (
                f"{name}: the database rolls back for a dead client",
                self._with(unlocked, at, proc._replace(txn="aborted")),
            )

    def _process_steps(self, state: State, at: int, proc: Proc) -> Iterator[Step]:
        effect = self._position(proc).effect
        assert effect is not None
        is_writer = at < self._writers
        name = f"W{at + 1}" if is_writer else f"R{at - self._writers + 1}"
        if is_writer and state.crashes and proc.txn:
            dead = proc._replace(status="dead", replies=(), txn="orphan" if proc.txn == "active" else proc.txn)
            yield f"{name}: crashes", self._with(state._replace(crashes=state.crashes - 1), at, dead)
        if self.scenario.answers and not is_writer and proc.floor < 0:
            proc = proc._replace(floor=state.returned)
            state = self._with(state, at, proc)
            at = self._place(state, proc)
        if isinstance(effect, Update | Abort | Snapshot | Load | LoadMany | Locate | Commit):
            yield from self._on_database(state, at, proc, name, effect)
            return
        if isinstance(effect, Join | Depart | Land | Wait):
            yield from self._in_process(state, at, proc, name, effect)
            return
        if isinstance(effect, Together) or _entry_of(effect) == HINT:
            yield from self._with_hints(state, at, name, effect)
            return
        if self.scenario.refusals and isinstance(effect, Begin) and proc.txn == "active":
            rolled = state._replace(lock=-1 if state.lock == at else state.lock)
            done = proc._replace(status="done", replies=(), txn="aborted")
            yield f"{name}: the application rolls back", self._with(rolled, at, done)
        cells, reply, names = self.shelf.execute(state.cells, effect)
        event = f"{name}: {type(effect).__name__}: {word(effect, reply)}"
        if isinstance(effect, Begin | End):
            event += f" -> {show(cells)}"
        done = self._after(state, cells, names)
        if self.scenario.waits and isinstance(effect, Begin) and state.evictions:
            done = done._replace(copy=cells)
        yield event, self._told(done, at, reply)
        if state.lost and (is_writer or isinstance(effect, Lease | Fill | Resign)):
            late = tuple(sorted((*state.late, self._effect_number(effect))))
            broken = state._replace(lost=state.lost - 1, late=late)
            yield f"{name}: {type(effect).__name__} fails, may be executed later", self._told(broken, at, LOST)

    def _on_database(self, state: State, at: int, proc: Proc, name: str, effect: Effect[Any]) -> Iterator[Step]:
        match effect:
            case Update(touches):
                if not touches:
                    yield f"{name}: UPDATE of other rows", self._told(state, at, None, txn="active")
                elif state.lock == -1:
                    yield f"{name}: UPDATE, locks the row", self._told(state._replace(lock=at), at, None, txn="active")
            case Abort():
                rolled = state._replace(lock=-1 if state.lock == at else state.lock)
                yield f"{name}: ROLLBACK", self._told(rolled, at, None, txn="aborted")
            case Snapshot():
                yield f"{name}: takes a snapshot: v{state.current}", self._told(state, at, state.current)
            case Load(encode):
                loaded = self._select(state, at, proc, encode)
                yield f"{name}: SELECT: v{loaded.row}", self._told(state, at, loaded)
            case LoadMany(_, (encode,)):
                loaded = self._select(state, at, proc, encode)
                yield f"{name}: SELECT: v{loaded.row}", self._told(state, at, (loaded,))
            case Locate(encode):
                loaded = self._select(state, at, proc, encode)
                found = Located(loaded, ENTRY, HINTED) if encode else Located(loaded, None, None)
                yield f"{name}: SELECT: v{loaded.row}", self._told(state, at, found)
            case Commit():
                yield from self._commit(state, at, proc, name)

    def _in_process(self, state: State, at: int, proc: Proc, name: str, effect: Effect[Any]) -> Iterator[Step]:
        match effect:
            case Wait():
                yield f"{name}: waits", self._told(state, at, None)
            case Join() if not self.scenario.together:
                yield f"{name}: leads", self._told(state, at, Leads())
            case Join() if proc.flight < 0:
                alone = self._with(state, at, proc._replace(flight=0))
                yield f"{name}: stops waiting", self._told(alone, self._place(alone, proc, 0), Landed(None))
            case Join() if state.open:
                yield f"{name}: joins", self._with(state, at, proc._replace(flight=-state.open))
            case Join():
                taken = {abs(self._procs[number].flight) for number in state.procs}
                flight = next(number for number in range(1, len(taken) + 2) if number not in taken)
                leading = self._with(state._replace(open=flight), at, proc._replace(flight=flight))
                yield f"{name}: leads", self._told(leading, self._place(leading, proc, flight), Leads())
            case Depart():
                shut = state._replace(open=0 if state.open == proc.flight else state.open)
                yield f"{name}: departs", self._told(shut, at, None)
            case Land(payload):
                yield f"{name}: lands", self._land(state, at, proc, payload)

    def _land(self, state: State, at: int, proc: Proc, payload: bytes | None) -> State:
        """Return the state after everybody who has joined a reader's load was told of it."""
        flight = proc.flight
        state = self._with(state, at, proc._replace(flight=0))
        state = state._replace(open=0 if state.open == flight else state.open)
        state = self._told(state, self._place(state, proc, 0), None)
        while flight:
            joined = [place for place, number in enumerate(state.procs) if self._procs[number].flight == -flight]
            if not joined:
                break
            waiting = self._procs[state.procs[joined[0]]]
            state = self._with(state, joined[0], waiting._replace(flight=0))
            state = self._told(state, self._place(state, waiting, 0), Landed(payload))
        return state

    def _place(self, state: State, proc: Proc, flight: int | None = None) -> int:
        """Return where a process stands after its state has changed: readers are kept in order."""
        return state.procs.index(self._number(proc if flight is None else proc._replace(flight=flight)))

    def _with_hints(self, state: State, at: int, name: str, effect: Effect[Any]) -> Iterator[Step]:
        """Perform effects of which some are on the hint of a unique key: what that says is arbitrary."""
        many = isinstance(effect, Together)
        effects = effect.effects if isinstance(effect, Together) else (effect,)
        for hinted in (HINTED, None) if any(isinstance(each, Lookup) for each in effects) else (None,):
            after, replies = state, []
            for each in effects:
                if _entry_of(each) == HINT:
                    replies.append(_of_hint(each, hinted))
                    continue
                cells, reply, names = self.shelf.execute(after.cells, each)
                after = self._after(after, cells, names)
                replies.append(reply)
            told = ", ".join(
                f"{type(each).__name__}: {word(each, reply)}" for each, reply in zip(effects, replies, strict=True)
            )
            yield f"{name}: {told}", self._told(after, at, tuple(replies) if many else replies[0])
            if _entry_of(effects[0]) != HINT:
                break

    def _commit(self, state: State, at: int, proc: Proc, name: str) -> Iterator[Step]:
        if proc.txn == "active":
            yield f"{name}: sends COMMIT", self._with(state, at, proc._replace(txn="committing"))
            return
        if proc.txn == "committed":
            yield f"{name}: COMMIT replies: done", self._told(state, at, Outcome.COMMITTED)
        elif proc.txn == "aborted":
            yield f"{name}: COMMIT replies: refused", self._told(state, at, Outcome.FAILED)
        if self.scenario.unknown:
            yield f"{name}: the connection is lost during COMMIT", self._told(state, at, Outcome.UNKNOWN)

    def _select(self, state: State, at: int, proc: Proc, encode: bool) -> Loaded[int]:
        row, may_fill = state.current, True
        if proc.txn == "active":
            row, may_fill = -1 - at, self.scenario.fills_own
        else:
            for began, reply in enumerate(proc.replies):
                if type(reply) is int:
                    row, may_fill = reply, self.scenario.fills_old or _remembers(proc.replies, began)
        payload = payload_of(row)
        if row == 0 and not self.scenario.row_exists:
            payload, may_fill = ABSENT, may_fill and self.scenario.caches_missing
        return Loaded(row, payload if may_fill and encode else None)

    def _cache_faults(self, state: State) -> Iterator[Step]:
        scenario, cells = self.scenario, state.cells
        for at, (label, cell) in enumerate(zip("RT", cells, strict=True)):
            live = pending(cell)
            if state.evictions and cell is not None and (scenario.evicts_pending or not live) and not scenario.restores:
                lost = Cells(None, cells.table) if at == 0 else Cells(cells.row, None)
                yield f"{label} is evicted", self._lose(state, lost)
            if scenario.deadlines == "none":
                continue
            for token in live:
                owner = self._procs[state.procs[int(token[1:2]) - 1]]
                has_none = owner.txn == "" and owner.status != "on"  # as a keeper, which has told of an old one
                if scenario.deadlines == "any" or owner.txn in OVER or has_none:
                    new = cells._replace(**{"row" if at == 0 else "table": lapsed(cell, token)})
                    yield f"the deadline of {token.decode().strip('.')} passes on {label}", state._replace(cells=new)
        if elected(cells.row):
            yield "the time of the elected one passes", state._replace(cells=Cells(too_late(cells.row), cells.table))
        if state.evictions and scenario.restores:
            if cells != state.copy:
                yield "the replica catches up", state._replace(copy=cells)
            yield "the replica is promoted", self._lose(state, elsewhere(state.copy))

    # states

    def _lose(self, state: State, cells: Cells) -> State:
        """Return the state with other cells, and with every lease dead that was held on one that is gone."""
        row = LIVE_ROW if cells.row is not None and cells.row == state.cells.row else None
        table = LIVE_TABLE if cells.table is not None and cells.table == state.cells.table else None
        if self.scenario.restores:
            return state._replace(cells=cells, copy=EMPTY, evictions=state.evictions - 1)
        if table is None and cells.row is not None and cells.row[0] == "V":
            cells = Cells((*cells.row[:2], DEAD, *cells.row[3:]), None)
        return self._after(state._replace(evictions=state.evictions - 1), cells, Names(row, table))

    def _after(self, state: State, cells: Cells, names: Names) -> State:
        """Return the state with new cells, and with leases renamed whose version is no longer the key's."""
        row, table = names.row == LIVE_ROW, names.table == LIVE_TABLE
        if row and table:  # or no version is ever renamed
            return state._replace(cells=cells)
        procs = tuple(self._rename(number, row, table) for number in state.procs)
        late = tuple(sorted(self._rename_late(number, names) for number in state.late))
        return state._replace(cells=cells, procs=procs, late=late)

    def _rename(self, number: int, row: bool, table: bool) -> int:
        known = self._renamed.get((number, row, table))
        if known is None:
            proc = self._procs[number]
            names = Names(LIVE_ROW if row else None, LIVE_TABLE if table else None)
            replies = tuple(names.of_reply(reply) for reply in proc.replies)
            known = self._renamed[number, row, table] = self._number(proc._replace(replies=replies))
        return known

    def _rename_late(self, number: int, names: Names) -> int:
        effect = self._effects[number]
        if not isinstance(effect, Fill | Resign):
            return number
        kept = Names(LIVE_ROW if names.row == LIVE_ROW else None, LIVE_TABLE if names.table == LIVE_TABLE else None)
        return self._effect_number(replace(effect, lease=kept.of_lease(effect.lease)))

    def _told(self, state: State, at: int, reply: Any, txn: str | None = None) -> State:
        """Return the state after a process has received a reply, and gone on to its next effect."""
        proc = self._procs[state.procs[at]]
        proc = proc._replace(replies=(*proc.replies, reply), txn=proc.txn if txn is None else txn)
        position = self._position(proc)
        if position.effect is None:
            if position.result is Outcome.COMMITTED:
                state = state._replace(returned=max(state.returned, proc.version))
            elif proc.floor >= 0 and not state.wrong:
                state = state._replace(wrong=_wrong(proc, position.result))
            proc = proc._replace(status="owing" if position.owed else "done", replies=(), version=0, floor=-1)
        return self._with(state, at, proc)

    def _with(self, state: State, at: int, proc: Proc) -> State:
        if proc.status != "on" and proc.txn == "committed":
            proc = proc._replace(txn="aborted", version=0)  # it is over either way
        procs = list(state.procs)
        procs[at] = self._number(proc)
        procs[self._writers :] = sorted(procs[self._writers :])  # readers of one program are alike
        return state._replace(procs=tuple(procs))

    def _position(self, proc: Proc) -> Position:
        key = proc.program, proc.replies
        known = self._positions.get(key)
        if known is None:
            known = self._positions[key] = _follow(self.programs[proc.program], self.names[proc.program], proc.replies)
        return known

    def _program(self, at: int) -> int:
        program = (*self.scenario.writers, *self.scenario.readers)[at]
        name = f"W{at + 1}" if at < self._writers else "R"
        if self.scenario.restores and name == "R":  # a version that comes back is told from all others by its ids
            name = f"R{at + 1}"
        for known, (other, its_name) in enumerate(zip(self.programs, self.names, strict=True)):
            if other is program and its_name == name:
                return known
        self.programs.append(program)
        self.names.append(name)
        return len(self.programs) - 1

    def _number(self, proc: Proc) -> int:
        number = self._proc_numbers.setdefault(proc, len(self._procs))
        if number == len(self._procs):
            self._procs.append(proc)
        return number

    def _effect_number(self, effect: Effect[Any]) -> int:
        number = self._effect_numbers.setdefault(effect, len(self._effects))
        if number == len(self._effects):
            self._effects.append(effect)
        return number


def _wrong(proc: Proc, result: Any) -> str:
    """Return what is wrong with a reader's answer, or ""."""
    for answer in result if isinstance(result, list) else [result]:
        if isinstance(answer, Compared) and answer.difference is not None:
            cached, row = answer.difference
            return f"a verifier says that the cache has v{cached}, and the database v{row}"
        if not isinstance(answer, Answer) or any(type(reply) is int for reply in proc.replies):
            continue  # a snapshot shows what it must
        told = answer.decoded if answer.decoded is not None else answer.row or 0
        if told < proc.floor:
            return f"a reader is told v{told}; commit() of v{proc.floor} had returned when it began"
        if told < 0:
            return "a reader is told an uncommitted value"
        if answer.decoded is not None and HINTED in proc.replies and not has_key(told):
            return f"a reader is told v{told}, which has not got the key"
    return ""


def _entry_of(effect: Effect[Any]) -> Entry | None:
    return getattr(effect, "entry", None)


def _of_hint(effect: Effect[Any], hinted: bytes | None) -> Any:
    match effect:
        case Lookup():
            return hinted
        case Lease():
            return Granted(DEAD, DEAD)
    return True


def _follow(program: Program, name: str, replies: tuple[Any, ...]) -> Position:
    """Return where a program stands after it has received `replies`."""
    process = Process(name)
    plan = program(process)
    try:
        effect = next(plan)
        for reply in replies:
            effect = plan.throw(TransportError("lost")) if reply is LOST else plan.send(reply)
    except StopIteration as done:
        return Position(None, done.value, process.debts.owed)
    plan.close()
    return Position(effect, None, process.debts.owed)


def _remembers(replies: tuple[Any, ...], began: int) -> bool:
    """Return whether a lease's very versions were seen before the snapshot began: the version memory of the session."""
    leases = [(at, _versions(reply)) for at, reply in enumerate(replies) if isinstance(reply, Granted | Filling)]
    return bool(leases) and leases[0][0] < began < leases[-1][0] and leases[0][1] == leases[-1][1]


def _versions(reply: Granted | Filling) -> tuple[bytes, bytes]:
    lease = reply.lease if isinstance(reply, Filling) else reply
    return lease.version, lease.table_version


def _trace(origin: list[tuple[int, str]], at: int) -> list[str]:
    events = []
    while at >= 0:
        at, event = origin[at]
        events.append(event)
    return events[::-1]


def _kind(event: str) -> str:
    """Return an event without who and where: what the counts are kept by."""
    who, colon, what = event.partition(": ")
    what = what if colon and who[:1] in "WR" else event
    return what.partition(" -> ")[0]


def _paths(edges: list[list[int]], starts: int) -> int:
    """Return how many different schedules there are: paths from a start to a state that has no step."""
    paths: dict[int, int] = {}
    stack = list(range(starts))
    while stack:
        at = stack[-1]
        missing = [target for target in edges[at] if target not in paths]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        paths[at] = sum(paths[target] for target in edges[at]) or 1
    return sum(paths[start] for start in range(starts))
