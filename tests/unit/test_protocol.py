"""The protocol's plans, driven by hand: which effect comes next, and what every reply and every failure leads to."""

from __future__ import annotations

from typing import Any

import pytest
from protocol.by_hand import (
    ENTRY,
    FENCE_TTL_MS,
    FINGERPRINT,
    GRANTED,
    KEYS,
    LOADED,
    LOST,
    UNENCODED,
    Debts,
    Driver,
    Ids,
    begin,
    end,
    fill,
    id_at,
    lease,
    lookup,
    read,
)

from sqlmodel_cache import InvalidationError
from sqlmodel_cache import _protocol as protocol
from sqlmodel_cache._effects import (
    ABSENT,
    Begin,
    Commit,
    End,
    Entry,
    Fenced,
    Fill,
    Granted,
    Hit,
    Load,
    Loaded,
    Outcome,
)
from sqlmodel_cache._protocol import BEGIN_ATTEMPTS, END_ATTEMPTS, Answer, Source
from sqlmodel_cache.errors import CodecError


def test_read_hit_is_one_round_trip() -> None:
    """A lookup that hits is all."""
    plan = read()
    plan.asks(lookup(), b"row")
    plan.ends(Answer(Source.HIT, "row", None))


def test_read_miss_leases_loads_and_fills_in_this_order() -> None:
    """The SELECT is sent after the lease's reply [I4], and the fill names that lease [I3]."""
    plan = read()
    plan.asks(lookup(), None)
    plan.asks(lease(), GRANTED)
    plan.asks(Load(), LOADED)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance"))


def test_read_whose_fill_is_refused_returns_its_row() -> None:
    """A fence that moved costs a fill, never the row."""
    plan = read()
    plan.asks(lookup(), None)
    plan.asks(lease(), GRANTED)
    plan.asks(Load(), LOADED)
    plan.asks(fill(), False)
    plan.ends(Answer(Source.REFUSED, None, "instance"))


def test_read_of_a_fenced_row_does_not_fill() -> None:
    """While a commit is in flight the database answers."""
    plan = read()
    plan.asks(lookup(), None)
    plan.asks(lease(), Fenced())
    plan.asks(Load(encode=False), UNENCODED)
    plan.ends(Answer(Source.FENCED, None, "instance"))


def test_read_of_a_row_that_must_not_be_cached_does_not_fill() -> None:
    """A row without payload is returned, and nothing is sent."""
    plan = read()
    plan.asks(lookup(), None)
    plan.asks(lease(), GRANTED)
    plan.asks(Load(), Loaded("instance", None))
    plan.ends(Answer(Source.UNCACHED, None, "instance"))


@pytest.mark.parametrize("payload", [None, b"row"])
def test_read_in_an_old_snapshot_does_not_fill(payload: bytes | None) -> None:
    """A snapshot that may be older than the lease is no fill [I7], and its payload is not asked for."""
    asked: list[Granted] = []

    def fresh(entry: Entry, granted: Granted) -> bool:
        assert entry == ENTRY
        asked.append(granted)
        return False

    plan = read(fresh=fresh)
    plan.asks(lookup(), None)
    assert asked == []
    plan.asks(lease(), GRANTED)
    assert asked == [GRANTED]
    plan.asks(Load(encode=False), Loaded("instance", payload))
    plan.ends(Answer(Source.UNCACHED, None, "instance"))


def test_read_takes_the_value_that_its_lease_finds() -> None:
    """Another reader filled between lookup and lease: that is a hit, without a SELECT."""
    plan = read()
    plan.asks(lookup(), None)
    plan.asks(lease(), Hit(b"row"))
    plan.ends(Answer(Source.HIT, "row", None))


def test_read_replaces_a_payload_that_is_not_a_row() -> None:
    """A value that does not decode is distrusted by the lease, and replaced."""
    plan = read()
    plan.asks(lookup(), b"bad")
    plan.asks(lease(replace=True), GRANTED)
    plan.asks(Load(), LOADED)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance", corrupt=True))


def test_read_replaces_a_payload_that_its_lease_finds_and_is_not_a_row() -> None:
    """The same, when another put it there between lookup and lease: a second lease, with an id of its own."""
    plan = read()
    plan.asks(lookup(), None)
    plan.asks(lease(), Hit(b"bad"))
    plan.asks(lease(2, replace=True), GRANTED)
    plan.asks(Load(), LOADED)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance", corrupt=True))


def test_read_of_a_corrupt_row_under_a_fence_does_not_fill() -> None:
    """A commit in flight comes first."""
    plan = read()
    plan.asks(lookup(), b"bad")
    plan.asks(lease(replace=True), Fenced())
    plan.asks(Load(encode=False), UNENCODED)
    plan.ends(Answer(Source.FENCED, None, "instance", corrupt=True))


@pytest.mark.parametrize("found_by", ["lookup", "lease"])
def test_read_of_a_row_that_is_cached_as_missing_sends_no_select(found_by: str) -> None:
    """A cached "no such row" is an answer, and is not decoded."""
    plan = read(absent_ttl_ms=5_000)
    plan.asks(lookup(), ABSENT if found_by == "lookup" else None)
    if found_by == "lease":
        plan.asks(lease(), Hit(ABSENT))
    plan.ends(Answer(Source.ABSENT, None, None))


def test_read_where_absence_is_not_cached_distrusts_it() -> None:
    """What another release cached as missing is replaced, as any payload that is not a row."""
    plan = read()
    plan.asks(lookup(), ABSENT)
    plan.asks(lease(replace=True), GRANTED)
    plan.asks(Load(), LOADED)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance", corrupt=True))


def test_read_fills_a_missing_row_for_its_own_ttl() -> None:
    """The absence of a row is stored for `absent_ttl_ms`, under the same lease as a row is."""
    plan = read(absent_ttl_ms=5_000)
    plan.asks(lookup(), None)
    plan.asks(lease(), GRANTED)
    plan.asks(Load(), Loaded(None, ABSENT))
    plan.asks(Fill(ENTRY, GRANTED, FINGERPRINT, ABSENT, 5_000), True)
    plan.ends(Answer(Source.FILLED, None, None))


@pytest.mark.parametrize("step", ["lookup", "lease", "second lease", "fill"])
def test_read_survives_a_transport_error_at_every_step(step: str) -> None:
    """The database answers, exactly once, and nothing more is asked of the cache."""
    plan = read()
    plan.asks(lookup(), LOST if step == "lookup" else None)
    if step != "lookup":
        plan.asks(lease(), {"lease": LOST, "second lease": Hit(b"bad"), "fill": GRANTED}[step])
    if step == "second lease":
        plan.asks(lease(2, replace=True), LOST)
    if step == "fill":
        plan.asks(Load(), LOADED)
        plan.asks(fill(), LOST)
    else:
        plan.asks(Load(encode=False), UNENCODED)
    plan.ends(Answer(Source.UNREACHABLE, None, "instance", corrupt=step == "second lease"))


@pytest.mark.parametrize("cache_is_down", [True, False])
def test_read_raises_what_the_database_raises_and_nothing_beside_it(cache_is_down: bool) -> None:
    """An error of the SELECT is the caller's, alone: a cache that is down as well does not show in its traceback."""
    plan = read()
    plan.asks(lookup(), LOST if cache_is_down else None)
    if not cache_is_down:
        plan.asks(lease(), GRANTED)
    error = RuntimeError("no such table")
    with pytest.raises(RuntimeError, match="no such table") as raised:
        plan.asks(Load(encode=not cache_is_down), error)
    assert raised.value.__context__ is None


def test_read_lets_an_error_of_the_codec_at_load_through() -> None:
    """Only decoding is forgiven: an error of the caller's own is not taken for a corrupt payload."""
    plan = read()
    plan.asks(lookup(), None)
    plan.asks(lease(), GRANTED)
    with pytest.raises(CodecError):
        plan.asks(Load(), CodecError("the session's"))


def commit(debts: Debts, *, refuse: bool = False) -> Driver:
    """Return a commit, at its first effect."""
    return Driver(protocol.commit(KEYS, debts, refuse=refuse, fence_ttl_ms=FENCE_TTL_MS, new_id=Ids()))


def test_commit_is_fenced_around() -> None:
    """BEGIN, COMMIT, END: COMMIT after BEGIN's reply [I1], and END with BEGIN's token [I5]."""
    debts = Debts()
    plan = commit(debts)
    plan.asks(begin(1), None)
    plan.asks(Commit(), Outcome.COMMITTED)
    plan.asks(end(1, 2), None)
    plan.ends(Outcome.COMMITTED)
    assert debts.owed == []


def test_commit_that_failed_is_ended_at_once() -> None:
    """A definite failure needs no fence any more."""
    plan = commit(Debts())
    plan.asks(begin(1), None)
    plan.asks(Commit(), Outcome.FAILED)
    plan.asks(end(1, 2), None)
    plan.ends(Outcome.FAILED)


def test_commit_of_unknown_outcome_is_not_ended() -> None:
    """The COMMIT may still land: the token is left to its deadline [I5]."""
    debts = Debts()
    plan = commit(debts)
    plan.asks(begin(1), None)
    plan.asks(Commit(), Outcome.UNKNOWN)
    plan.ends(Outcome.UNKNOWN)
    assert debts.told == []


def test_begin_is_tried_again_with_another_token() -> None:
    """An attempt whose reply was lost may still execute: it keeps its token, and the next has its own."""
    debts = Debts()
    plan = commit(debts)
    plan.asks(begin(1), LOST)
    plan.asks(begin(2), None)
    plan.asks(Commit(), Outcome.COMMITTED)
    plan.asks(end(2, 3), None)
    plan.ends(Outcome.COMMITTED)
    assert debts.owed == []


def test_commit_is_refused_when_it_cannot_be_fenced_and_refusing_is_asked_for() -> None:
    """`refuse`: COMMIT is not sent, nothing is owed, and the error says what to do and why."""
    debts = Debts()
    plan = commit(debts, refuse=True)
    for attempt in range(1, BEGIN_ATTEMPTS):
        plan.asks(begin(attempt), LOST)
    with pytest.raises(InvalidationError, match=r"1 rows, 1 table shards.*rolled back") as raised:
        plan.asks(begin(BEGIN_ATTEMPTS), LOST)
    assert raised.value.__cause__ is LOST
    assert debts.told == []


def unfenced(debts: Debts) -> Driver:
    """Return a commit whose BEGIN has failed, at its COMMIT; the keys are owed."""
    plan = commit(debts)
    for attempt in range(1, BEGIN_ATTEMPTS + 1):
        plan.asks(begin(attempt), LOST)
    assert debts.owed == [KEYS]
    return plan


def test_commit_goes_on_without_a_fence_and_owes_it() -> None:
    """`serve`: the keys are owed before COMMIT is sent, and until an END has given them new versions."""
    debts = Debts()
    plan = unfenced(debts)
    plan.asks(Commit(), Outcome.COMMITTED)
    plan.asks(end(3, 4), None)
    plan.ends(Outcome.COMMITTED)
    assert debts.owed == []


def test_commit_without_fence_and_end_stays_owed() -> None:
    """A cache that is away throughout leaves a debt, and END is tried only once."""
    debts = Debts()
    plan = unfenced(debts)
    plan.asks(Commit(), Outcome.COMMITTED)
    plan.asks(end(3, 4), LOST)
    plan.ends(Outcome.COMMITTED)
    assert debts.owed[-1] == KEYS


def test_unfenced_commit_of_unknown_outcome_stays_owed() -> None:
    """It may land at any time: the keys are owed, also when another commit has settled them meanwhile."""
    debts = Debts()
    plan = unfenced(debts)
    debts.settle(KEYS, debts.ticket())
    plan.asks(Commit(), Outcome.UNKNOWN)
    plan.ends(Outcome.UNKNOWN)
    assert debts.owed == [KEYS]


def test_unfenced_commit_that_failed_settles_no_debt_of_an_earlier_one() -> None:
    """A first commit of the row was not delivered; a second, of the same row, fails: the first is still owed."""
    debts = Debts()
    first = unfenced(debts)
    first.asks(Commit(), Outcome.COMMITTED)
    first.asks(end(3, 4), LOST)
    first.ends(Outcome.COMMITTED)
    second = commit(debts)
    for attempt in range(1, BEGIN_ATTEMPTS + 1):
        second.asks(begin(attempt), LOST)
    second.asks(Commit(), Outcome.FAILED)
    second.ends(Outcome.FAILED)
    assert KEYS in debts.owed


def test_late_reply_settles_nothing_that_was_owed_since() -> None:
    """1 A: END executes, its reply is late   2 B, of that row: is not delivered   3 A: the reply. B is still owed."""
    debts = Debts()
    first = commit(debts)
    first.asks(begin(1), None)
    first.asks(Commit(), Outcome.COMMITTED)
    debts.owe(KEYS)
    first.asks(end(1, 2), None)
    first.ends(Outcome.COMMITTED)
    assert debts.owed == [KEYS]


@pytest.mark.parametrize("failures", range(END_ATTEMPTS + 1))
def test_end_is_sent_until_it_is_acknowledged(failures: int) -> None:
    """END keeps its token and gets a new id each time; when all attempts fail the keys are owed."""
    debts = Debts()
    plan = Driver(protocol.end(KEYS, b"token", Outcome.COMMITTED, debts, new_id=Ids()))
    for attempt in range(1, failures + 1):
        plan.asks(End(KEYS, b"token", id_at(attempt)), LOST)
    if failures < END_ATTEMPTS:
        plan.asks(End(KEYS, b"token", id_at(failures + 1)), None)
    plan.ends(None)
    assert debts.owed == ([KEYS] if failures == END_ATTEMPTS else [])


def test_error_of_the_commit_ends_the_plan() -> None:
    """What is thrown into COMMIT is the caller's: no END is sent, since nobody knows what it did."""
    plan = commit(Debts())
    plan.asks(begin(1), None)
    with pytest.raises(RuntimeError, match="hook"):
        plan.asks(Commit(), RuntimeError("hook"))


def test_plan_that_is_closed_during_commit_sends_nothing() -> None:
    """A cancelled COMMIT abandons the plan: its token lapses."""
    plan = protocol.commit(KEYS, Debts(), refuse=False, fence_ttl_ms=FENCE_TTL_MS, new_id=Ids())
    assert next(plan) == begin(1)
    assert plan.send(None) == Commit()
    plan.close()
    with pytest.raises(StopIteration):
        next(plan)


@pytest.mark.parametrize("refuse", [True, False])
@pytest.mark.parametrize("failures", range(END_ATTEMPTS))
def test_invalidate_is_an_end_that_nobody_began(failures: int, refuse: bool) -> None:
    """Every key gets a new version, without a fence; each attempt has a token and an id of its own."""
    debts = Debts()
    plan = Driver(protocol.invalidate(KEYS, debts, refuse=refuse, new_id=Ids()))
    for attempt in range(failures):
        plan.asks(end(1 + 2 * attempt, 2 + 2 * attempt), LOST)
    plan.asks(end(1 + 2 * failures, 2 + 2 * failures), None)
    plan.ends(None)
    assert debts.owed == []


@pytest.mark.parametrize("refuse", [True, False])
def test_invalidate_that_cannot_be_delivered_is_owed_or_refused(refuse: bool) -> None:
    """`serve` delivers it later; `refuse` says so at once."""
    debts = Debts()
    plan = Driver(protocol.invalidate(KEYS, debts, refuse=refuse, new_id=Ids()))
    for attempt in range(END_ATTEMPTS - 1):
        plan.asks(end(1 + 2 * attempt, 2 + 2 * attempt), LOST)
    last = end(2 * END_ATTEMPTS - 1, 2 * END_ATTEMPTS)
    if refuse:
        with pytest.raises(InvalidationError, match="may be stale") as raised:
            plan.asks(last, LOST)
        assert raised.value.__cause__ is LOST
        assert debts.owed == []
    else:
        plan.asks(last, LOST)
        plan.ends(None)
        assert debts.owed == [KEYS]


@pytest.mark.parametrize("delivered", [True, False])
def test_settle_sends_a_fence_that_nobody_ends(delivered: bool) -> None:
    """The COMMIT that is owed for may still land: a fence covers it. What is not delivered stays owed."""
    debts = Debts([KEYS])
    plan = Driver(protocol.settle(KEYS, debts, fence_ttl_ms=FENCE_TTL_MS, new_id=Ids()))
    plan.asks(begin(1), None if delivered else LOST)
    plan.ends(delivered)
    assert debts.owed == ([] if delivered else [KEYS])


def test_replicas_are_waited_for_where_nobody_else_may_have_the_fence() -> None:
    """BEGIN waits, and so does what stands in for it: END without a token, an invalidation, a delivery of debts."""
    options: dict[str, Any] = {"new_id": Ids(), "replicas": 2}
    fence: dict[str, Any] = {"fence_ttl_ms": FENCE_TTL_MS}
    plans = {
        "begin": protocol.begin(KEYS, Debts(), refuse=False, **fence, **options),
        "settle": protocol.settle(KEYS, Debts(), **fence, **options),
        "invalidate": protocol.invalidate(KEYS, Debts(), refuse=False, **options),
        "end of none": protocol.end(KEYS, None, Outcome.COMMITTED, Debts(), **options),
        "end": protocol.end(KEYS, b"token", Outcome.COMMITTED, Debts(), **options),
    }
    waits = {}
    for name, plan in plans.items():
        effect = next(plan)
        assert isinstance(effect, Begin | End)
        waits[name] = effect.replicas
        plan.close()
    assert waits == {"begin": 2, "settle": 2, "invalidate": 2, "end of none": 2, "end": 0}
