"""What stands in Redis, read for people: fences, shards and values, as `lua/marks.lua` lays them out.

The protocol never asks this: its scripts and the look-up decide. What is not of the layout reads as None.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ._commands import FORMAT, HEAD, SHARD, VERSION

TOKEN = 16  # bytes; the writer's
DEADLINE = 8  # bytes


@dataclass(frozen=True, slots=True)
class Fence:
    """A row that is not there: somebody is about to write it, or to fill it.

    Attributes:
        deadlines: of the commits in flight, or that nobody has ended, in ms since the epoch.
        elected_ms: until when somebody is elected to fill it, in ms since the epoch.
    """

    version: bytes
    deadlines: tuple[float, ...]
    elected_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a table; `server` is the name of the one that has granted leases under its version."""

    server: bytes
    version: bytes
    deadlines: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A row, with a payload for each fingerprint, the latest first."""

    version: bytes
    table_version: bytes
    payloads: Mapping[bytes, bytes]


def row(raw: bytes | None) -> Fence | Value | None:
    """Return what a row's key holds."""
    if raw is None:
        return None
    if raw[:2] == FORMAT and len(raw) >= HEAD:
        return Value(raw[2 : 2 + VERSION], raw[2 + VERSION : HEAD], _payloads(raw))
    if raw[:1] != b"F" or len(raw) <= VERSION:
        return None
    version, rest = raw[1 : 1 + VERSION], raw[1 + VERSION :]
    if len(rest) == DEADLINE:
        return Fence(version, (), struct.unpack(">d", rest)[0])
    deadlines = _deadlines(rest)
    return None if deadlines is None else Fence(version, deadlines)


def shard(raw: bytes | None) -> Shard | None:
    """Return what a table's key holds."""
    if raw is None or raw[:1] != b"T" or len(raw) < SHARD + VERSION:
        return None
    deadlines = _deadlines(raw[SHARD + VERSION :])
    return None if deadlines is None else Shard(raw[1:SHARD], raw[SHARD : SHARD + VERSION], deadlines)


def _deadlines(rest: bytes) -> tuple[float, ...] | None:
    step = TOKEN + DEADLINE
    if len(rest) % step:
        return None
    return tuple(struct.unpack_from(">d", rest, at + TOKEN)[0] for at in range(0, len(rest), step))


def _payloads(raw: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    at = HEAD
    while at + 12 <= len(raw):
        end = at + 12 + int.from_bytes(raw[at + 8 : at + 12])
        if end > len(raw):
            break
        found.setdefault(raw[at : at + 8], raw[at + 12 : end])
        at = end
    return found
