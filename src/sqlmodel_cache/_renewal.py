"""When a row expires, and which hit of one that is about to shall read it again, so that a hot row never expires.

Each reader draws for itself, and the later and the slower the load, the likelier it is drawn: Vattani, Chierichetti
and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015 (XFetch). The payload carries what the
formula needs: when it expires, and how long its load took.
"""

from __future__ import annotations

import math
import os
import random
import struct
import time

from .errors import CodecError

_STAMP = struct.Struct(">dI")  # seconds since the epoch; microseconds
STAMP = _STAMP.size  # bytes

JITTER = 0.1  # at most this part of a ttl is taken off, so that rows cached together do not expire together


def jittered(ttl_ms: int) -> int:
    """Return a ttl, less a random part of it; 0 stays 0."""
    return ttl_ms and max(1, round(ttl_ms * (1 - JITTER * os.urandom(1)[0] / 255)))


def stamp(payload: bytes, *, ttl_ms: int, took: float) -> bytes:
    """Return a payload with the time at which it expires, and the seconds that its load took."""
    return _STAMP.pack(time.time() + ttl_ms / 1000, min(round(took * 1e6), 2**32 - 1)) + payload


def body(stamped: bytes) -> bytes:
    """Return the payload without its stamp.

    Raises:
        CodecError: there is none.
    """
    if len(stamped) < _STAMP.size:
        raise CodecError("no stamp")
    return stamped[_STAMP.size :]


def due(stamped: bytes, beta: float) -> bool:
    """Return whether this reader shall renew the row: now - took * beta * ln(a random number) >= expiry.

    Hosts' clocks are compared here. One that is wrong renews too early or leaves it to others; it decides on nothing
    else.
    """
    expires, took = _STAMP.unpack_from(stamped)
    return bool(time.time() - took / 1e6 * beta * math.log(1.0 - random.random()) >= expires)  # noqa: S311
