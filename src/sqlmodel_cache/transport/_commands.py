"""Effects to Redis commands, and replies to effects: plain functions that sync and async share.

A command is an MGET or a Lua script. A script touches one hash slot. The layout of fences and values is described once,
in `lua/marks.lua`. Nothing here waits or knows a client.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias, TypeVar

from redis.exceptions import NoScriptError

from .. import _keys
from .._effects import (
    VARIANTS,
    Begin,
    End,
    Fenced,
    Fill,
    Filling,
    Granted,
    Hit,
    Keys,
    Lease,
    LeaseReply,
    Lookup,
    Peek,
    Peeked,
    Resign,
)
from .._plan import Effect
from ..errors import TransportError
from ._servers import ANY, Server, unsigned

FORMAT = b"V\x03"  # a value, and the version of its layout
VERSION = 12  # bytes
HEAD = 2 + 2 * VERSION  # bytes of a value before its payloads
SHARD = 1 + 16  # bytes of a table's key before its version: a letter, and the server's name
TOKEN = 16 + 8  # bytes of a pending token, with its deadline

MAX_KEYS = 1_000  # of one MGET: Redis answers nobody else meanwhile
MAX_COMMANDS = 1_000  # of one pipeline: the client and the server hold all its replies at once
WAIT_MS = 500  # for replicas; the commit's own time-out may end it earlier

T = TypeVar("T")

Words: TypeAlias = Sequence[Any]
"""A command as the client sends it."""


class Command(NamedTuple):
    """One Redis command: a script if it has one, otherwise an MGET, or a PTTL; a WAIT if it has no keys either."""

    script: _Script | None
    keys: Collection[str]
    args: Sequence[bytes | int]


@dataclass(frozen=True)
class _Script:
    source: str
    sha: str


def _script(name: str) -> _Script:
    folder = files("sqlmodel_cache.transport").joinpath("lua")
    source = folder.joinpath("marks.lua").read_text() + folder.joinpath(f"{name}.lua").read_text()
    digest = hashlib.sha1(source.encode(), usedforsecurity=False)  # what EVALSHA names a script by
    return _Script(source, digest.hexdigest())


LEASE, FILL, RESIGN, BEGIN, END = map(_script, ("lease", "fill", "resign", "begin", "end"))


# One effect


def encode(effect: Effect[Any]) -> list[Command]:
    """Return the commands of an effect, one per hash slot."""
    encoder = _ENCODERS.get(type(effect))
    if encoder is None:
        raise TransportError(f"the Redis transport does not know {type(effect).__name__}")
    return encoder(effect)


def _lease(effect: Lease) -> list[Command]:
    args = (effect.id, effect.fingerprint, int(effect.replace), effect.elect_ms)
    return [Command(LEASE, effect.entry, args)]


def _fill(effect: Fill) -> list[Command]:
    lease = effect.lease
    payload = (effect.fingerprint, effect.payload, effect.ttl_ms)
    args = (lease.version, lease.table_version, *payload, VARIANTS, int(effect.renew))
    return [Command(FILL, (effect.entry.row,), args)]


def _begin(effect: Begin) -> list[Command]:
    slots = _by_slot(effect.keys)
    commands = [Command(BEGIN, rows + tables, (effect.id, effect.fence_ttl_ms, len(rows))) for rows, tables in slots]
    return commands + _wait(commands, effect)


def _end(effect: End) -> list[Command]:
    slots = _by_slot(effect.keys)
    commands = [Command(END, rows + tables, (effect.token, effect.id, len(rows))) for rows, tables in slots]
    return commands + _wait(commands, effect)


def _wait(commands: list[Command], effect: Begin | End) -> list[Command]:
    """Return what waits for replicas. It waits for what its own connection has written: so all is one pipeline."""
    if not effect.replicas:
        return []
    if len(commands) >= MAX_COMMANDS:
        raise TransportError(f"{type(effect).__name__}: {len(commands)} slots are too many to wait for replicas")
    return [Command(None, (), (effect.replicas, WAIT_MS))]


_ENCODERS: dict[type, Callable[[Any], list[Command]]] = {
    Lookup: lambda effect: [Command(None, effect.entry, ())],
    Peek: lambda effect: [Command(None, effect.entry, ())],
    Lease: _lease,
    Fill: _fill,
    Resign: lambda effect: [Command(RESIGN, (effect.entry.row,), (effect.lease.version,))],
    Begin: _begin,
    End: _end,
}


def decode(effect: Effect[Any], replies: Sequence[Any]) -> Any:
    """Return the effect's reply from the replies to its commands; raises TransportError for anything unexpected."""
    match effect, replies:
        case Lookup(), [reply]:
            return found(effect, reply)
        case Peek(), [reply] if not isinstance(reply, Exception):
            return _peeked(effect, reply)
        case Lease(), [reply] if not isinstance(reply, Exception):
            return _leased(effect, reply)
        case Fill(), [0 | 1 as stored]:
            return stored == 1
        case ((Begin() | End()), [*scripts, int(reached)]) if effect.replicas and all(told == 1 for told in scripts):
            if reached >= effect.replicas:
                return None
            raise TransportError(f"{type(effect).__name__}: {reached} of {effect.replicas} replicas have it in time")
        case ((Begin() | End() | Resign()), _) if all(reply == 1 for reply in replies):
            return None
    for reply in replies:
        if isinstance(reply, Exception):
            raise failed(effect, reply) from reply
    raise _unexpected(effect, replies)


def _leased(effect: Lease, reply: Any) -> LeaseReply:
    """Return a lease's reply; whoever gave it is known by name from now on."""
    server, reply = unsigned(reply)
    told: LeaseReply
    match reply:
        case [b"hit", bytes(name), bytes(payload)]:
            told = Hit(payload)
        case [b"granted" | b"elected" as word, bytes(name), bytes(version), bytes(table_version)]:
            told = Granted(version, table_version, elected=word == b"elected")
        case [b"filling", bytes(name), bytes(version), bytes(table_version), int(left_ms)] if left_ms > 0:
            told = Filling(Granted(version, table_version), left_ms)
        case [b"fenced", bytes(name)]:
            told = Fenced()
        case _:
            raise _unexpected(effect, reply)
    if server is not ANY:
        server.learn(name)
    return told


def found(effect: Lookup, reply: Any) -> bytes | None:
    """Return a look-up's payload from the reply to its MGET."""
    server, reply = unsigned(reply)
    if type(reply) is list and len(reply) == 2:
        return _payload(reply[0], reply[1], effect.fingerprint, server)
    if isinstance(reply, Exception):
        raise failed(effect, reply) from reply
    raise _unexpected(effect, reply)


def _payload(value: object, table: object, fingerprint: bytes, server: Server) -> bytes | None:
    if type(value) is not bytes or type(table) is not bytes:  # absent, or nothing that an MGET replies with
        return None
    # A table's key without pending tokens has exactly this length; with tokens it is longer, and the script that knows
    # the server's clock decides. So it does where the key does not name the server that has answered (I9).
    if len(table) != SHARD + VERSION or not table.startswith(server.mark):
        return None
    if value[:2] != FORMAT or value[2 + VERSION : HEAD] != table[SHARD:]:
        return None
    at, length = HEAD, len(value)
    while at + 12 <= length:
        end = at + 12 + int.from_bytes(value[at + 8 : at + 12])
        if value[at : at + 8] == fingerprint:
            return value[at + 12 : end] if end <= length else None
        at = end
    return None


def _peeked(effect: Peek, reply: Any) -> Peeked:
    server, reply = unsigned(reply)
    if type(reply) is not list or len(reply) != 2:
        raise _unexpected(effect, reply)
    value, table = ((raw or b"") for raw in reply)
    if value[:2] != FORMAT or len(value) < HEAD:
        tokens, odd = divmod(len(value) - 1 - VERSION, TOKEN)
        return Peeked(pending=None if value[:1] != b"F" or tokens < 0 else 0 if odd else tokens)  # odd: an election
    payloads = dict(_payloads(value))
    if table[:1] == b"T" and len(table) > SHARD + VERSION:
        return Peeked(payloads, invalid="pending")
    if value[2 + VERSION : HEAD] != table[SHARD:]:
        return Peeked(payloads, invalid="written")
    # A connection that has granted no lease does not know its server yet. Then only a lease can tell.
    is_another = server.mark.startswith(b"T") and not table.startswith(server.mark)
    return Peeked(payloads, invalid="server" if is_another else None)


def _payloads(value: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = HEAD
    while at + 12 <= len(value):
        end = at + 12 + int.from_bytes(value[at + 8 : at + 12])
        yield value[at : at + 8], value[at + 12 : end]
        at = end


def _by_slot(keys: Keys) -> Iterable[tuple[list[str], list[str]]]:
    slots: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for kind, those in enumerate(keys):
        for key in those:
            slots[_keys.slot_tag(key)][kind].append(key)
    return slots.values()


def failed(effect: Effect[Any], error: BaseException) -> TransportError:
    """Return what an effect fails with, because of `error`."""
    failure = TransportError(f"{type(effect).__name__}: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _unexpected(effect: Effect[Any], reply: Any) -> TransportError:
    return TransportError(f"unexpected reply to {type(effect).__name__}: {reply!r:.200}")


# Several effects in one round trip


class Place(NamedTuple):
    """Where a look-up finds its two keys in the reply to an MGET that it shares."""

    command: int
    row: int
    table: int


class Parcel(NamedTuple):
    """Commands of several effects, and for each effect where its replies are, or why it has none."""

    commands: list[Command]
    places: list[Place | slice | TransportError]


def pack(effects: Sequence[Effect[Any]], *, by_slot: bool = False) -> Parcel:
    """Return several effects as one list of commands. Look-ups share an MGET, in which each key stands once.

    `by_slot` gives each slot an MGET of its own: a cluster's node refuses keys of several, even if all are its own.
    """
    commands: list[Command] = []
    places: list[Place | slice | TransportError] = []
    mgets: dict[str, tuple[int, dict[str, int]]] = {}  # slot -> the MGET being made, and each key's position in it
    for effect in effects:
        if type(effect) is Lookup:
            row, table = effect.entry
            slot = _keys.slot_tag(table) if by_slot else ""
            mget, at = mgets.get(slot, (-1, {}))
            if mget < 0 or len(at) + 2 > MAX_KEYS:
                mget, at = mgets[slot] = len(commands), {}
                commands.append(Command(None, at, ()))
            places.append(Place(mget, at.setdefault(row, len(at)), at.setdefault(table, len(at))))
            continue
        try:
            own = encode(effect)
        except TransportError as error:
            places.append(error)
            continue
        places.append(slice(len(commands), len(commands) + len(own)))
        commands += own
    return Parcel(commands, places)


def unpack(effects: Sequence[Effect[Any]], parcel: Parcel, replies: Sequence[Any]) -> list[Any]:
    """Return each effect's reply, or its TransportError, from the replies to the commands of all."""
    return [_reply(effect, place, parcel, replies) for effect, place in zip(effects, parcel.places, strict=True)]


def _reply(effect: Any, place: Place | slice | TransportError, parcel: Parcel, replies: Sequence[Any]) -> Any:
    try:
        if type(place) is Place:
            server, reply = unsigned(replies[place.command])
            if type(reply) is list and len(reply) == len(parcel.commands[place.command].keys):
                return _payload(reply[place.row], reply[place.table], effect.fingerprint, server)
            raise failed(effect, reply) if isinstance(reply, Exception) else _unexpected(effect, reply)
        if type(place) is slice:
            return decode(effect, replies[place])
        return place
    except TransportError as error:
        return error


# One command as several


def apart(command: Command) -> list[Command]:
    """Return a command as one for each of its keys; a lease as none, since it needs both of its keys."""
    script, keys, args = command
    if script is LEASE:
        return []
    if script in (BEGIN, END):  # their last argument is how many of the keys are rows
        *others, rows = args
        return [Command(script, (key,), (*others, int(at < int(rows)))) for at, key in enumerate(keys)]
    return [Command(script, (key,), args) for key in keys]


def joined(command: Command, replies: Sequence[Any]) -> Any:
    """Return a command's reply from those to its parts."""
    if command.script is LEASE:
        return [b"fenced", b""]
    failures = [reply for reply in replies if isinstance(reply, Exception)]
    if failures:
        return failures[0]
    if command.script is None:
        return _gathered(command, replies)
    return replies[0] if all(reply == replies[0] for reply in replies) else list(replies)


def _gathered(command: Command, replies: Sequence[Any]) -> Any:
    """Return the reply to an MGET from those to its keys: who has the table's key answers for what is valid there."""
    signed = [unsigned(reply) for reply in replies]
    found = [value for _, values in signed for value in values]
    signers = [server for key, (server, _) in zip(command.keys, signed, strict=True) if key.endswith("}")]
    return (signers[0], found) if signers and signers[0] is not ANY else found


# The words of a command


def words(command: Command, *, whole: bool = False) -> Words:
    """Return the command's words; `whole` sends the script's source in place of its digest."""
    script, keys, args = command
    names = [key_bytes(key) for key in keys]
    if script is None:
        return ("MGET" if not args else "PTTL", *names) if names else ("WAIT", *args)
    if whole:
        return ("EVAL", script.source, len(names), *names, *args)
    return ("EVALSHA", script.sha, len(names), *names, *args)


def key_bytes(key: str) -> bytes:
    """Return a key as Redis knows it, whatever encoding a client has: all must name a row alike."""
    return key.encode("utf-8", "surrogatepass")


def time_left(key: str) -> Command:
    """Return what asks for a key's TTL."""
    return Command(None, (key,), (b"PTTL",))


def seconds(reply: Any) -> float | None:
    """Return a TTL in seconds from the reply to its command; None if there is none."""
    left = unsigned(reply)[1]
    return left / 1000 if isinstance(left, int) and left >= 0 else None


def look_up(effect: Lookup) -> Words:
    """Return the words of a look-up's command."""
    row, table = effect.entry
    return ("MGET", row.encode("utf-8", "surrogatepass"), table.encode("utf-8", "surrogatepass"))


def repeats(commands: Sequence[Command], replies: Sequence[Any]) -> dict[int, Words]:
    """Return what to send again, by position: the commands whose script the server does not know.

    The first of each script carries its source; those behind it find it loaded. A WAIT behind them has not waited for
    them, and is sent again.
    """
    again: dict[int, Words] = {}
    sent: set[_Script | None] = set()
    for at, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            script = commands[at].script
            again[at] = words(commands[at], whole=script not in sent)
            sent.add(script)
        elif again and not commands[at].keys:
            again[at] = words(commands[at])
    return again


def portions(lines: Sequence[T]) -> Iterable[Sequence[T]]:
    """Return the lines, or commands, in pipelines of a bounded size."""
    return (lines[at : at + MAX_COMMANDS] for at in range(0, len(lines), MAX_COMMANDS))
