"""The library's own reads, which SQLAlchemy does not have: many rows by primary key, and one by a unique key.

What may be asked and stored is decided as for a get. Without a cache, or where a rule sends a read to the database,
both are one SELECT.
"""

from __future__ import annotations

import datetime
import unicodedata
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from sqlalchemy import Row, inspect
from sqlalchemy.orm import Mapper, Session

from . import _searches, _sqlalchemy, tracing
from ._admission import Lane
from ._counting import Counting
from ._driver import new_id
from ._effects import ABSENT, Entry, Loaded, LoadMany, Locate, Located, Lookup
from ._plan import Effect, run
from ._protocol import Answer, Reading
from ._reading import Reader
from ._searches import Finding
from ._shapes import Entity, Found
from ._unique import UniqueKey, unique_key
from .errors import ConfigurationError
from .metrics import BypassReason, RefusedReason

MAX_ROWS = 5_000  # of one SELECT: databases bound the number of parameters, the least by 32,766
MAX_COMPOSITE = 500  # of one whose key has several columns: SQLite bounds the depth of an expression by 1,000


class Queries:
    """Answers `get_many` and `get_by` with a reader's means."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def get_many(self, session: Session, class_: Any, idents: Iterable[Any], options: Mapping[str, Any]) -> list[Any]:
        """Return the rows with these primary keys, in this order, None for each that does not exist."""
        mapper = mapper_of(class_)
        if isinstance(idents, str | bytes | Mapping) or not isinstance(idents, Iterable):
            raise ConfigurationError("idents", idents, "give a list of primary keys")
        many = _Many(self._reader, session, mapper, list(idents), options)
        return many.rows()

    def get_by(self, session: Session, class_: Any, values: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """Return the row with these values of a unique key, or None."""
        began = perf_counter()
        mapper = mapper_of(class_)
        reader = self._reader
        entity = reader.entity(class_)
        select = partial(_sqlalchemy.select_by, session, mapper, values, options)
        if entity is None:
            return select()
        key = unique_key(entity, tuple(values))
        text = key.text(values)
        lane: Lane | BypassReason = "key"
        if text is not None:
            lane = reader.admission.lane(session, entity, _call(options))
        if isinstance(lane, Lane) and key.deferrable and lane.transactions:
            lane = "own_writes"  # it may see another row with the key than everybody else, or two
        if isinstance(lane, str) or text is None:
            return reader.bypass(entity, None, "key" if isinstance(lane, Lane) else lane, select, began)
        return _ByKey(reader, session, lane, key, text, values, select).row()


def mapper_of(class_: Any) -> Mapper[Any]:
    """Return the mapper of a class.

    Raises:
        ConfigurationError: it is not mapped.
    """
    mapper: Any = inspect(class_, raiseerr=False) if isinstance(class_, type) else None
    if not isinstance(mapper, Mapper):
        raise ConfigurationError("entity", class_, "give a mapped class")
    return mapper


def _call(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a get with execution options: none, if possible, as most gets have none."""
    return {"execution_options": options} if options else {}


class _Many:
    """A `get_many` under way. Rows are known by their places among those asked for."""

    def __init__(
        self, reader: Reader, session: Session, mapper: Mapper[Any], idents: list[Any], options: Mapping[str, Any]
    ) -> None:
        self._reader = reader
        self._session = session
        self._mapper = mapper
        self._idents = idents
        self._options = options
        self._keys = _identity_keys(mapper, idents, hidden=reader.hides)
        self._found: list[Any] = [None] * len(idents)
        self._not_stored: dict[
            int, RefusedReason
        ] = {}  # why a row that was loaded has no payload, where one was wanted
        self._bypassed: list[tuple[str | None, BypassReason]] = []
        self._began = perf_counter()

    def rows(self) -> list[Any]:
        """Return them."""
        entity = self._reader.entity(self._mapper.class_)
        opened = [place for place in range(len(self._idents)) if not self._is_held(place)]
        others = opened
        if entity is not None and opened:
            lane = self._reader.admission.lane(self._session, entity, _call(self._options))
            opened = [place for place in opened if not self._is_held(place)]  # it may have been flushed
            asked = self._asked(entity, lane, opened)
            others = [place for place in opened if place not in asked]
            if isinstance(lane, Lane) and asked:
                others = self._read(lane, asked, others)
        self._select(others)
        if tracing.active and entity is not None and self._bypassed:
            took = (perf_counter() - self._began) / len(self._keys)
            for pk, reason in self._bypassed:
                self._reader.traced(entity, pk, "bypass", reason, took)
        return self._found

    def _is_held(self, place: int) -> bool:
        """Return whether the session has the row, or says by itself that there is none."""
        if self._session.identity_map.get(self._keys[place]) is None:
            return False
        self._get(place)
        return True

    def _get(self, place: int) -> None:
        self._found[place] = self._session.get(self._mapper.class_, self._idents[place], **_call(self._options))

    def _asked(self, entity: Entity, lane: Lane | BypassReason, places: Sequence[int]) -> dict[int, tuple[str, Entry]]:
        """Return the text of the primary key, and the keys in the cache, of those that may be asked for there."""
        asked = {}
        for place in places:
            named = entity.identify(self._keys[place][1])
            lookup: Lookup | BypassReason = "key"
            if named is not None:
                lookup = lane if isinstance(lane, str) else self._reader.admission.row(lane, named[1])
            if isinstance(lookup, str):
                entity.counters.bypasses[lookup] += 1
                self._bypassed.append((named and named[1], lookup))
            elif named is not None:
                asked[place] = named[1], lookup.entry
        return asked

    def _read(self, lane: Lane, asked: dict[int, tuple[str, Entry]], others: list[int]) -> list[int]:
        """Read through the cache. Return which of the others are still to be read: all, unless a SELECT was sent."""
        places = list(asked)
        left = others
        counting = Counting(lane.entity.counters, self._reader.driver.reading())

        def execute(effect: Effect[Any]) -> Any:
            nonlocal left
            if not isinstance(effect, LoadMany):
                return counting.execute(effect)
            wanted = [places[at] for at in effect.places]
            texts = [asked[place][0] for place in wanted]
            loads, left = left, []
            return self._load(lane, wanted, texts, effect.encode, loads)

        reading = self._reading = self._reader.reading(lane)
        plan = _searches.read_many([entry for _, entry in asked.values()], reading, new_id=new_id)
        answers = dict(zip(places, run(plan, execute), strict=True))
        for place, answer in answers.items():
            self._found[place] = self._reader.row(self._session, self._keys[place], answer)
        took = (perf_counter() - self._began) / len(answers)
        for place, answer in answers.items():
            not_stored = self._not_stored.get(place, "snapshot")
            self._reader.count(counting, lane.entity, asked[place][0], answer, took, not_stored)
        return left

    def _load(
        self, lane: Lane, places: list[int], texts: list[str], encode: Sequence[bool], others: list[int]
    ) -> list[Loaded[Any]]:
        """Run one SELECT for rows that are wanted by the cache, and others that are not."""
        payloads: dict[int, bytes] = {}
        takes = {
            self._keys[place]: self._reader.taking(lane.entity, lane.rows, text, partial(payloads.__setitem__, place))
            for place, text, wanted in zip(places, texts, encode, strict=True)
            if wanted
        }
        probe = self._reader.probe
        began = perf_counter()
        is_exact = probe.load(
            self._session, lane.entity.mappers, takes, lambda: self._select([*places, *others]), lambda _: self._found
        )
        took = (perf_counter() - began) / len(places)
        told = self._reader.admission.may_be_told(self._session, lane, texts) if takes else [False] * len(texts)
        for place, wanted, may in zip(places, encode, told, strict=True):
            is_missing = self._found[place] is None
            if is_missing:
                payloads.pop(place, None)
                if lane.entity.missing_ttl_ms is not None and is_exact and wanted:
                    payloads[place] = ABSENT
            if wanted:
                why: RefusedReason = "missing" if is_missing else "value"
                self._not_stored[place] = why if place not in payloads or may else "own_writes"
        return [
            self._reader.loaded(lane, self._reading, self._found[place], payloads.get(place) if may else None, took)
            for place, may in zip(places, told, strict=True)
        ]

    def _select(self, places: Sequence[int]) -> bool:
        """Find rows in the database; return whether each that was found has the very key that was asked for."""
        is_exact = True
        size = MAX_ROWS if len(self._mapper.primary_key) == 1 else MAX_COMPOSITE
        for start in range(0, len(places), size):
            some = places[start : start + size]
            pks = [self._keys[place][1] for place in some]
            rows = {
                _sqlalchemy.identity_of(row): row
                for row in _sqlalchemy.select_many(self._session, self._mapper, pks, self._options)
            }
            for place in some:
                self._found[place] = rows.pop(self._keys[place], None)
            missing = [place for place in some if self._found[place] is None]
            # A collation, or a cast, finds rows of other names: one that nobody has asked for by its own, or that
            # somebody has asked for by both.
            if missing and (rows or not self._are_strangers(missing, some)):
                is_exact = False
                for place in missing:
                    self._get(place)
        return is_exact

    def _are_strangers(self, missing: Sequence[int], places: Sequence[int]) -> bool:
        """Return whether no collation could take a key that was not found for one that was."""
        doubtful = [place for place in missing if any(type(part) not in _EXACT for part in self._keys[place][1])]
        if not doubtful:
            return True
        found = {_loosely(self._keys[place][1]) for place in places if self._found[place] is not None}
        return not any(_loosely(self._keys[place][1]) in found for place in doubtful)


_EXACT = (int, uuid.UUID, datetime.date)


def _loosely(pk: Sequence[object]) -> tuple[str, ...]:
    """Return what is left of a key where neither case, accents, width, punctuation nor spaces count."""
    folded = (unicodedata.normalize("NFKD", str(part).casefold()) for part in pk)
    return tuple("".join(filter(str.isalnum, part)) for part in folded)


def _identity_keys(mapper: Mapper[Any], idents: Sequence[Any], *, hidden: bool) -> list[_sqlalchemy.IdentityKey]:
    """Return the identity keys of primary keys as `Session.get` takes them; `hidden` keeps them out of errors' texts.

    Raises:
        ConfigurationError: one is not a primary key, cannot be hashed, or is given twice.
    """
    names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    seen: dict[_sqlalchemy.IdentityKey, int] = {}
    for place, ident in enumerate(idents):
        if isinstance(ident, Mapping):
            parts = [ident[name] for name in names] if ident.keys() == set(names) else []
        else:
            parts = list(ident) if isinstance(ident, tuple | list | Row) else [ident]
        if len(parts) != len(names):
            raise ConfigurationError(
                f"idents[{place}]", ident, f"give primary keys: ({', '.join(names)})", hidden=hidden
            )
        key = mapper.identity_key_from_primary_key(tuple(parts))
        try:
            first = seen.setdefault(key, place)
        except TypeError:
            raise ConfigurationError(f"idents[{place}]", ident, "a primary key can be hashed", hidden=hidden) from None
        if first != place:
            raise ConfigurationError(
                f"idents[{place}]", ident, f"give each row once; it is idents[{first}], too", hidden=hidden
            )
    return list(seen)


class _ByKey:
    """A `get_by` under way."""

    def __init__(
        self,
        reader: Reader,
        session: Session,
        lane: Lane,
        key: UniqueKey,
        text: str,
        values: Mapping[str, Any],
        select: Any,
    ) -> None:
        self._reader = reader
        self._session = session
        self._lane = lane
        self._key = key
        self._values = values
        self._select = select
        self._entry = lane.entry(text)
        self._reading = reader.reading(lane)
        self._identity: _sqlalchemy.IdentityKey | None = None  # of the row that the hint names
        self._not_stored: RefusedReason = "snapshot"
        self._began = perf_counter()

    def row(self) -> Any:
        """Return it."""
        finding = Finding(self._entry, self._reader.hint(self._lane, self._key), self._where, self._matches)
        counting = Counting(self._lane.entity.counters, self._reader.driver.reading())

        def execute(effect: Effect[Any]) -> Any:
            return self._locate(effect) if isinstance(effect, Locate) else counting.execute(effect)

        answer: Answer[Found, Any] = run(_searches.find(finding, new_id=new_id), execute)
        row = self._reader.row(self._session, self._identity, answer) if self._identity else answer.row
        entity = self._lane.entity
        key = None if row is None else _sqlalchemy.identity_of(row)
        pk = None if key is None else entity.table.pk_text(key[1])
        self._reader.count(counting, entity, pk, answer, perf_counter() - self._began, self._not_stored)
        return row

    def _where(self, pk: tuple[Any, ...]) -> tuple[Entry, Reading[Found]] | None:
        """Return where the row with a primary key is, unless it must be read from the database."""
        named = self._lane.entity.identify(pk)
        lookup = "key" if named is None else self._reader.admission.row(self._lane, named[1])
        if named is None or isinstance(lookup, str):
            return None
        held = self._session.identity_map.get(named[0])
        if held is not None and not _sqlalchemy.is_complete(held, self._lane.entity.mapper):
            return None  # a SELECT would refresh it
        self._identity = named[0]
        return lookup.entry, self._reading

    def _matches(self, found: Found) -> bool:
        return self._key.matches(found[1], self._values)

    def _locate(self, effect: Locate[Any]) -> Located[Any]:
        """Run the SELECT, and tell where its row is cached."""
        payload: dict[str, bytes] = {}
        lane, identity = self._lane, self._identity
        takes = {}
        if effect.encode and identity is not None:
            text = lane.entity.table.pk_text(identity[1]) or ""
            takes[identity] = self._reader.taking(lane.entity, lane.rows, text, partial(payload.__setitem__, "row"))
        began = perf_counter()
        row = self._reader.probe.load(
            self._session, lane.entity.mappers, takes, self._select, lambda row: [] if row is None else [row]
        )
        key = None if row is None else _sqlalchemy.identity_of(row)
        named = None if key is None else lane.entity.identify(key[1])
        if not effect.encode or named is None or named[0] != key:
            self._not_stored = "missing" if row is None else "other"
            return Located(Loaded(row, None), None, None)
        if not self._reader.admission.may_be_told(self._session, lane, [named[1]])[0]:
            self._not_stored = "own_writes"
            return Located(Loaded(row, None), None, None)
        took = perf_counter() - began
        loaded = self._reader.loaded(lane, self._reading, row, payload.get("row"), took)
        return Located(loaded, lane.entry(named[1]), self._key.hint(named[0][1]))
