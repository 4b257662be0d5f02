"""The near cache by hand: its clock, its bounds, and the order of what it looks at. Schedules: `tests/protocol`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sqlmodel_cache import CacheConfig, ConfigurationError, MemoryTransport, NearCache, SQLModelCache
from sqlmodel_cache import _near as module
from sqlmodel_cache._effects import Entry, Fill, Granted, Keys, Lookup, NearPayload, Together
from sqlmodel_cache._near import LATE, Near
from sqlmodel_cache._plan import run
from sqlmodel_cache.errors import TransportError
from sqlmodel_cache.transport.tracking import Messages, Push

TABLE = "c:{db/hero:0}"


def look_up(pk: int, fingerprint: bytes = b"release1") -> Lookup:
    """Return the near look-up of a row."""
    return Lookup(Entry(f"{TABLE}:{pk}", TABLE), fingerprint, near=True)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.ticks: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        """Return them."""
        self.ticks()
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


def listening(clock: Clock, max_rows: int = 3, max_age: float = 10.0) -> Near:
    """Return an empty near cache whose connection is alive."""
    near = Near(max_rows, max_age, clock=clock)
    near.alive(clock.now)
    return near


def get(near: Near, lookup: Lookup, payload: Any = b"row") -> Any:
    """Look up a row that the transport has as `payload`."""
    return run(near.plan(lookup), lambda effect: payload)


def test_second_look_up_hits(clock: Clock) -> None:
    """What the transport replied is replied again, as a NearPayload; a miss is not kept."""
    near = listening(clock)
    assert get(near, look_up(1), None) is None
    assert type(get(near, look_up(1), b"row")) is bytes
    found = get(near, look_up(1), b"not asked for")
    assert (type(found), found) == (NearPayload, b"row")


def test_max_age_counts_from_when_the_look_up_was_sent(clock: Clock) -> None:
    """A reply that takes long is old when it comes (N4)."""
    near = listening(clock, max_age=0.5)

    def slowly(effect: object) -> bytes:
        clock.now += 0.4
        return b"row"

    run(near.plan(look_up(1)), slowly)
    clock.now += 0.09
    assert near.find(look_up(1)) is not None
    clock.now += 0.01
    assert near.find(look_up(1)) is None


def test_nothing_is_served_while_an_answer_is_late(clock: Clock) -> None:
    """A PING that was sent `LATE` ago and not answered stops all hits and stores; the answer brings them back (N3)."""
    near = listening(clock)
    get(near, look_up(1))
    clock.now += LATE
    assert near.find(look_up(1)) is None
    assert near.ticket() is None
    near.alive(clock.now - LATE / 2)
    assert near.find(look_up(1)) is not None


def test_look_ups_ask_for_a_connection_while_there_is_none(clock: Clock) -> None:
    """Each look-up that finds nobody listening calls `connect`; others do not."""
    near = Near(3, 10.0, clock=clock)
    asked: list[None] = []
    near.connect = lambda: asked.append(None)
    get(near, look_up(1))
    get(near, look_up(1))
    assert len(asked) == 2
    near.alive(clock.now)
    get(near, look_up(1))
    assert len(asked) == 2


def test_ticket_counts_before_it_asks_whether_somebody_listens(clock: Clock) -> None:
    """What is lost and opened again in between moves every row."""
    near = listening(clock)

    def lost_and_opened() -> None:
        clock.ticks = lambda: None
        near.lost()
        near.alive(clock.now)

    clock.ticks = lost_and_opened
    get(near, look_up(1))
    assert near.find(look_up(1)) is None


def test_bound_of_rows(clock: Clock) -> None:
    """The row that was stored first goes; storing a row again makes it the last."""
    near = listening(clock)
    for pk in (1, 2, 3):
        get(near, look_up(pk))
    near.store(look_up(1), b"again", near.ticket())
    get(near, look_up(4))
    assert [pk for pk in (1, 2, 3, 4) if near.find(look_up(pk))] == [1, 3, 4]
    assert len(near) == 3


def test_bound_of_what_is_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are forgotten count as moved: tickets for them are dead, and for tables what is held."""
    monkeypatch.setattr(module, "MAX_MOVED", 10)
    near = listening(clock)
    ticket = near.ticket()
    get(near, look_up(1))
    near.hear(f"{TABLE}:{pk}" for pk in range(100, 111))
    assert len(near._moved) == 0
    near.store(look_up(2), b"row", ticket)
    assert near.find(look_up(2)) is None
    assert near.find(look_up(1)) is not None
    near.hear(f"c:{{db/hero:{shard}}}" for shard in range(100, 111))
    assert len(near._moved_tables) == 0
    assert near.find(look_up(1)) is None


def test_shapes_are_not_confused(clock: Clock) -> None:
    """A payload is replied to look-ups of its own fingerprint only."""
    near = listening(clock)
    get(near, look_up(1))
    assert get(near, look_up(1, b"release2"), b"other") == b"other"
    assert near.find(look_up(1)) is None
    assert near.find(look_up(1, b"release2")) == b"other"


def test_look_ups_together(clock: Clock) -> None:
    """Only those that are not held, and may be, are sent and stored; what fails is replied as it is."""
    near = listening(clock)
    get(near, look_up(1))
    far = Lookup(look_up(3).entry, b"release1")
    fill = Fill(far.entry, Granted(b"", b""), b"release1", b"row")
    error = TransportError("no")

    def execute(effect: object) -> tuple[Any, ...]:
        assert effect == Together((look_up(2), far, fill, look_up(5)))
        return b"two", b"three", True, error

    together = Together((look_up(2), look_up(1), far, fill, look_up(5)))
    assert run(near.plan(together), execute) == (b"two", b"row", b"three", True, error)
    assert near.find(look_up(2)) == b"two"
    assert near.find(look_up(3)) is None
    assert near.find(look_up(5)) is None
    assert run(near.plan(Together((look_up(1), look_up(2)))), execute) == (b"row", b"two")


def test_fences_together_are_heard_of(clock: Clock) -> None:
    """BEGIN and END that are sent with others evict as they do alone, also when they fail."""
    near = listening(clock)
    for fence in (module.Begin(Keys((look_up(1).entry.row,), ()), b"id", 1), module.End(Keys((), (TABLE,)), b"", b"")):
        get(near, look_up(1))
        with pytest.raises(TransportError):
            run(near.plan(Together((fence,))), _fail)
        assert near.find(look_up(1)) is None


def _fail(effect: object) -> None:
    raise TransportError("no")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_messages_arrive_in_pieces(size: int) -> None:
    """However the stream is cut, its messages are the same."""
    push = b">2\r\n$10\r\ninvalidate\r\n"
    stream = b"+OK\r\n" + push + b"*2\r\n$1\r\na\r\n$4\r\nb\r\nc\r\n" + push + b"_\r\n+PONG\r\n*-1\r\n"
    messages, found = Messages(), []
    for at in range(0, len(stream), size):
        found += messages.feed(stream[at : at + size])
    assert found == [b"OK", [b"invalidate", [b"a", b"b\r\nc"]], [b"invalidate", None], b"PONG", []]
    assert [type(message) is Push for message in found] == [False, True, True, False, False]


@pytest.mark.parametrize("stream", [b"?\r\n", b"$x\r\n", b"HTTP/1.1 400\r\n"])
def test_what_is_no_resp3_is_an_error(stream: bytes) -> None:
    """The connection is given up."""
    with pytest.raises((ConnectionError, ValueError)):
        Messages().feed(stream)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("max_rows", value) for value in (0, -1, True, 1.5, None, "10")),
        *(("max_age", value) for value in (0, -1, None, True, float("inf"), "1")),
    ],
)
def test_wrong_near_cache(argument: str, value: Any) -> None:
    """The argument is named."""
    with pytest.raises(ConfigurationError, match=argument):
        NearCache(**{argument: value})


def test_near_of_a_model_is_a_bool() -> None:
    """`CacheConfig(near=...)` takes nothing else."""
    with pytest.raises(ConfigurationError, match="near"):
        CacheConfig(near=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, 10_000, NearCache, "near"])
def test_near_cache_is_a_near_cache(value: Any) -> None:
    """`configure(near_cache=...)` takes a NearCache."""
    with pytest.raises(ConfigurationError, match=r"near_cache.*NearCache"):
        SQLModelCache.configure("redis://localhost", near_cache=value)
    assert SQLModelCache.get_config() is None


@pytest.mark.parametrize("transport", [None, MemoryTransport()])
def test_near_cache_stands_in_front_of_redis(transport: Any) -> None:
    """With rows in memory anyway there is nothing to be near to; the error says what to do."""
    with pytest.raises(ConfigurationError, match=r"near_cache.*MemoryTransport has none.*[Ll]eave near_cache out"):
        SQLModelCache.configure(transport, near_cache=NearCache())
    assert SQLModelCache.get_config() is None
