"""Which node of a Redis Cluster gets which command, and what its redirections mean. Knows no client and does no I/O.

A command goes to the node that owns its slot, as far as this process knows; the nodes themselves know better:

    MOVED         the slot is another node's: ask that one, remember, and learn the whole map with the next delivery
    ASK           the slot moves, and the key is there already, or would be: ask that one, once
    TRYAGAIN      the slot moves, and the keys are on both sides, or on neither: send them one by one
    CLUSTERDOWN   nobody owns the slot now: an error; learn the map with the next delivery
    no answer     an error; the same

One by one: BEGIN and END are promises about single keys. The two reads of a look-up are safe in either order
(`docs/design.md`: a read that began before the commit may show the row as it was). A lease needs both keys in one
script, so while its slot moves it is refused, as if a commit were in flight: the database answers and nobody fills.
"""

from __future__ import annotations

import time
from binascii import crc_hqx
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ResponseError,
    TryAgainError,
)

from .. import _keys
from .._plan import Effect, Plan, perform
from . import _commands
from ._commands import Command, Words
from ._servers import unsigned

SLOTS = 16384
MAX_REDIRECTIONS = 5  # of one command: a map that is learned anew is right after one, a slot that moves takes two
PAUSE = 0.1  # seconds between two looks at the map, however many commands fail meanwhile

ASKING: Words = ("ASKING",)
MAP: Words = ("CLUSTER", "SLOTS")

Node: TypeAlias = tuple[str, int]
"""Host and port."""

Remap: TypeAlias = Callable[[Node], Node]


@dataclass(frozen=True, slots=True)
class Mail(Effect[dict[Node, list[Any]]]):
    """Send each node its lines, side by side; the reply to a line may be an error. A node is one round trip."""

    to: dict[Node, list[Words]]


@dataclass(slots=True)
class _Letter:
    """A command on its way."""

    place: int  # among the commands of the delivery
    command: Command
    node: Node
    asks: bool = False  # behind ASKING, which holds for one command
    unknown: bool = False  # the node does not know the script


@dataclass(slots=True)
class _Post:
    """The letters of one round trip, and where each finds its reply."""

    to: dict[Node, list[Words]] = field(default_factory=dict)
    places: list[tuple[_Letter, int]] = field(default_factory=list)

    def add(self, letter: _Letter, words: Words) -> None:
        lines = self.to.setdefault(letter.node, [])
        if letter.asks:
            lines.append(ASKING)
        self.places.append((letter, len(lines)))
        lines.append(words)


class Slots:
    """The owners of a cluster's slots, as far as this process knows. Threads share it: a list is replaced, never cut.

    Args:
        seeds: nodes to ask first.
        remap: from the address that a node says to the one that this process reaches, or None.
        clock: seconds, monotonic.
    """

    def __init__(
        self, seeds: Sequence[Node], remap: Remap | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seeds = tuple(seeds)
        self._remap = remap
        self._clock = clock
        self._members: tuple[Node, ...] = self._seeds  # in the order in which they are asked for the map
        self._owners: list[Node | None] = []
        self._stale = True
        self._looked = -PAUSE

    def deliver(self, commands: Sequence[Command]) -> Plan[list[Any]]:
        """Return the reply to each command, or its error. Each touches one slot."""
        if self._stale and (not self._owners or self._clock() - self._looked >= PAUSE):
            yield from self._learn()
        replies: list[Any] = []
        for portion in _commands.portions(commands):
            replies += yield from self._redirected(portion)
        return replies

    def owners(self) -> list[Node]:
        """Return the nodes that own slots, as far as this process knows."""
        return sorted({node for node in self._owners if node is not None})

    def _redirected(self, commands: Sequence[Command]) -> Plan[list[Any]]:
        replies: list[Any] = [None] * len(commands)
        letters = list(self._addressed(commands, replies))
        torn: list[int] = []
        for _ in range(1 + MAX_REDIRECTIONS):
            if not letters:
                break
            post = _sorted(letters)
            answers = yield from perform(Mail(post.to))
            letters = []
            for letter, line in post.places:
                reply = replies[letter.place] = answers[letter.node][line]
                if isinstance(reply, TryAgainError):
                    torn.append(letter.place)
                elif self._goes_on(letter, reply):
                    letters.append(letter)
        if torn:
            yield from self._one_by_one(commands, torn, replies)
        return replies

    def _addressed(self, commands: Sequence[Command], replies: list[Any]) -> Iterator[_Letter]:
        for place, command in enumerate(commands):
            owner = self._owners[slot_of(command.keys)]
            if owner is None:
                self._stale = True
                replies[place] = ClusterDownError("no node owns the slot")
            else:
                yield _Letter(place, command, owner)

    def _goes_on(self, letter: _Letter, reply: Any) -> bool:
        """Return whether the letter has to be sent again, and where; learn from the reply."""
        if not isinstance(reply, Exception):
            return False
        if isinstance(reply, NoScriptError):
            letter.unknown = True
            return True
        if isinstance(reply, AskError):  # a MovedError is one
            moved = isinstance(reply, MovedError)
            letter.node = self._reached(reply.host, reply.port, letter.node)
            letter.asks = not moved
            if moved:
                self._owners[slot_of(letter.command.keys)] = letter.node
                self._stale = True
            return True
        if isinstance(reply, ClusterDownError) or not isinstance(reply, ResponseError):
            self._stale = True
        return False

    def _one_by_one(self, commands: Sequence[Command], torn: Sequence[int], replies: list[Any]) -> Plan[None]:
        parts = {place: _commands.apart(commands[place]) for place in torn}
        answers = yield from self._redirected([part for each in parts.values() for part in each])
        for place, each in parts.items():
            replies[place] = _commands.joined(commands[place], answers[: len(each)])
            del answers[: len(each)]

    # The map

    def _learn(self) -> Plan[None]:
        """Ask one node after the other until one knows the map; raises the last one's error if there never was one."""
        self._looked = self._clock()
        failure: Any = None
        for node in self._members:
            [reply] = (yield from perform(Mail({node: [MAP]})))[node]
            _, failure = unsigned(reply)
            if isinstance(failure, list) and failure:
                try:
                    self._owners, self._members = self._read(failure, node)
                except (ValueError, TypeError) as error:
                    failure = error
                else:
                    self._stale = False
                    return
            # the next one to look asks others first
            self._members = (*(other for other in self._members if other != node), node)
        if not self._owners:
            raise failure if isinstance(failure, Exception) else ClusterDownError("no node knows the cluster's slots")

    def _read(self, reply: list[Any], asked: Node) -> tuple[list[Node | None], tuple[Node, ...]]:
        owners: list[Node | None] = [None] * SLOTS
        members = {asked: True}
        for first, last, (host, port, *_), *replicas in reply:
            if not 0 <= first <= last < SLOTS:  # the list would grow to whatever somebody says
                raise ValueError(f"slots {first} to {last} are no cluster's")
            owner = self._reached(host, port, asked)
            owners[first : last + 1] = [owner] * (last + 1 - first)
            members[owner] = True
            members.update((self._reached(replica[0], replica[1], asked), True) for replica in replicas)
        members.update(dict.fromkeys(self._seeds, True))
        return owners, tuple(members)

    def _reached(self, host: bytes | str | None, port: int, asked: Node) -> Node:
        # A node that does not know its own name means the one by which it was reached.
        name = host.decode() if isinstance(host, bytes) else host
        node = (name if name and name != "?" else asked[0], int(port))
        return self._remap(node) if self._remap else node


def slot_of(keys: Collection[str]) -> int:
    """Return the slot of a command's keys, which share it."""
    return crc_hqx(_commands.key_bytes(_keys.slot_tag(next(iter(keys)))), 0) % SLOTS


def _sorted(letters: Sequence[_Letter]) -> _Post:
    """Return the letters by node. Of the scripts that a node does not know, the first of each carries its source."""
    post = _Post()
    carried: set[tuple[Node, object]] = set()
    for letter in letters:
        which = (letter.node, letter.command.script)
        post.add(letter, _commands.words(letter.command, whole=letter.unknown and which not in carried))
        if letter.unknown:
            carried.add(which)
    return post
