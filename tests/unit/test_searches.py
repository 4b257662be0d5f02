"""Many rows, and a row by a unique key: the plans driven by hand, with every reply and every failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from protocol.by_hand import FINGERPRINT, LOST, TTL_MS, Driver, Ids, id_at, reading

from sqlmodel_cache import _searches as searches
from sqlmodel_cache._effects import (
    ABSENT,
    Entry,
    Fenced,
    Fill,
    Granted,
    Hit,
    Lease,
    Loaded,
    LoadMany,
    Locate,
    Located,
    Lookup,
    Together,
)
from sqlmodel_cache._protocol import Answer, Reading, Source
from sqlmodel_cache.errors import CodecError

ENTRIES = tuple(Entry(f"c:{{t}}:{number}", "c:{t}") for number in range(4))


def granted(at: int) -> Granted:
    """Return the lease of a row."""
    return Granted(f"row {at}".encode(), b"table")


# many rows


def many(count: int, **options: Any) -> Driver:
    """Return a read of several rows, at its first effect."""
    return Driver(searches.read_many(ENTRIES[:count], reading(**options), new_id=Ids()))


def lookups(*places: int) -> Together[Any]:
    """Return the look-ups of rows."""
    return Together(tuple(Lookup(ENTRIES[at], FINGERPRINT) for at in places))


def leases(*places: int, replace: tuple[int, ...] = ()) -> Together[Any]:
    """Return the leases on rows; each has an id of its own."""
    return Together(
        tuple(
            Lease(ENTRIES[at], FINGERPRINT, id_at(number), replace=at in replace)
            for number, at in enumerate(places, start=1)
        )
    )


def fills(*places: int) -> Together[Any]:
    """Return the fills of rows."""
    return Together(tuple(Fill(ENTRIES[at], granted(at), FINGERPRINT, f"row{at}".encode(), TTL_MS) for at in places))


def loaded(at: int) -> Loaded[str]:
    """Return a row from the database."""
    return Loaded(f"instance {at}", f"row{at}".encode())


def hit(at: int) -> Answer[str, Any]:
    """Return the answer of a hit."""
    return Answer(Source.HIT, f"row{at}", None)


def read(at: int, source: Source, *, corrupt: bool = False) -> Answer[str, Any]:
    """Return the answer of a row from the database."""
    return Answer(source, None, f"instance {at}", corrupt)


def test_many_hits_are_one_round_trip() -> None:
    """All look-ups go together, and the answers are in the order of the entries."""
    plan = many(3)
    plan.asks(lookups(0, 1, 2), (b"row0", b"row1", b"row2"))
    plan.ends([hit(0), hit(1), hit(2)])


def test_no_rows_ask_nothing() -> None:
    """Nothing is sent for nothing."""
    many(0).ends([])


def test_many_misses_are_three_round_trips_and_one_select() -> None:
    """Look-ups, leases, SELECT [I4], fills, each of all rows."""
    plan = many(3)
    plan.asks(lookups(0, 1, 2), (None, None, None))
    plan.asks(leases(0, 1, 2), (granted(0), granted(1), granted(2)))
    plan.asks(LoadMany((0, 1, 2), (True, True, True)), [loaded(0), loaded(1), loaded(2)])
    plan.asks(fills(0, 1, 2), (True, False, True))
    plan.ends([read(0, Source.FILLED), read(1, Source.REFUSED), read(2, Source.FILLED)])


def test_many_ask_only_for_what_is_open() -> None:
    """A hit is done with; what a lease finds is, too; and the rest is read."""
    plan = many(4)
    plan.asks(lookups(0, 1, 2, 3), (None, b"row1", None, None))
    plan.asks(leases(0, 2, 3), (granted(0), Hit(b"row2"), Fenced()))
    plan.asks(LoadMany((0, 3), (True, False)), [loaded(0), Loaded("instance 3", None)])
    plan.asks(fills(0), (True,))
    plan.ends([read(0, Source.FILLED), hit(1), hit(2), read(3, Source.FENCED)])


def test_many_whose_leases_all_hit_send_no_select() -> None:
    """Others have filled meanwhile."""
    plan = many(2)
    plan.asks(lookups(0, 1), (None, None))
    plan.asks(leases(0, 1), (Hit(b"row0"), Hit(b"row1")))
    plan.ends([hit(0), hit(1)])


def test_many_replace_what_is_corrupt() -> None:
    """That row's lease distrusts what is there, the others' do not."""
    plan = many(2)
    plan.asks(lookups(0, 1), (b"bad", None))
    plan.asks(leases(0, 1, replace=(0,)), (granted(0), granted(1)))
    plan.asks(LoadMany((0, 1), (True, True)), [loaded(0), loaded(1)])
    plan.asks(fills(0, 1), (True, True))
    plan.ends([read(0, Source.FILLED, corrupt=True), read(1, Source.FILLED)])


def test_many_read_what_a_lease_finds_corrupt() -> None:
    """It is left to the next reader to replace."""
    plan = many(2)
    plan.asks(lookups(0, 1), (None, b"row1"))
    plan.asks(leases(0), (Hit(b"bad"),))
    plan.asks(LoadMany((0,), (False,)), [Loaded("instance 0", None)])
    plan.ends([read(0, Source.FENCED, corrupt=True), hit(1)])


@pytest.mark.parametrize("step", ["lookup", "lease", "fill"])
def test_one_row_that_is_lost_does_not_touch_the_others(step: str) -> None:
    """It is read from the database, and neither asked for again nor stored."""
    plan = many(2)
    plan.asks(lookups(0, 1), (LOST, None) if step == "lookup" else (None, None))
    if step == "lookup":
        plan.asks(leases(1), (granted(1),))
    else:
        plan.asks(leases(0, 1), (LOST if step == "lease" else granted(0), granted(1)))
    encode = (step == "fill", True)
    plan.asks(LoadMany((0, 1), encode), [loaded(0) if encode[0] else Loaded("instance 0", None), loaded(1)])
    plan.asks(fills(0, 1) if step == "fill" else fills(1), (LOST, True) if step == "fill" else (True,))
    plan.ends([read(0, Source.UNREACHABLE), read(1, Source.FILLED)])


@pytest.mark.parametrize("step", ["lookup", "lease", "fill"])
def test_many_that_are_all_lost_are_read_by_one_select(step: str) -> None:
    """A transport that does not answer costs each round trip once, and nothing more is asked of it."""
    plan = many(2)
    plan.asks(lookups(0, 1), LOST if step == "lookup" else (None, None))
    if step != "lookup":
        plan.asks(leases(0, 1), LOST if step == "lease" else (granted(0), granted(1)))
    rows = [loaded(0), loaded(1)] if step == "fill" else [Loaded("instance 0", None), Loaded("instance 1", None)]
    plan.asks(LoadMany((0, 1), (step == "fill",) * 2), rows)
    if step == "fill":
        plan.asks(fills(0, 1), LOST)
    plan.ends([read(0, Source.UNREACHABLE), read(1, Source.UNREACHABLE)])


def test_hit_stands_when_the_leases_are_lost() -> None:
    """What was answered is not asked of the database."""
    plan = many(2)
    plan.asks(lookups(0, 1), (b"row0", None))
    plan.asks(leases(1), LOST)
    plan.asks(LoadMany((1,), (False,)), [Loaded("instance 1", None)])
    plan.ends([hit(0), read(1, Source.UNREACHABLE)])


def test_many_in_an_old_snapshot_are_not_stored() -> None:
    """Each row by its own lease [I7]."""
    plan = many(2, fresh=lambda entry, lease: entry == ENTRIES[1] and lease == granted(1))
    plan.asks(lookups(0, 1), (None, None))
    plan.asks(leases(0, 1), (granted(0), granted(1)))
    plan.asks(LoadMany((0, 1), (False, True)), [Loaded("instance 0", None), loaded(1)])
    plan.asks(fills(1), (True,))
    plan.ends([read(0, Source.UNCACHED), read(1, Source.FILLED)])


def test_many_that_are_missing_are_stored_as_such() -> None:
    """For the TTL of an absence, where that is cached; and found as such."""
    plan = many(3, absent_ttl_ms=5_000)
    plan.asks(lookups(0, 1, 2), (ABSENT, None, None))
    plan.asks(leases(1, 2), (granted(1), Hit(ABSENT)))
    plan.asks(LoadMany((1,), (True,)), [Loaded(None, ABSENT)])
    plan.asks(Together((Fill(ENTRIES[1], granted(1), FINGERPRINT, ABSENT, 5_000),)), (True,))
    absent: Answer[str, Any] = Answer(Source.ABSENT, None, None)
    plan.ends([absent, Answer(Source.FILLED, None, None), absent])


def test_many_that_must_not_be_stored_are_not() -> None:
    """No fill is sent where there is no payload."""
    plan = many(1)
    plan.asks(lookups(0), (None,))
    plan.asks(leases(0), (granted(0),))
    plan.asks(LoadMany((0,), (True,)), [Loaded("instance 0", None)])
    plan.ends([read(0, Source.UNCACHED)])


def test_many_neither_wait_nor_elect() -> None:
    """Waiting for one row would hold up the others."""
    plan = many(1, wait_ms=100)
    plan.asks(lookups(0), (None,))
    plan.asks(leases(0), (granted(0),))
    plan.asks(LoadMany((0,), (True,)), [loaded(0)])
    plan.asks(fills(0), (True,))
    plan.ends([read(0, Source.FILLED)])


def test_error_of_the_select_of_many_is_the_callers() -> None:
    """Alone: a cache that is down as well does not show in its traceback."""
    plan = many(1)
    plan.asks(lookups(0), LOST)
    with pytest.raises(RuntimeError, match="no such table") as raised:
        plan.asks(LoadMany((0,), (False,)), RuntimeError("no such table"))
    assert raised.value.__context__ is None


# a row by a unique key

KEY = Entry("c:{u}:/email=a", "c:{u}")
HINTS = b"hints..."
KEY_LEASE = Granted(b"key", b"key's table")


def place(hint: bytes) -> int:
    """Return the row that a hint names."""
    if not hint.isdigit():
        raise CodecError("not a hint")
    return int(hint)


def find(
    *, may_ask: bool = True, has_key: Callable[[str], bool] = lambda row: not row.startswith("other"), **options: Any
) -> Driver:
    """Return a search, at its first effect. `may_ask` is whether the row that a hint names may be asked for."""
    finding = searches.Finding(
        KEY,
        Reading(HINTS, place, TTL_MS, **options),
        lambda at: (ENTRIES[at], reading(**options)) if may_ask else None,
        has_key,
    )
    return Driver(searches.find(finding, new_id=Ids()))


def hint() -> Lookup:
    """Return a search's first effect."""
    return Lookup(KEY, HINTS)


def row(at: int = 1) -> Lookup:
    """Return the look-up of the row that the hint has named."""
    return Lookup(ENTRIES[at], FINGERPRINT)


def asks_leases(*, hinted: bool, at: int | None, corrupt: bool = False) -> Together[Any]:
    """Return the leases of a search."""
    wanted = [Lease(KEY, HINTS, id_at(1), replace=hinted)]
    if at is not None:
        wanted.append(Lease(ENTRIES[at], FINGERPRINT, id_at(2), replace=corrupt))
    return Together(tuple(wanted))


def located(at: int) -> Located[str]:
    """Return what the database says."""
    return Located(loaded(at), ENTRIES[at], str(at).encode())


FILL_HINT = Fill(KEY, KEY_LEASE, HINTS, b"1", TTL_MS)
FILL_ROW = Fill(ENTRIES[1], granted(1), FINGERPRINT, b"row1", TTL_MS)


def test_find_by_a_hint_that_matches_is_two_round_trips() -> None:
    """The key's entry, then the row's."""
    plan = find()
    plan.asks(hint(), b"1")
    plan.asks(row(), b"row1")
    plan.ends(hit(1))


def test_find_without_a_hint_stores_one() -> None:
    """The row's own entry is not known before the SELECT, so it has no lease [I4]: it is stored by the next reader."""
    plan = find()
    plan.asks(hint(), None)
    plan.asks(asks_leases(hinted=False, at=None), (KEY_LEASE,))
    plan.asks(Locate(), located(1))
    plan.asks(Together((FILL_HINT,)), (True,))
    plan.ends(read(1, Source.FILLED))


def test_find_of_a_row_that_is_not_cached_stores_both() -> None:
    """The hint may be replaced by the same one; both fills go together, under leases that came before the SELECT."""
    plan = find()
    plan.asks(hint(), b"1")
    plan.asks(row(), None)
    plan.asks(asks_leases(hinted=True, at=1), (KEY_LEASE, granted(1)))
    plan.asks(Locate(), located(1))
    plan.asks(Together((FILL_HINT, FILL_ROW)), (True, True))
    plan.ends(read(1, Source.FILLED))


def test_find_distrusts_a_hint_whose_row_has_another_key() -> None:
    """Row 1 gave the key away: the database says who has it, and only the hint is new."""
    plan = find()
    plan.asks(hint(), b"1")
    plan.asks(row(), b"other")
    plan.asks(asks_leases(hinted=True, at=1), (KEY_LEASE, Hit(b"other")))
    plan.asks(Locate(), located(2))
    plan.asks(Together((Fill(KEY, KEY_LEASE, HINTS, b"2", TTL_MS),)), (True,))
    plan.ends(read(2, Source.FILLED))


def test_find_does_not_store_a_row_under_the_lease_of_another() -> None:
    """The hint named row 1, and the database found row 2: row 1's lease is let go."""
    plan = find()
    plan.asks(hint(), b"1")
    plan.asks(row(), None)
    plan.asks(asks_leases(hinted=True, at=1), (KEY_LEASE, granted(1)))
    plan.asks(Locate(), located(2))
    plan.asks(Together((Fill(KEY, KEY_LEASE, HINTS, b"2", TTL_MS),)), (True,))
    plan.ends(read(2, Source.FILLED))


def test_find_replaces_a_corrupt_hint() -> None:
    """It names nobody."""
    plan = find()
    plan.asks(hint(), b"bad")
    plan.asks(asks_leases(hinted=True, at=None), (KEY_LEASE,))
    plan.asks(Locate(), located(1))
    plan.asks(Together((FILL_HINT,)), (True,))
    plan.ends(read(1, Source.FILLED))


def test_find_replaces_a_corrupt_row() -> None:
    """Its lease distrusts what is there."""
    plan = find()
    plan.asks(hint(), b"1")
    plan.asks(row(), b"bad")
    plan.asks(asks_leases(hinted=True, at=1, corrupt=True), (KEY_LEASE, granted(1)))
    plan.asks(Locate(), located(1))
    plan.asks(Together((FILL_HINT, FILL_ROW)), (True, True))
    plan.ends(read(1, Source.FILLED, corrupt=True))


def test_find_does_not_take_a_cached_absence_for_an_answer() -> None:
    """Row 1 is gone, and another may have the key."""
    plan = find(absent_ttl_ms=5_000)
    plan.asks(hint(), b"1")
    plan.asks(row(), ABSENT)
    plan.asks(asks_leases(hinted=True, at=1), (KEY_LEASE, Hit(ABSENT)))
    plan.asks(Locate(), located(2))
    plan.asks(Together((Fill(KEY, KEY_LEASE, HINTS, b"2", TTL_MS),)), (True,))
    plan.ends(read(2, Source.FILLED))


def test_find_leaves_a_row_that_may_not_be_asked_for_to_the_database() -> None:
    """The session's own write, or one that it holds and a SELECT would refresh [I6]."""
    plan = find(may_ask=False)
    plan.asks(hint(), b"1")
    plan.asks(asks_leases(hinted=True, at=None), (KEY_LEASE,))
    plan.asks(Locate(), Located(Loaded("instance 1", None), None, None))
    plan.ends(read(1, Source.UNCACHED))


def test_find_of_nothing_stores_nothing() -> None:
    """There is no row to lead to."""
    plan = find()
    plan.asks(hint(), None)
    plan.asks(asks_leases(hinted=False, at=None), (KEY_LEASE,))
    plan.asks(Locate(), Located(Loaded(None, None), None, None))
    plan.ends(Answer(Source.UNCACHED, None, None))


@pytest.mark.parametrize("fenced", ["hint", "row", "both"])
def test_find_stores_what_is_not_fenced(fenced: str) -> None:
    """Each entry by its own lease; without any, no payload is wanted. A row that was not stored is no fill."""
    plan = find()
    plan.asks(hint(), b"1")
    plan.asks(row(), None)
    replies = (Fenced() if fenced != "row" else KEY_LEASE, Fenced() if fenced != "hint" else granted(1))
    plan.asks(asks_leases(hinted=True, at=1), replies)
    if fenced == "both":
        plan.asks(Locate(encode=False), Located(Loaded("instance 1", None), None, None))
        plan.ends(read(1, Source.FENCED))
    else:
        plan.asks(Locate(), located(1))
        plan.asks(Together((FILL_ROW,) if fenced == "hint" else (FILL_HINT,)), (True,))
        plan.ends(read(1, Source.FILLED if fenced == "hint" else Source.FENCED))


def test_find_that_another_reader_has_stored_meanwhile_is_late() -> None:
    """Its lease finds the entry that the look-up did not: no commit is in flight, and nothing is to be stored."""
    plan = find()
    plan.asks(hint(), None)
    plan.asks(asks_leases(hinted=False, at=None), (Hit(b"1"),))
    plan.asks(Locate(encode=False), Located(Loaded("instance 1", None), None, None))
    plan.ends(read(1, Source.REFUSED))


def test_find_in_an_old_snapshot_stores_nothing() -> None:
    """Neither the row nor that it has the key [I7]."""
    plan = find(fresh=lambda *_: False)
    plan.asks(hint(), b"1")
    plan.asks(row(), None)
    plan.asks(asks_leases(hinted=True, at=1), (KEY_LEASE, granted(1)))
    plan.asks(Locate(), located(1))
    plan.ends(read(1, Source.UNCACHED))


@pytest.mark.parametrize("part", ["hint", "row"])
def test_find_stores_what_may_be_told(part: str) -> None:
    """A row that cannot be encoded has a hint all the same; a hint may be withheld."""
    plan = find()
    plan.asks(hint(), b"1")
    plan.asks(row(), None)
    plan.asks(asks_leases(hinted=True, at=1), (KEY_LEASE, granted(1)))
    if part == "hint":
        plan.asks(Locate(), Located(Loaded("instance 1", None), ENTRIES[1], b"1"))
        plan.asks(Together((FILL_HINT,)), (True,))
    else:
        plan.asks(Locate(), Located(loaded(1), ENTRIES[1], None))
        plan.asks(Together((FILL_ROW,)), (True,))
    plan.ends(read(1, Source.FILLED))


@pytest.mark.parametrize("step", ["hint", "row", "leases"])
def test_find_that_loses_the_cache_asks_the_database_once(step: str) -> None:
    """Nothing more is asked of the cache."""
    plan = find()
    plan.asks(hint(), LOST if step == "hint" else b"1")
    if step != "hint":
        plan.asks(row(), LOST if step == "row" else b"bad")
    if step == "leases":
        plan.asks(asks_leases(hinted=True, at=1, corrupt=True), LOST)
    plan.asks(Locate(encode=False), Located(Loaded("instance 1", None), None, None))
    plan.ends(read(1, Source.UNREACHABLE, corrupt=step == "leases"))


@pytest.mark.parametrize(
    ("replies", "source"),
    [
        ((True, True), Source.FILLED),
        ((False, True), Source.FILLED),
        ((LOST, True), Source.FILLED),
        ((False, False), Source.REFUSED),
        ((LOST, False), Source.UNREACHABLE),
        ((LOST, LOST), Source.UNREACHABLE),
        (LOST, Source.UNREACHABLE),
    ],
    ids=repr,
)
def test_find_returns_its_row_whatever_becomes_of_the_fills(replies: Any, source: Source) -> None:
    """One that was stored counts as filled, one that was lost as an error."""
    plan = find()
    plan.asks(hint(), b"1")
    plan.asks(row(), None)
    plan.asks(asks_leases(hinted=True, at=1), (KEY_LEASE, granted(1)))
    plan.asks(Locate(), located(1))
    plan.asks(Together((FILL_HINT, FILL_ROW)), replies)
    plan.ends(read(1, source))


@pytest.mark.parametrize("lost", ["hint", "row", "both"])
def test_find_goes_on_with_the_lease_that_it_has(lost: str) -> None:
    """One that was lost is no permission [I3]; both lost are the cache's trouble, not a fence's."""
    plan = find()
    plan.asks(hint(), b"1")
    plan.asks(row(), None)
    replies = (LOST if lost != "row" else KEY_LEASE, LOST if lost != "hint" else granted(1))
    plan.asks(asks_leases(hinted=True, at=1), replies)
    if lost == "both":
        plan.asks(Locate(encode=False), Located(Loaded("instance 1", None), None, None))
        plan.ends(read(1, Source.UNREACHABLE))
    else:
        plan.asks(Locate(), located(1))
        plan.asks(Together((FILL_ROW,) if lost == "hint" else (FILL_HINT,)), (True,))
        plan.ends(read(1, Source.FILLED))


def test_error_of_the_select_by_key_is_the_callers() -> None:
    """Alone, also beside a cache that is down."""
    plan = find()
    plan.asks(hint(), LOST)
    with pytest.raises(RuntimeError, match="no such table") as raised:
        plan.asks(Locate(encode=False), RuntimeError("no such table"))
    assert raised.value.__context__ is None


def test_searches_never_resign() -> None:
    """They were never elected: no lease of theirs asks for it."""
    plan = find(wait_ms=100)
    plan.asks(hint(), None)
    plan.asks(asks_leases(hinted=False, at=None), (KEY_LEASE,))
    plan.asks(Locate(), Located(Loaded(None, None), None, None))
    plan.ends(Answer(Source.UNCACHED, None, None))
