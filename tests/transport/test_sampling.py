"""A look at what is held: bounded, and nothing that counts as a use of a key."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.cluster
import servers
from redis.exceptions import ResponseError
from waiting import until

from sqlmodel_cache import MemoryTransport, RedisSyncTransport, TransportError
from sqlmodel_cache._effects import Begin, Entry, Fill, Granted, Keys, Lease, Lookup
from sqlmodel_cache.transport._sampling import STEPS, Held, sample


def fill(transport: Any, number: int, size: int = 1) -> None:
    """Store a row."""
    entry = Entry(f"p:{{db/hero:0}}:{number}", "p:{db/hero:0}")
    lease = transport.execute(Lease(entry, b"fingerpr", bytes(16)))
    assert isinstance(lease, Granted)
    assert transport.execute(Fill(entry, lease, b"fingerpr", b"x" * size, 60_000))


def look_up(transport: Any, number: int) -> None:
    """Hit a row."""
    entry = Entry(f"p:{{db/hero:0}}:{number}", "p:{db/hero:0}")
    assert transport.execute(Lookup(entry, b"fingerpr")) is not None


def test_memory_tells_sizes_and_order() -> None:
    """Of the most recently used rows; a fence is none."""
    now = 0.0
    transport = MemoryTransport(clock=lambda: now)
    for number in range(5):
        fill(transport, number, size=number + 1)
    look_up(transport, 0)
    transport.execute(Begin(Keys(("p:{db/hero:0}:4",), ()), bytes(16), 60_000))
    found = transport.sample(10)
    assert (found.complete, found.heat) == (True, "order")
    hottest = sorted(found.held, key=lambda each: -each.heat)
    assert [(each.key[-1], each.bytes, each.ttl) for each in hottest] == [
        ("0", 1, 60), ("3", 4, 60), ("2", 3, 60), ("1", 2, 60)
    ]  # fmt: skip
    few = transport.sample(2)
    assert (len(few.held), few.complete) == (1, False)
    now = 60.0
    assert transport.sample(10).held == []


def test_redis_is_asked_for_nothing_that_is_a_use() -> None:
    """Neither GET nor STRLEN: a key that is looked at must not outlive others for it."""
    asked: set[str] = set()
    plan = sample("p*:{", 500)
    effect: Any = next(plan)
    with pytest.raises(StopIteration) as done:
        while True:
            asked |= {" ".join(map(str, line[: 1 if line[0] in ("SCAN", "PTTL") else 2])) for line in effect.lines}
            assert all(line[3] == "p\\*:{*" for line in effect.lines if line[0] == "SCAN")
            replies = {"SCAN": (b"0", [b"a", b"b"]), "MEMORY": 100, "PTTL": 2000, "OBJECT": 7}
            effect = plan.send([replies[line[0]] for line in effect.lines])
    assert asked == {"SCAN", "MEMORY USAGE", "PTTL", "OBJECT FREQ"}
    assert done.value.value.held == [Held("a", 100, 2.0, 7.0), Held("b", 100, 2.0, 7.0)]


def test_redis_is_asked_a_bounded_number_of_times() -> None:
    """Where the keys are few among many others, it stops looking."""
    plan = sample("p:{", 500)
    effect: Any = next(plan)
    scans = 0
    with pytest.raises(StopIteration) as done:
        while True:
            scans += 1
            assert effect.lines[0][0] == "SCAN"
            effect = plan.send([(b"17", [])])
    assert scans == STEPS
    assert (done.value.value.held, done.value.value.complete) == ([], False)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu"])
def test_redis_tells_what_its_policy_counts(policy: str, redis_client: redis.Redis) -> None:
    """The time since the last use, or how often; a key that goes away meanwhile is left out."""
    before = redis_client.config_get("maxmemory-policy")["maxmemory-policy"]
    redis_client.config_set("maxmemory-policy", policy)
    try:
        transport = RedisSyncTransport(redis_client)
        for number in range(3):
            fill(transport, number, size=1 + 500 * number)
        for _ in range(200):
            look_up(transport, 1)
        redis_client.set("other", "key")
        found = transport.sample("p:{", 500)
        assert {each.key for each in found.held} == {"p:{db/hero:0}", *(f"p:{{db/hero:0}}:{n}" for n in range(3))}
        assert found.complete
        sizes = {each.key[-1]: each.bytes for each in found.held}
        assert sizes["0"] < sizes["1"] < sizes["2"]
        if policy == "allkeys-lfu":
            assert found.heat == "frequency"
            heat = {each.key: each.heat for each in found.held}
            assert heat["p:{db/hero:0}:1"] > heat["p:{db/hero:0}:0"]
        else:
            assert found.heat == "recency"
            until(lambda: min(each.heat for each in transport.sample("p:{", 500).held) <= -1)
        assert len(transport.sample("p:{", 2).held) == 2
        assert not transport.sample("p:{", 2).complete
        transport.close()
    finally:
        redis_client.config_set("maxmemory-policy", before)


def test_redis_that_may_not_be_asked_says_so(redis_client: redis.Redis) -> None:
    """An ACL user without SCAN: an error with Redis's own words."""
    redis_client.acl_setuser("poor", enabled=True, passwords="+secret", keys="*", commands=["-@all", "+mget"])
    try:
        settings = redis_client.connection_pool.connection_kwargs
        with redis.Redis(host=settings["host"], port=settings["port"], username="poor", password="secret") as client:
            transport = RedisSyncTransport(client)
            with pytest.raises(TransportError, match=r"sample: NoPermissionError: .*scan"):
                transport.sample("p:{", 500)
            transport.close()
    finally:
        redis_client.acl_deluser("poor")


def test_a_refusal_of_one_key_is_an_error() -> None:
    """It is raised, not shown as a key."""
    plan = sample("p:{", 500)
    next(plan)
    plan.send([(b"0", [b"a"])])
    plan.send([5])
    with pytest.raises(ResponseError, match="no"):
        plan.send([100, ResponseError("no"), 5])


def test_cluster_is_sampled_on_each_of_its_primaries(cluster: servers.RedisCluster) -> None:
    """A share of the keys from each."""
    client = redis.cluster.RedisCluster(host="127.0.0.1", port=cluster.alive[0].port)
    try:
        for number in range(30):
            client.set(f"p:{{db/hero:{number % 16}}}:{number}", "x", ex=60)
        transport = RedisSyncTransport(client)
        assert len(transport.sample("p:{", 500).held) == 30
        some = transport.sample("p:{", 6)
        assert (len(some.held), some.complete) == (6, False)
        transport.close()
    finally:
        client.close()


def test_keys_that_go_away_meanwhile_are_left_out() -> None:
    """Expired or evicted between the SCAN and the question: Redis knows nothing of them."""
    plan = sample("p:{", 500)
    next(plan)
    plan.send([(b"0", [b"a", b"b"])])
    plan.send([5, None])
    with pytest.raises(StopIteration) as done:
        plan.send([None, -2, None, 100, -1, 5])
    assert done.value.value.held == [Held("b", 100, None, 5.0)]
