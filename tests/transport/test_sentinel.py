"""A master that real sentinels watch over: found, followed when it changes, and not believed when it is the old one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from servers import RedisSentinel
from transport.backends import ENTRY, FENCE_TTL_MS, FINGERPRINT, PAYLOAD, ROW, TTL_MS, id_of
from transport.topologies import Caller, caller_on, client_of
from waiting import until

from sqlmodel_cache import TransportError
from sqlmodel_cache._effects import Begin, End, Fill, Granted, Lease, Lookup
from sqlmodel_cache.transport import _masters

TOKEN = id_of("token")
LOOKUP = Lookup(ENTRY, FINGERPRINT)
LEASE = Lease(ENTRY, FINGERPRINT, id_of("lease"))
BEGIN = Begin(ROW, TOKEN, FENCE_TTL_MS)
END = End(ROW, TOKEN, id_of("end"))


@pytest.fixture(params=["sync", "asyncio"])
def call(request: pytest.FixtureRequest, sentinel: RedisSentinel) -> Iterator[Caller]:
    """A transport on a sentinel's master."""
    with caller_on(client_of(sentinel, to_async=request.param == "asyncio")) as call:
        yield call


def fill(call: Caller) -> None:
    """Store a payload."""
    granted: Granted = call(LEASE)
    assert call(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True


def answers(call: Caller) -> bool:
    """Return whether an effect is answered."""
    try:
        call(BEGIN)
    except TransportError:
        return False
    return True


def test_master_answers(call: Caller, sentinel: RedisSentinel) -> None:
    """What is stored is on the master."""
    fill(call)
    assert call(LOOKUP) == PAYLOAD
    assert sentinel.master().say("EXISTS", ENTRY.row) == 1


def test_twins_of_a_sentinels_client(sentinel: RedisSentinel) -> None:
    """The other kind of transport asks the same sentinels for the same master, there and back."""
    with caller_on(client_of(sentinel, client_name="web")) as sync:
        fill(sync)
        twin = sync.transport.twin()
        back = twin.twin()
        for each in (twin, back):
            pool = each.client.connection_pool
            assert (pool.service_name, pool.connection_kwargs["client_name"]) == (sentinel.NAME, "web")
        with caller_on(twin.client) as call:
            assert call(LOOKUP) == PAYLOAD
        assert back.execute(LOOKUP) == PAYLOAD
        back.close()


def test_sync_calls_have_the_time_out_of_the_transport(sentinel: RedisSentinel) -> None:
    """The client's own time-outs count neither for the master nor for the sentinels."""
    with caller_on(client_of(sentinel, socket_timeout=60), timeout=0.5) as call:
        pool = call.transport._reads._client.connection_pool
        pools = [pool, *(each.connection_pool for each in pool.sentinel_manager.sentinels)]
        assert [each.connection_kwargs["socket_timeout"] for each in pools] == [0.5] * 4


def test_old_master_is_left_though_it_answers(
    call: Caller, sentinel: RedisSentinel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentinels have a new master, the old one does not know: the next call after a second goes to the new one."""
    monkeypatch.setattr(_masters, "LOOK", 0.0)
    for effect in (BEGIN, END):
        call(effect)
    fill(call)
    old, new = sentinel.master(), sentinel.replica()
    sentinel.fail_over()
    until(lambda: sentinel.has_agreed_on(new))
    try:
        assert sentinel.role(old)[0] == "master"
        assert call(BEGIN) is None
        assert [each.say("GETRANGE", ENTRY.row, 0, 0) for each in (old, new)] == ["V", "F"]
        assert call(LOOKUP) is None
        assert call(END) is None
        fill(call)
    finally:
        sentinel.demote()


def test_master_that_dies_is_replaced(call: Caller, sentinel: RedisSentinel) -> None:
    """Until the sentinels have promoted the replica calls fail; then they are answered, and the values are there."""
    fill(call)
    old, new = sentinel.master(), sentinel.replica()
    until(lambda: new.say("EXISTS", ENTRY.row) == 1)
    old.stop()
    try:
        with pytest.raises(TransportError):
            call(LOOKUP)
        until(lambda: answers(call))
        assert new.say("EXISTS", ENTRY.row) == 1
    finally:
        old.start()
        sentinel.demote()
    assert call(END) is None


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_sentinels_that_are_gone_do_not_matter_while_the_master_lives(
    sentinel: RedisSentinel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that are open serve on, and the sentinels are asked rarely."""
    monkeypatch.setattr(_masters, "LOOK", 0.0)
    with caller_on(client_of(sentinel, to_async=kind == "asyncio")) as call:
        fill(call)
        for each in sentinel.sentinels:
            each.stop()
        try:
            assert call(LOOKUP) == PAYLOAD
            asked: list[Any] = []
            monkeypatch.setattr(redis.sentinel.Sentinel, "discover_master", asked.append)
            monkeypatch.setattr(redis.asyncio.sentinel.Sentinel, "discover_master", asked.append)
            assert call(LOOKUP) == PAYLOAD
            assert asked == []
        finally:
            for each in sentinel.sentinels:
                each.start()
