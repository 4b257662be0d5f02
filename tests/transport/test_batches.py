"""Effects that wait in the same turn of the event loop: one round trip, and otherwise as if each were alone.

The turns of the loop are counted: `asyncio.sleep(0)` is one.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
import redis.asyncio
import servers
from transport.backends import (
    ELSEWHERE,
    ENTRY,
    FENCE_TTL_MS,
    FINGERPRINT,
    NEIGHBOUR,
    PAYLOAD,
    TTL_MS,
    Sent,
    id_of,
    version_of,
)

from sqlmodel_cache import RedisAsyncTransport, TransportError
from sqlmodel_cache._effects import Begin, Entry, Fill, Granted, Hit, Keys, Lease, Lookup, Resign
from sqlmodel_cache._plan import Effect
from sqlmodel_cache.transport import _batches
from sqlmodel_cache.transport._batches import Batches

ENTRIES = (ENTRY, NEIGHBOUR, ELSEWHERE)
PATIENT = 10.0  # seconds, where an answer must come
BRIEF = 0.1  # seconds, where none comes


def effects(count: int) -> list[Lookup]:
    """Return so many different effects."""
    return [Lookup(Entry(f"row{n}", f"table{n}"), FINGERPRINT) for n in range(count)]


class Wire:
    """Where batches are sent to in place of a server: it notes what it is sent, and replies when it is told to."""

    def __init__(self) -> None:
        self.alone: list[Effect[Any]] = []
        self.together: list[list[Effect[Any]]] = []
        self.contexts: list[int] = []
        self.gate = asyncio.Event()
        self.replies: Callable[[Sequence[Any]], list[Any]] = lambda effects: [each.entry.row for each in effects]
        self.batches = Batches(self._send_alone, self._send_together)

    async def _send_alone(self, effect: Any) -> Any:
        self.alone.append(effect)
        await self.gate.wait()
        [reply] = self.replies([effect])
        return reply

    async def _send_together(self, effects: Sequence[Effect[Any]]) -> list[Any]:
        self.together.append(list(effects))
        self.contexts.append(len(contextvars.copy_context()))
        await self.gate.wait()
        return self.replies(effects)

    def start(self, effects: Sequence[Effect[Any]]) -> list[asyncio.Task[Any]]:
        """Let a task ask for each of the effects."""
        return [asyncio.ensure_future(self.batches.execute(effect)) for effect in effects]


async def all_of(*asked: Any, return_exceptions: bool = False) -> list[Any]:
    """Return the replies to all; one that does not come fails the test, and does not hang it."""
    return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=return_exceptions), PATIENT)


async def turns(count: int) -> None:
    """Let the loop take some turns: in the first tasks begin, in the second the leader goes on, then its batch."""
    for _ in range(count):
        await asyncio.sleep(0)


def rows(asked: Sequence[Lookup]) -> list[str]:
    """Return the replies of the wire."""
    return [effect.entry.row for effect in asked]


@pytest.fixture
def complaints(loop: asyncio.AbstractEventLoop) -> list[dict[str, Any]]:
    """What the loop's handler of lost exceptions is told."""
    found: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: found.append(context))
    return found


async def test_lone_effect_goes_alone() -> None:
    """Nobody joins it: it is sent as if there were no batches, one turn later, and no task is made for it."""
    wire = Wire()
    wire.gate.set()
    for effect in effects(3):
        before = asyncio.all_tasks()
        assert await asyncio.wait_for(wire.batches.execute(effect), PATIENT) == effect.entry.row
        assert asyncio.all_tasks() == before
    assert wire.alone == effects(3)
    assert wire.together == []


@pytest.mark.parametrize("count", [2, 3, 100])
async def test_effects_of_one_turn_go_together(count: int) -> None:
    """Whoever asks in the same turn shares a round trip, and has its own reply."""
    wire = Wire()
    wire.gate.set()
    asked = effects(count)
    assert await all_of(*wire.start(asked)) == rows(asked)
    assert wire.alone == []
    [together] = wire.together
    assert sorted(together, key=repr) == sorted(asked, key=repr)


async def test_batch_in_flight_holds_up_nobody() -> None:
    """Who comes when a batch has been sent waits for the next turn only, not for the reply."""
    wire = Wire()
    first = wire.start(effects(2))
    await turns(3)
    assert len(wire.together) == 1
    later = [*wire.start(effects(3)), *first]
    await turns(3)
    assert len(wire.together) == 2
    lone = wire.start(effects(1))
    await turns(3)
    assert len(wire.alone) == 1
    wire.gate.set()
    assert await all_of(*later, *lone) == [*rows(effects(3)), *rows(effects(2)), *rows(effects(1))]


@pytest.mark.parametrize("extra", [0, 1, 2, 700])
async def test_batch_is_bounded(extra: int) -> None:
    """A full batch is closed, and the next to come leads another."""
    wire = Wire()
    wire.gate.set()
    asked = effects(_batches.MAX_BATCH + extra)
    assert await all_of(*wire.start(asked)) == rows(asked)
    sizes = [len(batch) for batch in wire.together] + [1] * len(wire.alone)
    assert max(sizes) == _batches.MAX_BATCH
    assert sum(sizes) == len(asked)
    assert len(sizes) == -(-len(asked) // _batches.MAX_BATCH)


async def test_full_batch_that_leaves_does_not_close_the_next() -> None:
    """Who comes between the turns of two leaders joins the second."""
    wire = Wire()
    wire.gate.set()
    asked = effects(_batches.MAX_BATCH + 2)
    between: list[asyncio.Task[Any]] = []

    async def come_between() -> None:
        between.extend(wire.start(asked[-1:]))  # begins after the first leader's turn, and before the second's

    first = wire.start(asked[:1])
    coming = asyncio.ensure_future(come_between())
    others = wire.start(asked[1:-1])
    await all_of(coming, *first, *others)
    await all_of(*between)
    assert [len(batch) for batch in wire.together] == [_batches.MAX_BATCH, 2]
    assert wire.alone == []


@pytest.mark.parametrize("bad", [0, 1, 3])
async def test_error_of_one_is_only_its_own(bad: int) -> None:
    """A member whose reply is an error raises it; the others have their replies."""
    wire = Wire()
    wire.gate.set()
    asked = effects(4)
    error = TransportError("a bad reply")
    wire.replies = lambda effects: [error if each == asked[bad] else each.entry.row for each in effects]
    found = await all_of(*wire.start(asked), return_exceptions=True)
    assert found == [error if at == bad else row for at, row in enumerate(rows(asked))]


async def test_failure_of_all_is_everybodys_own() -> None:
    """What goes wrong with the round trip itself, even unexpectedly, is a TransportError of each."""

    def fail(effects: Sequence[Any]) -> list[Any]:
        raise LookupError("lost")

    wire = Wire()
    wire.gate.set()
    wire.replies = fail
    found = await all_of(*wire.start(effects(3)), return_exceptions=True)
    assert [type(error) for error in found] == [TransportError] * 3
    assert len(set(map(id, found))) == 3
    assert all(isinstance(error.__cause__, LookupError) for error in found if isinstance(error, TransportError))


@pytest.mark.parametrize("moment", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("who", [{0}, {1}, {3}, {0, 1}, {0, 3}, {0, 1, 2}, {1, 2, 3}, {0, 1, 2, 3}], ids=str)
async def test_cancelled_members_are_nobody_elses_business(who: set[int], moment: int) -> None:
    """Whoever is cancelled, at whatever moment, the one who leads included: the others are answered, in one trip."""
    wire = Wire()
    asked = effects(4)
    tasks = wire.start(asked)
    await turns(moment)
    for at in who:
        tasks[at].cancel()
    await turns(4)
    wire.gate.set()
    found = await all_of(*tasks, return_exceptions=True)
    for at, reply in enumerate(found):
        assert isinstance(reply, asyncio.CancelledError) if at in who else reply == rows(asked)[at]
    sent = [*wire.alone, *(effect for batch in wire.together for effect in batch)]
    assert {effect for at, effect in enumerate(asked) if at not in who} <= set(sent)
    assert len(sent) == len(set(sent))
    assert len(wire.together) + len(wire.alone) <= 1
    assert all(wire.together)  # nothing is not sent
    assert moment > 1 or len(sent) == 4 - len(who)  # who was cancelled before the trip is not sent
    wire.gate.set()
    assert await asyncio.wait_for(wire.batches.execute(asked[0]), PATIENT) == rows(asked)[0]


async def test_lone_leader_that_is_cancelled_sends_nothing() -> None:
    """Nobody has joined, and nobody joins it later: the next one leads."""
    wire = Wire()
    [task] = wire.start(effects(1))
    await turns(1)
    task.cancel()
    await turns(2)
    assert task.cancelled()
    assert (wire.alone, wire.together) == ([], [])
    wire.gate.set()
    assert await all_of(*wire.start(effects(2))) == rows(effects(2))


def test_error_that_nobody_awaits_any_more_is_not_complained_of(
    loop: asyncio.AbstractEventLoop, complaints: list[dict[str, Any]]
) -> None:
    """A member that is cancelled in the turn in which its error arrives leaves no exception behind."""

    async def act() -> None:
        wire = Wire()
        wire.replies = lambda effects: [TransportError("lost") for _ in effects]
        tasks = wire.start(effects(3))
        await turns(3)
        wire.gate.set()
        await turns(1)  # the batch has its replies, the members have not gone on
        for task in tasks:
            task.cancel()
        found = await all_of(*tasks, return_exceptions=True)
        assert [type(error) for error in found] == [asyncio.CancelledError] * 3

    loop.run_until_complete(act())
    gc.collect()
    assert complaints == []


def test_batch_that_is_cancelled_with_its_loop_fails_its_members(
    loop: asyncio.AbstractEventLoop, complaints: list[dict[str, Any]]
) -> None:
    """A loop that cancels every task it has leaves nobody waiting."""

    async def act() -> None:
        wire = Wire()
        asked = wire.start(effects(3))
        await turns(3)
        for task in asyncio.all_tasks() - {*asked, asyncio.current_task()}:
            task.cancel()
        found = await all_of(*asked, return_exceptions=True)
        assert [type(error) for error in found] == [TransportError] * 3

    loop.run_until_complete(act())
    gc.collect()
    assert complaints == []


def test_loop_that_ends_with_its_main_task_leaves_nothing_behind() -> None:
    """`asyncio.run` cancels who waits, and who carries: neither hangs, and no coroutine is left unawaited."""

    async def act(count: int) -> None:
        wire = Wire()
        wire.start(effects(5))
        await turns(count)

    for count in range(5):
        asyncio.run(act(count))
    gc.collect()


def test_loop_that_is_closed_under_a_leader_leaves_no_coroutine() -> None:
    """A leader that is thrown away with its loop sends nothing: there is nowhere to send it from."""
    loop = asyncio.new_event_loop()

    async def act() -> list[Any]:
        wire = Wire()
        asked = [wire.batches.execute(effect) for effect in effects(2)]
        for each in asked:
            each.send(None)  # the first leads, the second waits for it
        return asked

    leader, follower = loop.run_until_complete(act())
    loop.close()
    leader.close()
    follower.close()
    gc.collect()


async def test_batch_is_in_nobodys_context() -> None:
    """What a caller keeps in context variables is not seen by those who travel with it."""
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine")
    mine.set("private")
    wire = Wire()
    wire.gate.set()
    await all_of(*wire.start(effects(2)))
    assert wire.contexts == [0]


async def test_draining_waits_for_what_is_in_flight() -> None:
    """Connections are closed when nobody uses them any more."""
    wire = Wire()
    tasks = wire.start(effects(2))
    await turns(3)
    for task in tasks:
        task.cancel()
    draining = asyncio.ensure_future(wire.batches.drain())
    await turns(3)
    assert not draining.done()
    wire.gate.set()
    await draining


# On a real server


@pytest.fixture
def server() -> Iterator[servers.RedisServer]:
    """A Redis of the test's own, to be stopped."""
    server = servers.RedisServer()
    yield server
    server.process.send_signal(signal.SIGCONT)
    server.stop()


Act = Callable[[Any], Awaitable[None]]


async def using(url: str, act: Act, timeout: float = PATIENT, **options: Any) -> None:
    """Run `act` on a transport, with the row and its neighbours filled."""
    client: Any = redis.asyncio.Redis.from_url(url, **options)
    patient = RedisAsyncTransport(client, timeout=PATIENT)
    transport = RedisAsyncTransport(client, timeout=timeout)
    try:
        for entry in ENTRIES:
            lease = await patient.aexecute(Lease(entry, FINGERPRINT, id_of("lease"), replace=True))
            await patient.aexecute(Fill(entry, lease, FINGERPRINT, entry.row.encode(), TTL_MS))
        await transport.aexecute(Lease(ENTRIES[0], FINGERPRINT, id_of("first")))  # from now on it knows the server
        await act(transport)
    finally:
        await patient.aclose()
        await transport.aclose()
        await client.aclose()


async def test_look_ups_of_one_turn_are_one_mget(redis_client: redis.Redis, redis_url: str, sent: Sent) -> None:
    """A hundred look-ups are one MGET and one write; a lone one is an MGET of two keys, with nothing around it."""

    async def act(transport: RedisAsyncTransport) -> None:
        redis_client.config_resetstat()
        before = sent.times
        entries = [ENTRIES[n % 3] for n in range(100)]
        found = await all_of(*(transport.aexecute(Lookup(entry, FINGERPRINT)) for entry in entries))
        assert found == [entry.row.encode() for entry in entries]
        assert sent.times - before == 1
        for entry in ENTRIES:
            assert await transport.aexecute(Lookup(entry, FINGERPRINT)) == entry.row.encode()
        assert sent.times - before == 4
        stats = redis_client.info("commandstats")
        assert stats["cmdstat_mget"]["calls"] == 4
        assert not {"cmdstat_multi", "cmdstat_evalsha", "cmdstat_eval"} & stats.keys()

    await using(redis_url, act)


async def test_readers_of_all_kinds_go_together_and_commits_do_not(
    redis_client: redis.Redis,
    redis_url: str,
    sent: Sent,
) -> None:
    """Look-ups, leases, fills and resignations of one turn are one write; a BEGIN is its own."""

    async def act(transport: RedisAsyncTransport) -> None:
        lease = Granted(version_of("nobody's"), version_of("nobody's"))
        readers: list[Effect[Any]] = [
            Lookup(NEIGHBOUR, FINGERPRINT),
            Lease(ENTRY, FINGERPRINT, id_of("other")),
            Fill(NEIGHBOUR, lease, FINGERPRINT, PAYLOAD, TTL_MS),
            Resign(ENTRY, lease),
        ]
        begin = Begin(Keys((ELSEWHERE.row,), ()), id_of("token"), FENCE_TTL_MS)
        for counts in (False, True):  # the first time connections are opened, and scripts loaded
            before = sent.times
            found = await all_of(*map(transport.aexecute, [*readers, begin]))
            assert found == [NEIGHBOUR.row.encode(), Hit(ENTRY.row.encode()), False, None, None]
            assert sent.times - before == 2 or not counts

    await using(redis_url, act)


async def test_batch_that_is_not_answered_costs_everybody_the_timeout(server: servers.RedisServer) -> None:
    """Each has its own error, in time, and the next ones have their own replies."""

    async def act(transport: RedisAsyncTransport) -> None:
        asked = [transport.aexecute(Lookup(entry, FINGERPRINT)) for entry in ENTRIES]
        server.process.send_signal(signal.SIGSTOP)
        try:
            found = await all_of(*asked, return_exceptions=True)
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert [type(error) for error in found] == [TransportError] * 3
        assert len(set(map(id, found))) == 3
        assert all(isinstance(error.__cause__, TimeoutError) for error in found if isinstance(error, TransportError))

    async def again(transport: RedisAsyncTransport) -> None:
        asked = [transport.aexecute(Lookup(entry, FINGERPRINT)) for entry in ENTRIES[::-1]]
        assert await all_of(*asked) == [entry.row.encode() for entry in ENTRIES[::-1]]

    await using(server.url, act, BRIEF)
    await using(server.url, again)


async def test_timeout_of_one_caller_is_its_own(server: servers.RedisServer) -> None:
    """A caller that gives up earlier, by a time-out of its own, leaves the others their answers."""

    async def act(transport: RedisAsyncTransport) -> None:
        server.process.send_signal(signal.SIGSTOP)
        asked = [asyncio.ensure_future(transport.aexecute(Lookup(entry, FINGERPRINT))) for entry in ENTRIES]
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asked[0], BRIEF)
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert await all_of(*asked[1:]) == [entry.row.encode() for entry in ENTRIES[1:]]

    await using(server.url, act)


async def test_closing_waits_for_batches_that_nobody_awaits(server: servers.RedisServer) -> None:
    """A batch whose callers have all gone is not left to a loop that may be closed next."""

    async def act(transport: RedisAsyncTransport) -> None:
        before = asyncio.all_tasks()
        server.process.send_signal(signal.SIGSTOP)
        asked = [asyncio.ensure_future(transport.aexecute(Lookup(entry, FINGERPRINT))) for entry in ENTRIES]
        await turns(5)
        for task in asked:
            task.cancel()
        await all_of(*asked, return_exceptions=True)
        assert asyncio.all_tasks() != before
        await transport.aclose()
        assert asyncio.all_tasks() == before
        server.process.send_signal(signal.SIGCONT)

    await using(server.url, act, BRIEF)


async def test_key_that_no_encoding_has_is_an_ordinary_one(redis_client: redis.Redis, redis_url: str) -> None:
    """A primary key may hold half a character: it is a key like any, and spoils nobody's batch."""
    odd = Entry(f"{ENTRY.table}:\ud800", ENTRY.table)

    async def act(transport: RedisAsyncTransport) -> None:
        lease = await transport.aexecute(Lease(odd, FINGERPRINT, id_of("odd")))
        assert await transport.aexecute(Fill(odd, lease, FINGERPRINT, PAYLOAD, TTL_MS)) is True
        asked = [transport.aexecute(Lookup(entry, FINGERPRINT)) for entry in (ENTRY, odd)]
        assert await all_of(*asked) == [ENTRY.row.encode(), PAYLOAD]
        assert await transport.aexecute(Lookup(odd, FINGERPRINT)) == PAYLOAD

    await using(redis_url, act, encoding="latin-1")
