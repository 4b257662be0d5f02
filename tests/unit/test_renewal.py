"""The stamp of a payload and the draw that it decides, under a fixed clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from sqlmodel_cache import CodecError, _renewal

NOW = 1_800_000_000.0
Set = Callable[[float, float], None]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Return what sets the clock, in seconds from NOW, and the next draws, from 0 (never) up to 1 (soon)."""

    def set_to(seconds: float, draw: float) -> None:
        monkeypatch.setattr(_renewal.time, "time", lambda: NOW + seconds)
        monkeypatch.setattr(_renewal.random, "random", lambda: draw)

    set_to(0, 0)
    return set_to


def test_body_is_what_was_stamped(at: Set) -> None:
    """Nothing of the payload is lost, and the stamp costs 12 bytes."""
    stamped = _renewal.stamp(b"row", ttl_ms=600_000, took=0.002)
    assert _renewal.body(stamped) == b"row"
    assert len(stamped) == len(b"row") + 12
    assert _renewal.body(_renewal.stamp(b"", ttl_ms=1, took=0)) == b""


@pytest.mark.parametrize("payload", [b"", b"\xc0", b"eleven byte"])
def test_what_is_too_short_has_no_stamp(payload: bytes) -> None:
    """A codec's error, which makes a miss."""
    with pytest.raises(CodecError):
        _renewal.body(payload)


def test_row_is_due_when_it_has_expired(at: Set) -> None:
    """Whatever is drawn; and with the smallest draw not a moment before."""
    stamped = _renewal.stamp(b"row", ttl_ms=600_000, took=10.0)
    at(599.999, 0.0)
    assert not _renewal.due(stamped, 1.0)
    at(600.0, 0.0)
    assert _renewal.due(stamped, 1.0)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("took", [0.001, 0.25])
@pytest.mark.parametrize("draw", [0.1, 0.5, 0.999])
def test_row_is_due_earlier_the_slower_its_load_and_the_greater_the_draw(
    at: Set, beta: float, took: float, draw: float
) -> None:
    """By took * beta * -ln(1 - draw) seconds."""
    stamped = _renewal.stamp(b"row", ttl_ms=600_000, took=took)
    early = took * beta * -math.log(1 - draw)
    at(600 - early * 1.01, draw)
    assert not _renewal.due(stamped, beta)
    at(600 - early * 0.99, draw)
    assert _renewal.due(stamped, beta)


def test_greatest_draw_is_no_error(at: Set) -> None:
    """random() is below 1, and what stands for its logarithm is not infinite."""
    stamped = _renewal.stamp(b"row", ttl_ms=600_000, took=0.001)
    at(0, math.nextafter(1.0, 0.0))
    assert not _renewal.due(stamped, 1.0)


@pytest.mark.parametrize("took", [0.0, 1e-9, 5_000.0])
def test_any_time_can_be_stamped(at: Set, took: float) -> None:
    """A load too long for the stamp is the longest."""
    assert _renewal.body(_renewal.stamp(b"row", ttl_ms=1, took=took)) == b"row"


def test_readers_share_the_work(at: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand reads in the last second of a row that takes 10 ms renew it early, and few of them at once."""
    stamped = _renewal.stamp(b"row", ttl_ms=600_000, took=0.01)
    draw = random.Random(0).random
    renewed = []
    for read in range(1000):
        at(599 + read / 1000, draw())
        if _renewal.due(stamped, 1.0):
            renewed.append(read)
    assert renewed
    assert min(renewed) < 1000
    assert len(renewed) < 50
