"""A real Redis Cluster: every effect reaches its nodes, in one round trip each, also while slots move."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from servers import RedisCluster, RedisServer, free_cluster_port
from transport.backends import FENCE_TTL_MS, FINGERPRINT, PAYLOAD, TTL_MS, Sent, id_of
from transport.topologies import Caller, caller_on, client_of
from waiting import until

from sqlmodel_cache import TransportError
from sqlmodel_cache._effects import (
    Begin,
    End,
    Entry,
    Fenced,
    Fill,
    Filling,
    Granted,
    Hit,
    Keys,
    Lease,
    Lookup,
    Resign,
    Together,
)
from sqlmodel_cache.transport._cluster import slot_of

TOKEN = id_of("token")
ENTRIES = [Entry(f"c:{{db/hero:{shard}}}:{pk}", f"c:{{db/hero:{shard}}}") for shard in range(16) for pk in range(3)]
ALL = Keys(tuple(entry.row for entry in ENTRIES), tuple(sorted({entry.table for entry in ENTRIES})))
ENTRY = ENTRIES[0]
NEIGHBOUR = ENTRIES[1]
SLOT = slot_of((ENTRY.row,))
LOOKUP = Lookup(ENTRY, FINGERPRINT)
LEASE = Lease(ENTRY, FINGERPRINT, id_of("lease"))
ONE_SLOT = Keys((ENTRY.row, NEIGHBOUR.row), (ENTRY.table,))


@pytest.fixture(params=["sync", "asyncio"])
def call(request: pytest.FixtureRequest, cluster: RedisCluster) -> Iterator[Caller]:
    """A transport on a cluster."""
    with caller_on(client_of(cluster, to_async=request.param == "asyncio")) as call:
        yield call


def fill(call: Caller, entry: Entry = ENTRY) -> Granted:
    """Store a payload, and return the lease."""
    granted: Granted = call(Lease(entry, FINGERPRINT, id_of("lease")))
    assert call(Fill(entry, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
    return granted


def answers(call: Caller) -> bool:
    """Return whether a commit's fences are set, on all nodes."""
    try:
        call(Begin(ALL, TOKEN, FENCE_TTL_MS))
    except TransportError:
        return False
    return True


def other_than(cluster: RedisCluster, node: RedisServer) -> RedisServer:
    """Return a primary that is not this one."""
    return next(primary for primary in cluster.primaries if primary is not node)


@pytest.fixture
def moving(cluster: RedisCluster) -> Iterator[RedisServer]:
    """The node to which the entry's slot moves while the test runs."""
    source = cluster.owner(SLOT)
    target = other_than(cluster, source)
    cluster.begin_move(SLOT, target)
    yield target
    if cluster.owner(SLOT) is source:
        cluster.move_keys(SLOT, target)
        cluster.end_move(SLOT, target)


def test_entries_are_on_every_node(cluster: RedisCluster) -> None:
    """The keys of these tests are spread over all three primaries."""
    assert len({cluster.owner(slot_of((entry.row,))).port for entry in ENTRIES}) == 3


def test_each_effect_is_answered(call: Caller) -> None:
    """From the first miss to the next lease, over all slots and nodes."""
    assert call(LOOKUP) is None
    granted = fill(call)
    assert call(LOOKUP) == PAYLOAD
    assert call(LEASE) == Hit(PAYLOAD)
    left = call.ttl(ENTRY.row)
    assert left is not None
    assert 0 < left <= TTL_MS / 1000
    assert call(Begin(ALL, TOKEN, FENCE_TTL_MS)) is None
    assert call(LOOKUP) is None
    assert call(LEASE) == Fenced()
    assert call(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is False
    assert call(End(ALL, TOKEN, id_of("end"))) is None
    elected = call(Lease(ENTRY, FINGERPRINT, id_of("elect"), elect_ms=50_000))
    assert elected.elected
    assert isinstance(call(Lease(ENTRY, FINGERPRINT, id_of("told"), elect_ms=50_000)), Filling)
    assert call(Resign(ENTRY, elected)) is None


def test_effects_of_many_slots_travel_together(call: Caller) -> None:
    """Look-ups share an MGET with those of their slot, and each effect gets its own reply."""
    for entry in ENTRIES[::2]:
        fill(call, entry)
    replies = call(Together(tuple(Lookup(entry, FINGERPRINT) for entry in ENTRIES)))
    assert replies == tuple(None if at % 2 else PAYLOAD for at in range(len(ENTRIES)))
    mixed = call(Together((LOOKUP, *(Lease(entry, FINGERPRINT, id_of("x")) for entry in ENTRIES[:20:2]), LOOKUP)))
    assert mixed == (PAYLOAD, *([Hit(PAYLOAD)] * 10), PAYLOAD)


def test_an_effect_is_one_round_trip_for_each_node(call: Caller, sent: Sent) -> None:
    """However many keys and slots: each node is written to once, and all are before any has answered."""
    look_ups = Together(tuple(Lookup(entry, FINGERPRINT) for entry in ENTRIES))
    call(Begin(ALL, TOKEN, FENCE_TTL_MS))
    call(look_ups)  # all connections are open now
    assert sent.by(lambda: call(Begin(ALL, TOKEN, FENCE_TTL_MS))) == 3
    assert sent.by(lambda: call(End(ALL, TOKEN, id_of("end")))) in (3, 6)  # the second where the script is not known
    assert sent.by(lambda: call(End(ALL, TOKEN, id_of("end")))) == 3
    assert sent.by(lambda: call(LOOKUP)) == 1
    assert sent.by(lambda: call(look_ups)) == 3


def test_scripts_that_a_node_forgot_are_sent_again(call: Caller, cluster: RedisCluster) -> None:
    """After SCRIPT FLUSH on all nodes, or on one, effects are answered as ever."""
    for nodes in (cluster.primaries, cluster.primaries[:1]):
        for node in nodes:
            node.say("SCRIPT", "FLUSH")
        assert call(Begin(ALL, TOKEN, FENCE_TTL_MS)) is None
        assert call(End(ALL, TOKEN, id_of("end"))) is None


def test_slot_that_has_moved_is_found(call: Caller, cluster: RedisCluster) -> None:
    """MOVED is followed in the same call, and the next one goes straight to the new owner."""
    fill(call)
    source = cluster.owner(SLOT)
    cluster.move(SLOT, other_than(cluster, source))
    assert call(LOOKUP) == PAYLOAD
    assert call(LOOKUP) == PAYLOAD
    assert call(Begin(ALL, TOKEN, FENCE_TTL_MS)) is None
    cluster.move(SLOT, source)
    assert call(End(ALL, TOKEN, id_of("end"))) is None
    fill(call)


@pytest.mark.parametrize("to_async", [False, True])
def test_what_another_node_has_stored_counts_for_nothing(cluster: RedisCluster, to_async: bool) -> None:
    """A slot that has moved misses until somebody has asked its new owner for a lease."""
    with caller_on(client_of(cluster, to_async=to_async), check_server=True) as call:
        fill(call)
        assert call(LOOKUP) == PAYLOAD
        source = cluster.owner(SLOT)
        cluster.move(SLOT, other_than(cluster, source))
        assert call(LOOKUP) is None
        fill(call)
        assert call(LOOKUP) == PAYLOAD
        cluster.move(SLOT, source)


def test_value_is_hit_before_and_after_it_has_moved(call: Caller, cluster: RedisCluster, moving: RedisServer) -> None:
    """While the slot moves a value is served from the side on which it is."""
    cluster.end_move(SLOT, cluster.owner(SLOT))
    fill(call)
    cluster.begin_move(SLOT, moving)
    assert call(LOOKUP) == PAYLOAD
    cluster.move_keys(SLOT, moving)
    assert call(LOOKUP) == PAYLOAD
    assert call(Together((LOOKUP, Lookup(NEIGHBOUR, FINGERPRINT)))) == (PAYLOAD, None)


@pytest.mark.parametrize("moved", ["row", "table"])
def test_value_whose_keys_are_on_both_sides_is_read_key_by_key(
    call: Caller, cluster: RedisCluster, moving: RedisServer, moved: str
) -> None:
    """The two reads of a look-up need not be one; nobody gets a lease meanwhile, and nobody an error."""
    cluster.end_move(SLOT, cluster.owner(SLOT))
    fill(call)
    cluster.begin_move(SLOT, moving)
    cluster.move_keys(SLOT, moving, getattr(ENTRY, moved))
    assert call(LOOKUP) == PAYLOAD
    assert call(Together((Lookup(NEIGHBOUR, FINGERPRINT), LOOKUP))) == (None, PAYLOAD)
    assert call(Lease(NEIGHBOUR, FINGERPRINT, id_of("lease"))) == Fenced()


def test_rows_that_are_nowhere_while_their_slot_moves_are_misses(call: Caller, moving: RedisServer) -> None:
    """An absent row is no error; without a lease nobody fills it."""
    assert call(LOOKUP) is None
    assert call(LEASE) == Fenced()
    assert call(Resign(ENTRY, Granted(b"v" * 12, b"t" * 12))) is None
    assert call(Fill(ENTRY, Granted(b"v" * 12, b"t" * 12), FINGERPRINT, PAYLOAD, TTL_MS)) is False


def test_commit_fences_every_key_of_a_slot_that_moves(call: Caller, cluster: RedisCluster, moving: RedisServer) -> None:
    """BEGIN and END reach keys that have moved, that have not, and that are nowhere; nothing is hit in between."""
    cluster.end_move(SLOT, cluster.owner(SLOT))
    fill(call)
    fill(call, NEIGHBOUR)
    cluster.begin_move(SLOT, moving)
    cluster.move_keys(SLOT, moving, NEIGHBOUR.row)
    nowhere = Entry(ENTRY.row + "7", ENTRY.table)
    keys = Keys((ENTRY.row, NEIGHBOUR.row, nowhere.row), (ENTRY.table,))
    assert call(Begin(keys, TOKEN, FENCE_TTL_MS)) is None
    for entry in (ENTRY, NEIGHBOUR, nowhere):
        assert call(Lookup(entry, FINGERPRINT)) is None
    cluster.move_keys(SLOT, moving)
    cluster.end_move(SLOT, moving)
    assert [call(Lease(entry, FINGERPRINT, id_of("l"))) for entry in (ENTRY, NEIGHBOUR, nowhere)] == [Fenced()] * 3
    assert call(End(keys, TOKEN, id_of("end"))) is None
    for entry in (ENTRY, NEIGHBOUR, nowhere):
        fill(call, entry)


def test_release_reaches_every_key_of_a_slot_that_moves(
    call: Caller, cluster: RedisCluster, moving: RedisServer
) -> None:
    """A row's key rests for a minute and a table's for a month, also when END sends them one by one."""
    cluster.end_move(SLOT, cluster.owner(SLOT))
    assert call(Begin(ONE_SLOT, TOKEN, FENCE_TTL_MS)) is None
    cluster.begin_move(SLOT, moving)
    cluster.move_keys(SLOT, moving, NEIGHBOUR.row)
    assert call(End(ONE_SLOT, TOKEN, id_of("end"))) is None
    cluster.move_keys(SLOT, moving)
    cluster.end_move(SLOT, moving)
    assert moving.say("PTTL", ENTRY.row) <= 60_000
    assert moving.say("PTTL", NEIGHBOUR.row) <= 60_000
    assert moving.say("PTTL", ENTRY.table) > 24 * 3_600_000
    fill(call)


def test_replica_that_took_over_is_found(call: Caller, cluster: RedisCluster) -> None:
    """After a failover that loses nothing, all calls go on, and the values are there."""
    fill(call)
    cluster.fail_over(cluster.owner(SLOT))
    cluster.settle()
    assert call(LOOKUP) == PAYLOAD
    assert call(Begin(ALL, TOKEN, FENCE_TTL_MS)) is None
    assert call(End(ALL, TOKEN, id_of("end"))) is None


def test_dead_node_fails_its_own_slots_only(call: Caller, cluster: RedisCluster) -> None:
    """While a primary is gone its rows are TransportErrors, and the other nodes' are answered in the same call."""
    for entry in ENTRIES:
        fill(call, entry)
    dead = cluster.owner(SLOT)
    gone = {entry for entry in ENTRIES if cluster.owner(slot_of((entry.row,))) is dead}
    dead.process.kill()
    dead.process.wait()
    try:
        replies = call(Together(tuple(Lookup(entry, FINGERPRINT) for entry in ENTRIES)))
        assert {entry for entry, reply in zip(ENTRIES, replies, strict=True) if reply != PAYLOAD} == gone
        assert all(isinstance(reply, TransportError) for reply in replies if reply != PAYLOAD)
        with pytest.raises(TransportError, match="Begin"):
            call(Begin(ALL, TOKEN, FENCE_TTL_MS))
        until(lambda: answers(call))  # while the old one is still gone
    finally:
        cluster.settle_after(dead)
    assert call(Begin(ALL, TOKEN, FENCE_TTL_MS)) is None


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_nodes_that_hang_cost_one_time_out(cluster: RedisCluster, kind: str) -> None:
    """Two nodes that accept and do not answer are waited for at the same time; the third is heard."""
    with caller_on(client_of(cluster, to_async=kind == "asyncio"), timeout=0.3, commit_timeout=0.3) as call:
        call(Begin(ALL, TOKEN, FENCE_TTL_MS))
        call(Together(tuple(Lookup(entry, FINGERPRINT) for entry in ENTRIES)))
        first, second, _ = cluster.primaries
        for node in (first, second):
            node.say("CLIENT", "PAUSE", 450)
        replies = call(Together(tuple(Lookup(entry, FINGERPRINT) for entry in ENTRIES)))
        answered = {cluster.owner(slot_of((e.row,))) for e, r in zip(ENTRIES, replies, strict=True) if r is None}
        assert not answered & {first, second}
        assert answered
        # What the two say now is the answer to the call that has given up.
        leases = call(Together(tuple(Lease(entry, FINGERPRINT, id_of("lease")) for entry in ENTRIES)))
        assert all(reply == Fenced() for reply in leases)


def test_twins_of_a_cluster_client(cluster: RedisCluster) -> None:
    """The other kind of transport is derived from the settings, there and back, and nothing is connected meanwhile."""
    with caller_on(client_of(cluster, client_name="web")) as sync:
        granted = fill(sync)
        twin = sync.transport.twin()
        back = twin.twin()
        assert twin.client.settings["client_name"] == back.client.settings["client_name"] == "web"
        assert back.execute(LOOKUP) == PAYLOAD
        assert granted == back.execute(Lease(ENTRY, FINGERPRINT, id_of("x"), replace=True))
        back.close()
    with caller_on(client_of(cluster, to_async=True)) as call:
        assert call(LOOKUP) == PAYLOAD
        twin = call.transport.twin()
        assert twin.execute(LOOKUP) == PAYLOAD
        twin.close()


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_plain_client_of_a_cluster_gets_an_mget_for_each_slot(kind: str, tmp_path: Path) -> None:
    """A server that refuses keys of several slots in one command is asked slot by slot, from the first refusal on."""
    server = RedisServer(free_cluster_port(), "--cluster-enabled", "yes", folder=str(tmp_path))
    try:
        server.say("CLUSTER", "ADDSLOTS", *range(16384))
        module: Any = redis if kind == "sync" else redis.asyncio
        with caller_on(module.Redis(port=server.port)) as call:
            until(lambda: "cluster_state:ok" in server.say("CLUSTER", "INFO"))
            for entry in ENTRIES:
                fill(call, entry)
            for _ in range(2):
                replies = call(Together(tuple(Lookup(entry, FINGERPRINT) for entry in ENTRIES)))
                assert replies == (PAYLOAD,) * len(ENTRIES)
    finally:
        server.stop()


FORK = """
import os, signal, sys, threading
import redis.cluster
from sqlmodel_cache import RedisSyncTransport
from sqlmodel_cache._effects import *
from sqlmodel_cache.transport._clients import Members

begun, forked = threading.Event(), threading.Event()
original = Members.pool

def pool(*args, **options):
    begun.set()
    assert forked.wait(60)
    return original(*args, **options)

client = redis.cluster.RedisCluster(host="127.0.0.1", port=int(sys.argv[1]))
transport = RedisSyncTransport(client, timeout=30, commit_timeout=30)
begin = Begin(Keys(("c:{db/fork:0}:1",), ()), b"t" * 16, 60_000)
Members.pool = pool
thread = threading.Thread(target=transport.execute, args=(begin,))
thread.start()
assert begun.wait(60)
child = os.fork()  # while the thread is about to open its connections
if child == 0:
    signal.alarm(20)
    Members.pool = original
    assert transport.execute(begin) is None
    os._exit(0)
forked.set()
thread.join()
assert os.waitpid(child, 0)[1] == 0
transport.close()
client.close()
print("forked")
"""


def test_forked_child_waits_for_no_thread_of_its_parent(cluster: RedisCluster) -> None:
    """A thread of the parent makes the pools of the nodes while another forks: the child makes its own."""
    command = [sys.executable, "-c", FORK, str(cluster.nodes[0].port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("forked\n", 0), done.stderr
