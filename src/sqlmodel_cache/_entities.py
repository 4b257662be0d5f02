"""Which mapped classes are cached, how their rows are keyed and hydrated, and which tables matter to them.

A class that the cache cannot reproduce exactly is refused here, once, with the reason; its gets go to the database.
"""

from __future__ import annotations

import datetime
import re
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table, inspect
from sqlalchemy import types as sqltypes
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import ColumnProperty, Mapper
from sqlalchemy.types import TypeEngine

from . import _keys, _sqlalchemy
from ._codec import Codec, Column, plain_type
from .config import CacheConfig
from .errors import ConfigurationError

CONFIG_ATTRIBUTE = "__cache_config__"

_EAGER = {"joined", "selectin", "subquery", "immediate", False}
_REWRITING = {"CASCADE", "SET NULL", "SET DEFAULT"}


class Refused(Exception):
    """Why a mapped class is not cached."""


@dataclass(frozen=True, slots=True)
class CachedTable:
    """A table whose rows are cached, and how its primary keys become text."""

    schema: str | None
    name: str
    pk_columns: tuple[str, ...]
    pk_types: tuple[type, ...]

    def pk_text(self, parts: Sequence[object]) -> str | None:
        """Return the text of a primary key, or None unless its values have exactly the columns' types."""
        if len(parts) != len(self.pk_types) or any(
            type(part) is not wanted for part, wanted in zip(parts, self.pk_types, strict=True)
        ):
            return None
        return _keys.pk_text(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Entity:
    """A cached class."""

    mapper: Mapper[Any]
    class_: type
    identity_class: type
    table: CachedTable
    pk_attributes: tuple[str, ...]
    attributes: tuple[str, ...]
    codec: Codec
    ttl_ms: int | None

    def primary_key(self, ident: object) -> tuple[Any, ...] | None:
        """Return a `get()` argument as a tuple, one value for each primary key column, or None."""
        if isinstance(ident, tuple | list):
            return tuple(ident)
        if isinstance(ident, dict):
            if ident.keys() != set(self.pk_attributes):
                return None
            return tuple(ident[name] for name in self.pk_attributes)
        return (ident,)


def config_of(class_: type) -> CacheConfig | None:
    """Return the class's declaration, or None if it has none.

    Raises:
        ConfigurationError: the declaration is not a `CacheConfig`.
    """
    config = getattr(class_, CONFIG_ATTRIBUTE, None)
    if config is None:
        return None
    if not isinstance(config, CacheConfig):
        raise ConfigurationError(f"{class_.__name__}.{CONFIG_ATTRIBUTE}", config, "give a CacheConfig(...)")
    return config


def entity_of(mapper: Mapper[Any], config: CacheConfig) -> Entity:
    """Return how a class is cached.

    Raises:
        Refused: the cache could not reproduce what a SELECT loads.
    """
    table = mapper.local_table
    if not isinstance(table, Table):
        raise Refused("it is not mapped to a table")
    if mapper.inherits is not None or mapper.polymorphic_on is not None or len(mapper.self_and_descendants) > 1:
        raise Refused("it takes part in mapped inheritance")
    if mapper.always_refresh:
        raise Refused("its mapper has always_refresh")
    for relationship in mapper.relationships:
        if relationship.lazy in _EAGER:
            raise Refused(f"relationship {relationship.key!r} loads eagerly (lazy={relationship.lazy!r})")
    loaded = [prop for prop in mapper.column_attrs if not prop.deferred]
    columns = [Column(prop.key, *_column(prop, table)) for prop in loaded]
    pk = [mapper.get_property_by_column(column) for column in mapper.primary_key]
    names = tuple(column.key for column in columns)
    for prop in pk:
        if prop.key not in names:
            raise Refused(f"primary key attribute {prop.key!r} is deferred")
    return Entity(
        mapper=mapper,
        class_=mapper.class_,
        identity_class=mapper.base_mapper.class_,
        table=_cached_table(mapper, table),
        pk_attributes=tuple(prop.key for prop in pk),
        attributes=names,
        codec=Codec(columns),
        ttl_ms=config.ttl_ms,
    )


def _cached_table(mapper: Mapper[Any], table: Table) -> CachedTable:
    return CachedTable(
        table.schema,
        table.name,
        tuple(column.name for column in mapper.primary_key),
        tuple(_pk_type(column.name, column.type) for column in mapper.primary_key),
    )


def _column(prop: ColumnProperty[Any], table: Table) -> tuple[str, TypeEngine[Any]]:
    if len(prop.columns) != 1 or getattr(prop.columns[0], "table", None) is not table:
        raise Refused(f"attribute {prop.key!r} is an SQL expression, not a column of the table")
    if isinstance(prop.columns[0].type, sqltypes.PickleType):
        raise Refused(f"attribute {prop.key!r} is pickled")
    return prop.columns[0].name, prop.columns[0].type


def _pk_type(name: str, type_: TypeEngine[Any]) -> type:
    plain = plain_type(type_)
    if isinstance(plain, sqltypes.Integer):
        return int
    if isinstance(plain, sqltypes.String) and not isinstance(plain, sqltypes.Enum) and plain.collation is None:
        return str
    if isinstance(plain, sqltypes.Uuid) and plain.as_uuid:
        return uuid.UUID
    if isinstance(plain, sqltypes.Date):
        return datetime.date
    raise Refused(f"primary key column {name!r} has type {type_!r}, whose values have no unique text")


@dataclass(slots=True)
class Interest:
    """Why a table's name matters: tables of that name that are cached, and cached tables that foreign keys rewrite."""

    cached: list[CachedTable] = field(default_factory=list)
    on_delete: set[CachedTable] = field(default_factory=set)
    on_update: set[CachedTable] = field(default_factory=set)


class Entities:
    """All cached classes. Made anew, in place, when a mapper or a table appears."""

    def __init__(self) -> None:
        self._by_class: weakref.WeakKeyDictionary[type, Entity | None] = weakref.WeakKeyDictionary()
        self._refusals: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
        self._interests: dict[str, Interest] | None = None
        self._mentions: re.Pattern[str] | None = None
        self.generation = 0  # changes with the answers below, for whoever keeps them

    def changed(self) -> None:
        """Forget the answers: a mapper or a table was made."""
        self._by_class = weakref.WeakKeyDictionary()
        self._interests = None
        self.generation += 1

    def get(self, class_: Any) -> Entity | None:
        """Return the cached class, or None if it is not cached.

        Raises:
            ConfigurationError: a wrong `__cache_config__`, or one on a class without a table.
        """
        try:
            return self._by_class[class_]
        except (KeyError, TypeError):
            return self._find(class_)

    def check(self) -> None:
        """Raise ConfigurationError for a mapped class whose `__cache_config__` is wrong."""
        for mapper in _sqlalchemy.mappers():
            config_of(mapper.class_)

    def refusal(self, class_: type) -> str | None:
        """Return why a class with a `CacheConfig` is not cached, or None if it is, or does not ask to be."""
        self.get(class_)
        return self._refusals.get(class_)

    def _find(self, class_: Any) -> Entity | None:
        if not isinstance(class_, type):
            return None
        config = config_of(class_)
        found: Entity | None = None
        if config is not None:
            mapper = inspect(class_, raiseerr=False)
            if not isinstance(mapper, Mapper):
                raise ConfigurationError(
                    "entity", class_, f"it has {CONFIG_ATTRIBUTE} but no table; declare the model with table=True"
                )
            try:
                if not config.enabled:
                    raise Refused("its CacheConfig is not enabled")
                found = entity_of(mapper, config)
            except Refused as why:
                self._refusals[class_] = str(why)
        self._by_class[class_] = found
        if found is not None and self._interests is not None:
            interest = self._interests.get(found.table.name.lower())
            if interest is None or found.table not in interest.cached:
                self._interests = None  # declared after the mapping; the tables must know of it from now on
                self.generation += 1
        return found

    def interest(self, table: str) -> Interest | None:
        """Return why writes to a table of this name matter, or None if they do not."""
        return self.interests().get(table.lower())

    def interests(self) -> dict[str, Interest]:
        """Return all table names that matter, in lower case: a write in plain SQL may spell them in any."""
        interests = self._interests
        if interests is None:
            interests = self._collect()
            self._mentions = _mentions(list(interests))
            self._interests = interests
        return interests

    def mentioned_in(self, sql: str) -> set[tuple[str | None, str]]:
        """Return the (schema, name) of every table that matters and whose name stands in a statement."""
        if not self.interests() or self._mentions is None:
            return set()
        return {(found["schema"], found["table"]) for found in self._mentions.finditer(sql)}

    def _collect(self) -> dict[str, Interest]:
        # Mappers may be half configured at this moment, and configuring them here could fail for good. So a class
        # that its relationships would refuse counts too: its writes fence in vain, which is harmless.
        interests: dict[str, Interest] = {}
        for mapper in list(_sqlalchemy.mappers()):
            table = mapper.local_table
            try:
                if not isinstance(table, Table) or config_of(mapper.class_) is None:
                    continue
                cached = _cached_table(mapper, table)
            except (ConfigurationError, Refused):
                continue  # said where the class is used
            mine = interests.setdefault(cached.name.lower(), Interest())
            if cached not in mine.cached:
                mine.cached.append(cached)
            for parent, action in _rewriters(table):
                theirs = interests.setdefault(parent.name.lower(), Interest())
                (theirs.on_delete if action == "delete" else theirs.on_update).add(cached)
        return interests


def _mentions(names: list[str]) -> re.Pattern[str] | None:
    if not names:
        return None
    any_name = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    quote = r'["`\[\]]?'
    return re.compile(
        rf"(?<!\w)(?:{quote}(?P<schema>\w+){quote}\s*\.\s*)?{quote}(?P<table>{any_name})(?!\w)", re.IGNORECASE
    )


def _rewriters(table: Table) -> set[tuple[Table, str]]:
    """Return (parent, 'delete' or 'update') for each change of a table that makes the database itself, by foreign keys
    with ON DELETE or ON UPDATE actions, change rows of `table`; through any number of tables.
    """
    found: set[tuple[Table, str]] = set()
    waiting = [(table, "delete"), (table, "update")]
    while waiting:
        child, change = waiting.pop()
        for constraint in child.foreign_key_constraints:
            try:
                parent = constraint.referred_table
            except SQLAlchemyError:  # a table that is not in the metadata: nothing is known of it
                continue
            for action, rule in (("delete", constraint.ondelete), ("update", constraint.onupdate)):
                rule = (rule or "").upper()
                effect = "delete" if action == "delete" and rule == "CASCADE" else "update"
                # What happens to the child's rows must itself go on to `table`, unless they are its rows.
                reaches = child is table or effect == change
                if rule in _REWRITING and reaches and (parent, action) not in found:
                    found.add((parent, action))
                    waiting.append((parent, action))
    return found
