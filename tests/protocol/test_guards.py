"""Every guard of the protocol is needed: without it the explorer finds a counterexample, and with it none.

The letters in brackets are those of the rules in the design (`docs/design.md`), and of the oracle in `schedules.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from protocol import mutants
from protocol.programs import (
    FINGERPRINT,
    NOTHING,
    OTHER_RELEASE,
    ROW,
    TABLE,
    finder,
    keeper,
    own_load,
    reader,
    reader_of_many,
    remembering_reader,
    snapshot_reader,
    verifier,
    waiting_reader,
    writer,
)
from protocol.scenario import Scenario
from protocol.schedules import explore

from sqlmodel_cache._effects import ABSENT

LONGEST = 18  # events of a counterexample that one can still read


@dataclass(frozen=True)
class Guard:
    """A guard, what is left without it, and the promise that falls."""

    letter: str
    without: dict[str, Any]
    world: dict[str, Any] = field(default_factory=dict)
    intact: dict[str, Any] = field(default_factory=dict)  # where taking out the mutant is not enough


TOGETHER: dict[str, Any] = {"answers": True, "together": True}
TWO_RELEASES = (reader(), reader(fingerprint=OTHER_RELEASE))
BOTH_RELEASES = (FINGERPRINT, OTHER_RELEASE)
TWO_WRITERS = {"writers": (writer(), writer())}
NO_ROW = {"row_exists": False, "caches_missing": True}
RESTORES: dict[str, Any] = {"evictions": 1, "restores": True}
LOSES_FENCES: dict[str, Any] = {"evictions": 1, "evicts_pending": True}

VERIFIES: tuple[dict[str, Any], ...] = ({"answers": True}, {"readers": (verifier(), reader())})

GUARDS = {
    "BEGIN is sent [SX3]": Guard("a", {"writers": (writer(commit=mutants.never_tells),)}),
    "BEGIN comes before COMMIT [C4]": Guard("b", {"writers": (writer(commit=mutants.begins_after_commit),)}),
    "BEGIN comes before COMMIT, whoever crashes [C1]": Guard(
        "p", {"writers": (writer(commit=mutants.begins_after_commit),)}, {"crashes": 1, "deadlines": "sound"}
    ),
    "BEGIN comes after the last flush [SX2]": Guard(
        "a", {"writers": (writer(commit=mutants.fences_what_was_flushed_before),)}
    ),
    "BEGIN changes the version [M7]": Guard("a", {"transport": mutants.BeginKeepsTheVersion}),
    "BEGIN leaves the tokens of others [C5]": Guard(
        "b",
        {"transport": mutants.BeginForgetsOthers},
        {"writers": (writer(TABLE), writer(TABLE, touches=False))},
    ),
    "what a keeper delivers leaves the tokens of others [C5]": Guard(
        "b", {"transport": mutants.BeginForgetsOthers}, {"writers": (writer(), keeper()), "deadlines": "sound"}
    ),
    "a token has a deadline [d]": Guard("d", {"transport": mutants.NoDeadline}, {"crashes": 1, "deadlines": "sound"}),
    "the deadline outlives COMMIT [H2]": Guard("b", {"deadlines": "any"}, intact={"deadlines": "sound"}),
    "every attempt has its own token [H4]": Guard(
        "b",
        {"writers": (writer(retries=1, same_id=True),)},
        {"lost": 1, "refusals": True, "deadlines": "sound"},
        {"writers": (writer(retries=1),)},
    ),
    "a lease is refused while the row is pending [M8]": Guard("a", {"transport": mutants.LeaseWhileRowPending}),
    "a lease is refused while the table is pending [M8]": Guard(
        "a", {"transport": mutants.LeaseWhileTablePending}, {"writers": (writer(TABLE),)}
    ),
    "a version is never used again [C8]": Guard(
        "a", {"transport": mutants.LeasesRepeat}, {"evictions": 1, "readers": (reader(), reader())}
    ),
    "SELECT is sent after the lease [I4]": Guard("a", {"readers": (reader(mutants.selects_before_lease),)}),
    "a fill needs its own version [C7]": Guard("a", {"transport": mutants.FillUnderAnyVersion}),
    "a fill beside another needs its version": Guard(
        "a", {"transport": mutants.FillBesideAnyVersion}, {"readers": TWO_RELEASES, "fingerprints": BOTH_RELEASES}
    ),
    "a fill beside another needs its table's version": Guard(
        "a",
        {"transport": mutants.FillBesideAnyTableVersion},
        {"readers": TWO_RELEASES, "fingerprints": BOTH_RELEASES, "writers": (writer(TABLE),)},
    ),
    "a value whose table has changed gives way to a fence": Guard(
        "d", {"transport": mutants.LeaseOnAnInvalidValue}, {"writers": (writer(TABLE),)}
    ),
    "absence is not permission [C8]": Guard("a", {"transport": mutants.FillOnAbsent}, {"evictions": 1}),
    "a fill keeps the table's version of its lease": Guard(
        "a", {"transport": mutants.FillWithTheTableOfNow}, {"writers": (writer(TABLE),)}
    ),
    "a hit needs its table's version": Guard(
        "a", {"transport": mutants.LookupIgnoresTheTable}, {"writers": (writer(TABLE),)}
    ),
    "a hit is under the name of its server [I9]": Guard(
        "a", {"transport": mutants.LookupIgnoresTheServer}, {**RESTORES, "promise": "acdp"}
    ),
    "a lease gives the version of another server no second life [I9]": Guard(
        "a", {"transport": mutants.LeaseIgnoresTheServer}, {**RESTORES, "promise": "acdp"}
    ),
    "END opens its own fence only [C5]": Guard("b", {"transport": mutants.EndOpensAll}, TWO_WRITERS),
    "END does not delete [C6]": Guard("b", {"transport": mutants.EndDeletes}, TWO_WRITERS),
    "END tells a cache that lost the fence [M6h]": Guard(
        "a", {"transport": mutants.EndIgnoresALostToken}, {**LOSES_FENCES, "promise": "acd"}
    ),
    "END tells a cache whose fence has lapsed [M6h]": Guard(
        "a", {"transport": mutants.EndIgnoresALostToken}, {"deadlines": "any", "promise": "acd"}
    ),
    "commit() returns after END [H5]": Guard(
        "a", {"writers": (writer(commit=mutants.never_ends),)}, {**LOSES_FENCES, "promise": "acd"}
    ),
    "END is sent again until it has arrived [H5i]": Guard(
        "a", {"writers": (writer(commit=mutants.ends_once),)}, {**LOSES_FENCES, "lost": 1, "promise": "acd"}
    ),
    "an unknown outcome has no END [H3]": Guard(
        "b",
        {"writers": (writer(commit=mutants.ends_on_unknown_outcome),)},
        {"unknown": True, "refusals": True, "deadlines": "sound"},
    ),
    "a transaction bypasses the cache for its own writes [H8]": Guard(
        "c",
        {"writers": (writer(before=mutants.own_read_through_cache),), "fills_own": True},
        intact={"writers": (writer(before=own_load),), "fills_own": True},
    ),
    "what saw its own transaction's writes does not fill [H8]": Guard(
        "c", {"fills_own": True}, {"writers": (writer(before=mutants.own_read_through_cache),)}
    ),
    "an old snapshot does not fill [H7]": Guard("a", {"fills_old": True}, {"readers": (snapshot_reader(),)}),
    "an old snapshot does not fill under a version that has changed [H7]": Guard(
        "a", {"fills_old": True}, {"readers": (remembering_reader(),)}
    ),
    "nobody joins a load that has been sent [H11]": Guard(
        "j",
        {"readers": (waiting_reader(mutants.never_departs),) * 2},
        TOGETHER,
        {"readers": (waiting_reader(),) * 2},
    ),
    "what a lease has found is not shared [H11r]": Guard(
        "j",
        {"readers": (*(waiting_reader(mutants.lands_what_its_lease_found),) * 2, reader())},
        TOGETHER,
        {"readers": (*(waiting_reader(),) * 2, reader())},
    ),
    "a renewal is sent after its lease [I4]": Guard("a", {"readers": (reader(mutants.renews_under_no_lease),)}),
    "many rows are read after their leases [I4]": Guard(
        "a", {"readers": (reader_of_many(mutants.selects_many_before_lease),)}
    ),
    "a verifier asks for the versions again": Guard(
        "j", {"readers": (verifier(mutants.looks_once), reader())}, *VERIFIES
    ),
    "a verifier asks for them after its SELECT": Guard(
        "j", {"readers": (verifier(mutants.asks_before_the_select), reader())}, *VERIFIES
    ),
    "a verifier's payload is of the versions that it has asked for": Guard(
        "j", {"readers": (verifier(mutants.looks_up_before_the_lease), reader())}, *VERIFIES
    ),
    "a verifier's SELECT comes after its lease": Guard(
        "j", {"readers": (verifier(mutants.selects_before_the_lease), reader())}, *VERIFIES
    ),
    "a row that a hint leads to must have the key": Guard(
        "j",
        {"readers": (finder(matches=lambda version: True), reader())},
        {"answers": True},
        {"readers": (finder(), reader())},
    ),
    "an INSERT tells of its row, which outsiders may have deleted": Guard(
        "a", {"writers": (writer(NOTHING),)}, {"promise": "acdj"}, {"writers": (writer(NOTHING, new=ROW),)}
    ),
    "an INSERT fences the row that is cached as missing [H10]": Guard(
        "a", {"writers": (writer(commit=mutants.never_tells),)}, {"warm": ABSENT, **NO_ROW}
    ),
}


@pytest.mark.parametrize("name", GUARDS)
def test_guard_is_needed(name: str) -> None:
    """Without the guard some schedule breaks the promise, and its trace can be read; with it none does."""
    guard = GUARDS[name]
    found = explore(Scenario(**{**guard.world, **guard.without}), until=guard.letter)
    assert guard.letter in found.traces, f"nothing is lost without: {name}"
    print(f"\nwithout: {name}\n{found.told(guard.letter)}")
    assert 3 <= len(found.traces[guard.letter]) <= LONGEST

    kept = explore(Scenario(**{**guard.world, **guard.intact}))
    assert not kept.traces, "\n\n".join(kept.told(letter) for letter in kept.traces)
