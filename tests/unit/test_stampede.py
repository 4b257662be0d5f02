"""Reads that wait for each other, and that renew: the plans driven by hand, with every reply and every failure."""

from __future__ import annotations

from typing import Any

import pytest
from protocol.by_hand import (
    ENTRY,
    FINGERPRINT,
    GRANTED,
    LOADED,
    LOST,
    TTL_MS,
    UNENCODED,
    Driver,
    Ids,
    fill,
    id_at,
    lease,
    lookup,
    reading,
)
from protocol.by_hand import read as read_alone

from sqlmodel_cache import _protocol as protocol
from sqlmodel_cache._effects import (
    ABSENT,
    Depart,
    Fenced,
    Fill,
    Filling,
    Granted,
    Hit,
    Join,
    Land,
    Landed,
    Leads,
    Lease,
    Load,
    Loaded,
    Resign,
    Wait,
)
from sqlmodel_cache._protocol import Answer, Source
from sqlmodel_cache.errors import CodecError

WAIT_MS = 100
ELECTED = Granted(b"row version", b"table version", elected=True)
JOIN = Join(ENTRY, FINGERPRINT, WAIT_MS)
RESIGN = Resign(ENTRY, ELECTED)


def read(**options: Any) -> Driver:
    """Return a read that waits for others, at its first effect."""
    return read_alone(wait_ms=WAIT_MS, **options)


def leads(**options: Any) -> Driver:
    """Return a read that leads its process, at its lease."""
    plan = read(**options)
    plan.asks(lookup(), None)
    plan.asks(JOIN, Leads())
    return plan


def asking(number: int = 1, *, replace: bool = False, elect_ms: int = WAIT_MS) -> Lease:
    """Return a lease that asks for an election."""
    return Lease(ENTRY, FINGERPRINT, id_at(number), replace, elect_ms)


def filling(left_ms: int = WAIT_MS) -> Filling:
    """Return the reply that another is elected."""
    return Filling(GRANTED, left_ms)


# in the process


def test_leader_departs_before_its_select_and_lands_after_it() -> None:
    """Join, lease, depart, SELECT, land, fill: nobody joins once the SELECT is sent [I8]."""
    plan = leads()
    plan.asks(asking(), ELECTED)
    plan.asks(Depart(), None)
    plan.asks(Load(), LOADED)
    plan.asks(Land(b"row"), None)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance"))


def test_follower_is_told_what_was_loaded_and_asks_nobody() -> None:
    """What another has loaded for it is decoded, and is neither leased nor filled."""
    plan = read()
    plan.asks(lookup(), None)
    plan.asks(JOIN, Landed(b"row"))
    plan.ends(Answer(Source.SHARED, "row", None))


def test_follower_is_told_of_an_absence() -> None:
    """Where absence is cached it is shared, too."""
    plan = read(absent_ttl_ms=5_000)
    plan.asks(lookup(), None)
    plan.asks(JOIN, Landed(ABSENT))
    plan.ends(Answer(Source.SHARED, None, None))


def test_follower_who_is_told_nothing_goes_on_alone_and_waits_no_more() -> None:
    """It neither leads, nor asks for an election, nor waits for one: it has waited once."""
    plan = read()
    plan.asks(lookup(), None)
    plan.asks(JOIN, Landed(None))
    plan.asks(asking(elect_ms=0), GRANTED)
    plan.asks(Load(), LOADED)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance"))


def test_leader_whose_lease_finds_a_value_tells_nobody_of_it() -> None:
    """A hit may be older than a commit after which another has joined: each has to ask the cache itself [I8]."""
    plan = leads()
    plan.asks(asking(), Hit(b"row"))
    plan.asks(Land(None), None)
    plan.ends(Answer(Source.HIT, "row", None))


@pytest.mark.parametrize("found", [Fenced(), GRANTED])
def test_leader_that_may_not_fill_has_nothing_to_tell(found: Any) -> None:
    """What is not stored is not shared either: a row under a fence, and one of an older snapshot."""
    plan = leads(fresh=lambda *_: False)
    plan.asks(asking(), found)
    plan.asks(Depart(), None)
    plan.asks(Load(encode=False), UNENCODED)
    plan.asks(Land(None), None)
    plan.ends(Answer(Source.FENCED if found == Fenced() else Source.UNCACHED, None, "instance"))


@pytest.mark.parametrize("lost", ["lease", "poll", "second lease", "fill", "resign"])
def test_leader_lands_also_when_the_cache_is_lost(lost: str) -> None:
    """Whatever step fails, the database answers once, and those who joined are told."""
    plan = leads()
    payload = None if lost == "resign" else b"row"
    if lost == "lease":
        plan.asks(asking(), LOST)
    elif lost == "poll":
        plan.asks(asking(), filling())
        plan.asks(Wait(2), None)
        plan.asks(asking(2), LOST)
    elif lost == "second lease":
        plan.asks(asking(), Hit(b"bad"))
        plan.asks(lease(2, replace=True), LOST)
    else:
        plan.asks(asking(), ELECTED)
    plan.asks(Depart(), None)
    if lost in ("fill", "resign"):
        plan.asks(Load(), Loaded("instance", payload))
        plan.asks(Land(payload), None)
        plan.asks(fill() if lost == "fill" else RESIGN, LOST)
    else:
        plan.asks(Load(encode=False), UNENCODED)
        plan.asks(Land(None), None)
    plan.ends(Answer(Source.UNREACHABLE, None, "instance", corrupt=lost == "second lease"))


@pytest.mark.parametrize("reply", [None, LOST], ids=repr)
def test_leader_whose_select_raises_gives_up_its_election(reply: Any) -> None:
    """The error is the caller's, whether or not the cache answers. Its flight is landed by whoever runs the plan."""
    plan = leads()
    plan.asks(asking(), ELECTED)
    plan.asks(Depart(), None)
    plan.asks(Load(), RuntimeError("no such table"))
    with pytest.raises(RuntimeError, match="no such table") as raised:
        plan.asks(RESIGN, reply)
    assert raised.value.__context__ is None


def test_reader_whose_select_raises_without_an_election_ends_there() -> None:
    """It has nothing to give up."""
    plan = leads()
    plan.asks(asking(), GRANTED)
    plan.asks(Depart(), None)
    with pytest.raises(RuntimeError, match="no such table"):
        plan.asks(Load(), RuntimeError("no such table"))


def test_corrupt_row_that_another_has_led_is_counted_as_such() -> None:
    """Of a row that it shares, too, a get knows that it did not decode."""
    plan = read()
    plan.asks(lookup(), b"bad")
    plan.asks(JOIN, Landed(b"row"))
    plan.ends(Answer(Source.SHARED, "row", None, corrupt=True))


def test_corrupt_row_is_led_and_distrusted() -> None:
    """Several who find the same corrupt payload replace it once."""
    plan = read()
    plan.asks(lookup(), b"bad")
    plan.asks(JOIN, Leads())
    plan.asks(asking(replace=True), ELECTED)
    plan.asks(Depart(), None)
    plan.asks(Load(), LOADED)
    plan.asks(Land(b"row"), None)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance", corrupt=True))


def test_read_that_never_waits_joins_nobody() -> None:
    """`wait_ms` 0: no flight, and a lease without an election."""
    plan = read_alone()
    plan.asks(lookup(), None)
    plan.asks(asking(elect_ms=0), GRANTED)
    plan.asks(Load(), LOADED)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance"))


# across processes


def test_elected_reader_that_has_nothing_to_fill_resigns() -> None:
    """A row that is missing, or must not be cached, ends the others' waiting at once."""
    plan = leads()
    plan.asks(asking(), ELECTED)
    plan.asks(Depart(), None)
    plan.asks(Load(), Loaded(None, None))
    plan.asks(Land(None), None)
    plan.asks(RESIGN, None)
    plan.ends(Answer(Source.UNCACHED, None, None))


def test_elected_reader_in_an_old_snapshot_resigns() -> None:
    """It was elected before anybody asked how old its snapshot is."""
    plan = leads(fresh=lambda *_: False)
    plan.asks(asking(), ELECTED)
    plan.asks(Depart(), None)
    plan.asks(Load(encode=False), UNENCODED)
    plan.asks(Land(None), None)
    plan.asks(RESIGN, None)
    plan.ends(Answer(Source.UNCACHED, None, "instance"))


@pytest.mark.parametrize("granted", [GRANTED, ELECTED])
def test_only_the_elected_resign(granted: Granted) -> None:
    """Who has not been elected has nothing to give up; who was and fills has done what it was elected for."""
    plan = leads()
    plan.asks(asking(), granted)
    plan.asks(Depart(), None)
    plan.asks(Load(), Loaded("instance", b"row" if granted.elected else None))
    plan.asks(Land(b"row" if granted.elected else None), None)
    if granted.elected:
        plan.asks(fill(), False)
        plan.ends(Answer(Source.REFUSED, None, "instance"))
    else:
        plan.ends(Answer(Source.UNCACHED, None, "instance"))


@pytest.mark.parametrize("polls", [1, 3])
def test_reader_polls_for_the_value_of_another_process(polls: int) -> None:
    """The pauses double; the value is a hit, and shared with nobody in this process."""
    plan = leads()
    plan.asks(asking(), filling())
    for poll in range(1, polls + 1):
        plan.asks(Wait(2**poll), None)
        plan.asks(asking(1 + poll), Hit(b"row") if poll == polls else filling(WAIT_MS - 2**poll))
    plan.asks(Land(None), None)
    plan.ends(Answer(Source.HIT, "row", None))


def test_reader_waits_no_longer_than_the_elected_has_time() -> None:
    """The last pause ends with the election; then it is this reader's turn."""
    plan = leads()
    plan.asks(asking(), filling(5))
    plan.asks(Wait(2), None)
    plan.asks(asking(2), filling(3))
    plan.asks(Wait(3), None)
    plan.asks(asking(3), ELECTED)
    plan.asks(Depart(), None)
    plan.asks(Load(), LOADED)
    plan.asks(Land(b"row"), None)
    plan.asks(Fill(ENTRY, ELECTED, FINGERPRINT, b"row", TTL_MS), True)
    plan.ends(Answer(Source.FILLED, None, "instance"))


def test_reader_waits_no_longer_than_it_has_patience() -> None:
    """The elected one may have more time than that: all pauses together are `wait_ms`, and the lease is good."""
    plan = leads()
    pauses = [2, 4, 8, 16, 32, 38]
    assert sum(pauses) == WAIT_MS
    plan.asks(asking(), filling())
    for number, pause in enumerate(pauses):
        plan.asks(Wait(pause), None)
        plan.asks(asking(2 + number), filling())
    plan.asks(Depart(), None)
    plan.asks(Load(), LOADED)
    plan.asks(Land(b"row"), None)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance"))


def test_reader_waits_for_one_election_only() -> None:
    """When another one follows, the first was given up: there is nothing to fill, and no use in waiting."""
    plan = leads()
    plan.asks(asking(), filling(50))
    plan.asks(Wait(2), None)
    plan.asks(asking(2), filling(99))
    plan.asks(Depart(), None)
    plan.asks(Load(), Loaded(None, None))
    plan.asks(Land(None), None)
    plan.ends(Answer(Source.UNCACHED, None, None))


def test_reader_that_polls_takes_over_from_who_resigned() -> None:
    """It is elected then, and resigns, too, if there is nothing to fill."""
    plan = leads()
    plan.asks(asking(), filling())
    plan.asks(Wait(2), None)
    plan.asks(asking(2), ELECTED)
    plan.asks(Depart(), None)
    plan.asks(Load(), Loaded(None, None))
    plan.asks(Land(None), None)
    plan.asks(RESIGN, None)
    plan.ends(Answer(Source.UNCACHED, None, None))


def test_reader_that_polls_does_not_wait_for_a_commit() -> None:
    """A fence meanwhile means that no value will come: the database answers."""
    plan = leads()
    plan.asks(asking(), filling())
    plan.asks(Wait(2), None)
    plan.asks(asking(2), Fenced())
    plan.asks(Depart(), None)
    plan.asks(Load(encode=False), UNENCODED)
    plan.asks(Land(None), None)
    plan.ends(Answer(Source.FENCED, None, "instance"))


def test_reader_whose_polls_find_a_corrupt_value_replaces_it() -> None:
    """As any lease that finds one."""
    plan = leads()
    plan.asks(asking(), filling())
    plan.asks(Wait(2), None)
    plan.asks(asking(2), Hit(b"bad"))
    plan.asks(lease(3, replace=True), GRANTED)
    plan.asks(Depart(), None)
    plan.asks(Load(), LOADED)
    plan.asks(Land(b"row"), None)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance", corrupt=True))


def test_polls_of_a_corrupt_row_take_what_another_fills() -> None:
    """The first lease distrusts what is there; what comes after it is another's, and good."""
    plan = read()
    plan.asks(lookup(), b"bad")
    plan.asks(JOIN, Leads())
    plan.asks(asking(replace=True), filling())
    plan.asks(Wait(2), None)
    plan.asks(asking(2), Hit(b"row"))
    plan.asks(Land(None), None)
    plan.ends(Answer(Source.HIT, "row", None))


def test_reader_that_polls_does_not_wait_for_a_fill_that_would_be_invalid() -> None:
    """The table was written meanwhile: the election stands, and what it fills is of the table's old version."""
    newer = Granted(GRANTED.version, b"newer table version")
    plan = leads()
    plan.asks(asking(), filling(50))
    plan.asks(Wait(2), None)
    plan.asks(asking(2), Filling(newer, 48))
    plan.asks(Depart(), None)
    plan.asks(Load(), LOADED)
    plan.asks(Land(b"row"), None)
    plan.asks(Fill(ENTRY, newer, FINGERPRINT, b"row", TTL_MS), True)
    plan.ends(Answer(Source.FILLED, None, "instance"))


@pytest.mark.parametrize("left_ms", [0, 1])
def test_polls_end_whatever_a_transport_says(left_ms: int) -> None:
    """An elected one with no time left, told again and again, is not waited for without end."""
    plan = leads()
    plan.asks(asking(), filling(left_ms))
    for number in range(WAIT_MS):
        plan.asks(Wait(1), None)
        plan.asks(asking(2 + number), filling(left_ms))
    plan.asks(Depart(), None)
    plan.asks(Load(), LOADED)
    plan.asks(Land(b"row"), None)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance"))


# renewal


def renewing(**options: Any) -> Driver:
    """Return a read whose hit is due, at its lease."""
    plan = read_alone(due=lambda payload: True, **options)
    plan.asks(lookup(), b"row")
    return plan


RENEWED = Fill(ENTRY, GRANTED, FINGERPRINT, b"new", TTL_MS, renew=True)
HIT: Answer[str, Any] = Answer(Source.HIT, "row", None)


def test_hit_that_is_not_due_is_all() -> None:
    """Each hit is asked about with its payload."""
    asked: list[bytes] = []
    plan = read_alone(due=asked.append)
    plan.asks(lookup(), b"row")
    plan.ends(HIT)
    assert asked == [b"row"]


@pytest.mark.parametrize(("reply", "source"), [(True, Source.FILLED), (False, Source.REFUSED), (LOST, "lost")])
def test_hit_that_is_due_is_read_again_and_stored_with_a_new_ttl(reply: Any, source: Any) -> None:
    """Lease that replaces, SELECT, fill that renews; the new row is the answer, whatever becomes of the fill."""
    plan = renewing()
    plan.asks(lease(replace=True), GRANTED)
    plan.asks(Load(spare=True), Loaded("instance", b"new"))
    plan.asks(RENEWED, reply)
    plan.ends(Answer(Source.UNREACHABLE if source == "lost" else source, None, "instance"))


@pytest.mark.parametrize("reply", [Fenced(), LOST, Hit(b"row")])
def test_renewal_that_gets_no_lease_leaves_the_hit(reply: Any) -> None:
    """It was valid when it was looked up, and the database is not asked."""
    plan = renewing()
    plan.asks(lease(replace=True), reply)
    plan.ends(HIT)


def test_renewal_in_an_old_snapshot_leaves_the_hit() -> None:
    """A SELECT in it could not be stored [I7]."""
    plan = renewing(fresh=lambda *_: False)
    plan.asks(lease(replace=True), GRANTED)
    plan.ends(HIT)


@pytest.mark.parametrize("row", ["instance", None])
def test_renewal_of_a_row_that_may_not_be_stored_returns_what_it_read(row: str | None) -> None:
    """A row that is gone, or cannot be encoded any more, is not kept alive."""
    plan = renewing()
    plan.asks(lease(replace=True), GRANTED)
    plan.asks(Load(spare=True), Loaded(row, None))
    plan.ends(Answer(Source.UNCACHED, None, row))


def test_renewal_of_a_row_that_is_gone_stores_its_absence() -> None:
    """For the TTL of an absence."""
    plan = renewing(absent_ttl_ms=5_000)
    plan.asks(lease(replace=True), GRANTED)
    plan.asks(Load(spare=True), Loaded(None, ABSENT))
    plan.asks(Fill(ENTRY, GRANTED, FINGERPRINT, ABSENT, 5_000, renew=True), True)
    plan.ends(Answer(Source.FILLED, None, None))


def test_absence_is_not_renewed() -> None:
    """It is left to expire, and nobody looks for a stamp in it."""

    def due(payload: bytes) -> bool:
        raise AssertionError(payload)

    plan = read_alone(absent_ttl_ms=5_000, due=due)
    plan.asks(lookup(), ABSENT)
    plan.ends(Answer(Source.ABSENT, None, None))


def test_renewal_neither_waits_nor_elects() -> None:
    """Others have the value meanwhile."""
    plan = read_alone(due=lambda payload: True, wait_ms=WAIT_MS)
    plan.asks(lookup(), b"row")
    plan.asks(lease(replace=True), GRANTED)
    plan.asks(Load(spare=True), Loaded("instance", b"new"))
    plan.asks(RENEWED, True)
    plan.ends(Answer(Source.FILLED, None, "instance"))


def test_hit_stands_where_the_database_cannot_be_reached() -> None:
    """Nothing has happened to the session's transaction."""
    plan = renewing()
    plan.asks(lease(replace=True), GRANTED)
    plan.asks(Load(spare=True), None)
    plan.ends(HIT)


@pytest.mark.parametrize("error", [RuntimeError("no such table"), CodecError("the session's")])
def test_error_of_the_select_that_renews_is_the_callers(error: Exception) -> None:
    """The session's transaction has failed with it: there is no going back to the hit."""
    plan = renewing()
    plan.asks(lease(replace=True), GRANTED)
    with pytest.raises(type(error)) as raised:
        plan.asks(Load(spare=True), error)
    assert raised.value.__context__ is None


def test_hit_that_is_corrupt_is_not_asked_about() -> None:
    """It is replaced at once."""
    plan = Driver(protocol.read(ENTRY, reading(due=lambda payload: True), new_id=Ids()))
    plan.asks(lookup(), b"bad")
    plan.asks(lease(replace=True), GRANTED)
    plan.asks(Load(), LOADED)
    plan.asks(fill(), True)
    plan.ends(Answer(Source.FILLED, None, "instance", corrupt=True))
