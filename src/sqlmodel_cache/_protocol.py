"""All of the library's consistency: what a reader and a writer say to the cache, and in which order.

Promise: a read that begins after a `commit()` has returned never returns the row as it was before that commit, and no
read ever returns uncommitted data. The argument, its machine-checked counterexamples and the rejected designs are in
`docs/design.md`.

A row has two keys in one hash slot, its own R and its table's T (one T per shard of the table):

    R   absent | FENCE(version, pending {token: deadline}) | VALUE(version, table version, {fingerprint: payload})
    T   absent | FENCE(version, pending {token: deadline}, server)

    step       R absent        R FENCE, none pending   R FENCE, pending   R VALUE, valid         R VALUE, invalid
    lookup     miss            miss                    miss               hit iff own payload    miss
    lease      FENCE, granted  granted                 fenced             hit, else granted      FENCE, granted
    fill       refused         VALUE iff own version   refused            +payload iff own       refused
    begin      FENCE+token     new version, +token     new version, +tok  FENCE+token            FENCE+token
    end        FENCE           new version             -token             FENCE                  FENCE

A value keeps the version of the fence that it took the place of, and is valid when its table version is T's version,
T names the server that is asked, and nothing is pending on T. A lease that finds another's name on T writes its own
there, and a new version; BEGIN and END leave the name. A server has a new name when it starts and when it is promoted.

Whoever reads the row in another shape (another release's columns, a subclass) joins a value with a payload under a
fingerprint of its own: "own" means both versions of the lease, so no commit lies between the payloads of one value.

A lease is refused while anything is pending on T. Versions (96 bits) and tokens (128) are made from a client's random
id and the server's clock, never reused, not even when a client library sends a command twice.

I1  A fence is on every written key before COMMIT is sent, and after the last flush.
I2  BEGIN always changes the version: no lease that was granted before it can fill after it.
I3  Absence is never permission: a fill needs the very version that its lease named, on a fence or on a value.
I4  The SELECT is sent after the lease's reply.
I5  A token is removed only by its owner, and only when the outcome of the COMMIT is known. Otherwise it lapses.
I6  A row that the reader's own transaction wrote is neither looked up nor filled (the session sees to that).
I7  A fill's snapshot is not older than its lease (the session sees to that).
I8  A reader is told of another's load only if that was sent after it began: it joins before, or not at all.
I9  A value is valid only on the server, and in the run of it, that granted its lease: what comes back is not.

Leases: Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013. Deadlines: Gray and Cheriton, "Leases", SOSP 1989.
Fences: the soft locks of Hibernate's second-level cache, with an owner for each lock.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from ._effects import (
    ABSENT,
    NO_KEYS,
    Begin,
    Commit,
    Depart,
    End,
    Entry,
    Fenced,
    Fill,
    Filling,
    Granted,
    Hit,
    Join,
    Keys,
    Land,
    Landed,
    Lease,
    LeaseReply,
    Load,
    Loaded,
    Lookup,
    NearPayload,
    Outcome,
    Resign,
    Wait,
)
from ._plan import Plan, perform
from .errors import CodecError, InvalidationError, TransportError

Row = TypeVar("Row")
Decoded = TypeVar("Decoded")

FIRST_POLL_MS = 2  # doubled with every poll for a value that another process is about to fill
BEGIN_ATTEMPTS = 2
END_ATTEMPTS = 3

NewId = Callable[[], bytes]


class Source(Enum):
    """Where a read's row came from, and why the cache was not filled."""

    HIT = "hit"
    ABSENT = "absent"
    FILLED = "filled"
    REFUSED = "refused"
    FENCED = "fenced"
    UNCACHED = "uncached"
    SHARED = "shared"
    UNREACHABLE = "unreachable"


@dataclass(slots=True)
class Answer(Generic[Decoded, Row]):
    """A read's result: `decoded` from a hit, a `near` one or not; otherwise `row` from the database."""

    source: Source
    decoded: Decoded | None
    row: Row | None
    corrupt: bool = False
    near: bool = False


@dataclass(frozen=True, slots=True)
class Reading(Generic[Decoded]):
    """How a reader wants its row.

    Attributes:
        fingerprint: of the payloads that it can decode.
        decode: makes a row of a payload; raises `CodecError` for one that is not a row, which is then replaced.
        ttl_ms: of what it stores.
        absent_ttl_ms: of a stored "no such row"; 0 where absence is not cached.
        wait_ms: how long it waits for another reader that is about to load the same row; 0 never.
        fresh: tells, before the SELECT is sent, whether its snapshot will not be older than a row's lease (I7).
        due: whether a row's valid payload is about to expire, and this reader shall renew it.
        near: whether its first look-up may be answered by this process's near cache.
    """

    fingerprint: bytes
    decode: Callable[[bytes], Decoded]
    ttl_ms: int
    absent_ttl_ms: int = 0
    wait_ms: int = 0
    fresh: Callable[[Entry, Granted], bool] = lambda entry, lease: True
    due: Callable[[bytes], bool] | None = None
    near: bool = False

    def hit(self, payload: bytes) -> Answer[Decoded, Any]:
        """Return the answer that a payload is. Raises `CodecError`."""
        if payload == ABSENT and self.absent_ttl_ms:
            return Answer(Source.ABSENT, None, None, near=type(payload) is NearPayload)
        return Answer(Source.HIT, self.decode(payload), None, near=type(payload) is NearPayload)


def read(entry: Entry, reading: Reading[Decoded], *, new_id: NewId) -> Plan[Answer[Decoded, Any]]:
    """Return the row at `entry`, from the cache or from the database, and fill the cache with it.

    Transport errors never leave this plan: the database answers.
    """
    plan = unreachable()  # it runs outside of the except clause: what the database raises has nothing to do with that
    with suppress(TransportError):
        payload = yield from perform(Lookup(entry, reading.fingerprint, reading.near))
        plan = looked_up(entry, reading, payload, new_id=new_id)
    return (yield from plan)


def looked_up(
    entry: Entry, reading: Reading[Decoded], payload: bytes | None, *, new_id: NewId
) -> Plan[Answer[Decoded, Any]]:
    """Return the row once its lookup has replied with `payload`: all of `read` but its first step."""
    if payload is None:
        return (yield from missed(entry, reading, new_id=new_id))
    answer: Answer[Decoded, Any] | None = None
    with suppress(CodecError):
        answer = reading.hit(payload)
    if answer is None:
        return (yield from missed(entry, reading, new_id=new_id, corrupt=True))
    if answer.source is Source.ABSENT or reading.due is None or not reading.due(payload):
        return answer
    return (yield from renew(entry, reading, answer, new_id=new_id))


def unreachable() -> Plan[Answer[Any, Any]]:
    """Return the row from the database: the cache cannot be asked."""
    loaded: Loaded[Any] = yield from perform(Load(encode=False))
    return Answer(Source.UNREACHABLE, None, loaded.row)


def missed(
    entry: Entry, reading: Reading[Decoded], *, new_id: NewId, corrupt: bool = False
) -> Plan[Answer[Decoded, Any]]:
    """Return a row whose lookup was a miss, or `corrupt`: of another reader's load, or of its own.

    Who waits, waits for a bounded time, and then goes on as if nobody had been there: an election and a flight save
    the database work and decide on nothing.
    """
    wait_ms = reading.wait_ms
    leads = False
    if wait_ms:
        joined = yield from perform(Join(entry, reading.fingerprint, wait_ms))
        if isinstance(joined, Landed):
            if joined.payload is not None:
                return replace(reading.hit(joined.payload), source=Source.SHARED, corrupt=corrupt)
            wait_ms = 0
        else:
            leads = True
    found: LeaseReply | None
    # Two readers miss. One of them fills between the other's lookup and lease, so a lease may find a value.
    try:
        found = yield from _lease(entry, reading, wait_ms, new_id, corrupt)
        if isinstance(found, Hit):
            try:
                answer = reading.hit(found.payload)
            except CodecError:
                corrupt = True
                found = yield from perform(Lease(entry, reading.fingerprint, new_id(), replace=True))
            else:
                # 1 R1: lease, a hit, old row  2 W: begin, COMMIT, end  3 R2 begins, joins R1: it has to ask itself, I8
                if leads:
                    yield from perform(Land(None))
                return answer
    except TransportError:
        found = None
    return (yield from _load_and_fill(entry, reading, found, leads=leads, corrupt=corrupt))


def _lease(
    entry: Entry, reading: Reading[Any], wait_ms: int, new_id: NewId, corrupt: bool
) -> Plan[Hit | Granted | Fenced]:
    """Return the reply to a lease, after another process had its time to fill if it was elected to.

    It waits for one election: when another follows, the first has been given up, and there may be nothing to fill. Nor
    does it wait for a fill that would not be valid, because the whole table was written meanwhile.
    """
    lease = Lease(entry, reading.fingerprint, new_id(), replace=corrupt, elect_ms=wait_ms)
    found: LeaseReply = yield from perform(lease)
    patience_ms = left_ms = wait_ms
    pause_ms = FIRST_POLL_MS
    under: Granted | None = None
    while isinstance(found, Filling):
        if patience_ms <= 0 or found.left_ms > left_ms or found.lease != (under or found.lease):
            return found.lease
        left_ms, under = found.left_ms, found.lease
        pause_ms = max(1, min(pause_ms, left_ms, patience_ms))
        yield from perform(Wait(pause_ms))
        patience_ms, pause_ms = patience_ms - pause_ms, 2 * pause_ms
        found = yield from perform(Lease(entry, reading.fingerprint, new_id(), elect_ms=wait_ms))
    return found


def _load_and_fill(
    entry: Entry, reading: Reading[Decoded], found: LeaseReply | None, *, leads: bool, corrupt: bool
) -> Plan[Answer[Decoded, Any]]:
    # 1 R: lease   2 W: begin, COMMIT, end   3 R: SELECT, new row   4 R: fill refused, I2: a miss, never a stale row
    # 1 R: SELECT  2 W: begin, COMMIT, end   3 R: lease             4 R: fill accepted, old row: why I4
    may_fill = isinstance(found, Granted) and reading.fresh(entry, found)
    # 1 R1: SELECT, old row  2 W: begin, COMMIT, end  3 R2 begins, joins R1  4 R1 lands: R2 is told the old row: why I8
    if leads:
        yield from perform(Depart())
    loaded: Loaded[Any]
    try:
        loaded = yield from perform(Load(encode=may_fill))
    except Exception:
        if isinstance(found, Granted) and found.elected:
            with suppress(TransportError):
                yield from perform(Resign(entry, found))
        raise
    if leads:
        yield from perform(Land(loaded.payload))
    if found is None:
        return Answer(Source.UNREACHABLE, None, loaded.row, corrupt)
    if not isinstance(found, Granted):
        return Answer(Source.FENCED, None, loaded.row, corrupt)
    try:
        if loaded.payload is None or not may_fill:
            if found.elected:
                yield from perform(Resign(entry, found))
            return Answer(Source.UNCACHED, None, loaded.row, corrupt)
        filled = yield from perform(filling(entry, reading, found, loaded.payload))
    except TransportError:
        return Answer(Source.UNREACHABLE, None, loaded.row, corrupt)
    return Answer(Source.FILLED if filled else Source.REFUSED, None, loaded.row, corrupt)


def filling(entry: Entry, reading: Reading[Any], lease: Granted, payload: bytes, *, renew: bool = False) -> Fill:
    """Return what stores a payload under a lease."""
    ttl_ms = reading.absent_ttl_ms if payload == ABSENT else reading.ttl_ms
    return Fill(entry, lease, reading.fingerprint, payload, ttl_ms, renew)


def renew(
    entry: Entry, reading: Reading[Decoded], hit: Answer[Decoded, Any], *, new_id: NewId
) -> Plan[Answer[Decoded, Any]]:
    """Return a row that was hit shortly before it expires, read again and stored with a new TTL.

    Where it may not be stored, or the database cannot be reached, the hit is the answer: it was valid when it was
    looked up.
    """
    try:
        found = yield from perform(Lease(entry, reading.fingerprint, new_id(), replace=True))
    except TransportError:
        return hit
    if not isinstance(found, Granted) or not reading.fresh(entry, found):
        return hit
    loaded: Loaded[Any] | None = yield from perform(Load(spare=True))
    if loaded is None:
        return hit
    if loaded.payload is None:
        return Answer(Source.UNCACHED, None, loaded.row)
    try:
        filled = yield from perform(filling(entry, reading, found, loaded.payload, renew=True))
    except TransportError:
        return Answer(Source.UNREACHABLE, None, loaded.row)
    return Answer(Source.FILLED if filled else Source.REFUSED, None, loaded.row)


class Debts(Protocol):
    """Keys whose invalidation has not landed. Until it has, this process reads them from the database.

    1 A: END executes, its reply is late   2 B: COMMIT, END fails, owes   3 A: settles, and with it what B owes
    So an invalidation settles only what was owed before it was sent: what its ticket has seen.
    """

    def ticket(self) -> int: ...
    def owe(self, keys: Keys) -> None: ...
    def settle(self, keys: Keys, ticket: int) -> None: ...


def commit(
    keys: Keys,
    debts: Debts,
    *,
    new: Keys = NO_KEYS,
    refuse: bool,
    fence_ttl_ms: int,
    new_id: NewId,
    replicas: int = 0,
) -> Plan[Outcome]:
    """Return the outcome of the database's COMMIT, with `keys` fenced around it, on so many replicas, too.

    `new` rows need no fence: whoever loads one before COMMIT finds none. But their keys may be those of rows that were
    cached, and that somebody has deleted of whom the cache has not heard, or not yet:

    1 R: fills the old row   2 psql: DELETE   3 W: INSERT, COMMIT   4 R: hits the old row. So the cache is told after 3.

    Raises:
        InvalidationError: in `refuse` mode, when the fence could not be set; COMMIT was not sent.
    """
    if not keys:
        outcome = yield from perform(Commit())
        if new and outcome is Outcome.COMMITTED:
            yield from invalidate(new, debts, refuse=False, new_id=new_id, replicas=replicas)
        return outcome
    token = yield from begin(keys, debts, refuse=refuse, fence_ttl_ms=fence_ttl_ms, new_id=new_id, replicas=replicas)
    outcome = yield from perform(Commit())
    ended = keys.including(new) if outcome is Outcome.COMMITTED else keys
    yield from end(ended, token, outcome, debts, new_id=new_id, replicas=replicas)
    return outcome


def begin(
    keys: Keys, debts: Debts, *, refuse: bool, fence_ttl_ms: int, new_id: NewId, replicas: int = 0
) -> Plan[bytes | None]:
    """Return the token of a fence on `keys`, or None when none could be set: then the keys are owed (I1).

    Every attempt has a token of its own: an attempt whose reply was lost may still execute, and lapses.
    """
    cause: TransportError | None = None
    for _ in range(BEGIN_ATTEMPTS):
        token = new_id()
        try:
            yield from perform(Begin(keys, token, fence_ttl_ms, replicas))
        except TransportError as error:
            cause = error
        else:
            return token
    if refuse:
        raise InvalidationError(
            f"the cache could not be told of this commit ({len(keys.rows)} rows, {len(keys.tables)} table shards), "
            'and on_unreachable="refuse": the transaction is rolled back; retry it when the cache answers'
        ) from cause
    debts.owe(keys)
    return None


def end(
    keys: Keys, token: bytes | None, outcome: Outcome, debts: Debts, *, new_id: NewId, replicas: int = 0
) -> Plan[None]:
    """Release the fence, or leave it to its deadline when the COMMIT may still land (I5).

    An END that cannot be delivered leaves the keys owed: the fence holds until its deadline, and a cache that lost
    the fence meanwhile is told again. Replicas that have the fence need not have its END: theirs lapses.
    """
    if outcome is Outcome.UNKNOWN and token is None:
        # 1 A: COMMIT   2 B: UPDATE of the same row, begin fails, owes   3 A: end settles   4 B: COMMIT, connection lost
        debts.owe(keys)
    if outcome is Outcome.UNKNOWN or (token is None and outcome is Outcome.FAILED):
        return  # what is owed stays owed: an earlier commit of these keys may be why
    for _ in range(END_ATTEMPTS if token else 1):  # a cache that did not hear BEGIN will hardly hear END
        ticket = debts.ticket()
        try:
            # 1 A: begin   2 the cache is lost, and comes back empty   3 B: fills the old row   4 A: COMMIT   5 A: end
            # Whoever has given the cache up meanwhile asks it once more: others may reach it.
            yield from perform(End(keys, token or new_id(), new_id(), 0 if token else replicas, insists=bool(token)))
        except TransportError:
            continue
        debts.settle(keys, ticket)
        return
    debts.owe(keys)


def invalidate(keys: Keys, debts: Debts, *, refuse: bool, new_id: NewId, replicas: int = 0) -> Plan[None]:
    """Give every key a new version: values of these keys are gone, and leases that were granted before are dead.

    Raises:
        InvalidationError: in `refuse` mode, when the cache did not answer.
    """
    cause: TransportError | None = None
    for _ in range(END_ATTEMPTS):
        try:
            yield from perform(End(keys, new_id(), new_id(), replicas))
        except TransportError as error:
            cause = error
        else:
            return
    if refuse:
        raise InvalidationError("the cache could not be told, and what it holds may be stale") from cause
    debts.owe(keys)


def settle(keys: Keys, debts: Debts, *, fence_ttl_ms: int, new_id: NewId, replicas: int = 0) -> Plan[bool]:
    """Deliver an invalidation that failed before; return whether it has arrived.

    It is a fence that nobody ends: a COMMIT of these keys may still land (I5).
    """
    ticket = debts.ticket()
    try:
        yield from perform(Begin(keys, new_id(), fence_ttl_ms, replicas))
    except TransportError:
        return False
    debts.settle(keys, ticket)
    return True
