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

from sqlalchemy import Dialect, Table, inspect
from sqlalchemy import types as sqltypes
from sqlalchemy.orm import ColumnProperty, Mapper
from sqlalchemy.types import TypeEngine

from . import _keys, _sqlalchemy
from ._codec import Codec, Column, plain_type
from ._foreign_keys import replaces, rewriters
from .config import CacheConfig
from .errors import ConfigurationError

CONFIG_ATTRIBUTE = "__cache_config__"

_EAGER = {"joined", "selectin", "subquery", "immediate", "noload", False}


class Refused(Exception):
    """Why a mapped class is not cached."""


@dataclass(frozen=True, slots=True)
class CachedTable:
    """A table whose rows are cached, and how its primary keys become text."""

    schema: str | None
    name: str
    pk_columns: tuple[str, ...]
    pk_types: tuple[type, ...]
    absences: bool = False  # "no such row" is cached, so an INSERT changes what is

    def pk_text(self, parts: Sequence[object]) -> str | None:
        """Return the text of a primary key, or None unless its values have exactly the columns' types."""
        if len(parts) != len(self.pk_types):
            return None
        for part, wanted in zip(parts, self.pk_types, strict=True):
            if type(part) is not wanted and not (wanted is uuid.UUID and isinstance(part, wanted)):
                return None  # drivers have UUID classes of their own
            if isinstance(part, int) and not -(2**63) <= part < 2**63:
                return None  # beyond any integer column
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
    columns: tuple[Column, ...]
    ttl_ms: int | None
    missing_ttl_ms: int | None
    _codecs: dict[tuple[str, str], Codec] = field(default_factory=dict)  # by database and driver

    def codec(self, dialect: Dialect) -> Codec:
        """Return the codec for rows that a dialect loads."""
        kind = dialect.name, dialect.driver
        codec = self._codecs.get(kind)
        if codec is None:
            codec = self._codecs[kind] = Codec(self.columns, dialect, self.attributes)
        return codec

    def identity_key(self, ident: object) -> _sqlalchemy.IdentityKey | None:
        """Return the identity key that a `get()` argument names, or None if it is not a primary key."""
        if isinstance(ident, tuple | list):
            pk = tuple(ident)
        elif isinstance(ident, dict):
            if ident.keys() != set(self.pk_attributes):
                return None
            pk = tuple(ident[name] for name in self.pk_attributes)
        else:
            pk = (ident,)
        return None if self.table.pk_text(pk) is None else (self.identity_class, pk, None)


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
            raise Refused(f"relationship {relationship.key!r} is set by the load itself (lazy={relationship.lazy!r})")
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
        table=_cached_table(mapper, table, config),
        pk_attributes=tuple(prop.key for prop in pk),
        attributes=tuple(key for key in _sqlalchemy.load_order(mapper) if key in names),
        columns=tuple(columns),
        ttl_ms=config.ttl_ms,
        missing_ttl_ms=config.missing_ttl_ms,
    )


def _cached_table(mapper: Mapper[Any], table: Table, config: CacheConfig) -> CachedTable:
    return CachedTable(
        table.schema,
        table.name,
        tuple(column.name for column in mapper.primary_key),
        tuple(_pk_type(column.name, column.type) for column in mapper.primary_key),
        config.missing_ttl is not None,
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
    on_update: dict[CachedTable, set[str]] = field(default_factory=dict)  # -> the columns that are referred to
    on_truncate: set[CachedTable] = field(default_factory=set)  # by TRUNCATE ... CASCADE, whatever the rules say
    replaces: bool = False  # an INSERT may delete other rows, because the table says so


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
        for class_ in [mapper.class_ for mapper in _sqlalchemy.mappers()]:
            config_of(class_)

    def named(self, class_: object, pk: object = None) -> tuple[CachedTable, str | None]:
        """Return the table of a class that a caller names, and the text of a primary key if one is given.

        Raises:
            ConfigurationError: the class is not declared cached, or the key is not one of its primary keys.
        """
        mapper: Any = inspect(class_, raiseerr=False) if isinstance(class_, type) else None
        config = config_of(mapper.class_) if isinstance(mapper, Mapper) else None
        if config is None:
            raise ConfigurationError("model", class_, f"give a mapped class with a {CONFIG_ATTRIBUTE}")
        table = mapper.local_table
        try:
            if not isinstance(table, Table):
                raise Refused("it is not mapped to a table")
            cached = _cached_table(mapper, table, config)
        except Refused as why:
            raise ConfigurationError("model", class_, f"it is never cached: {why}") from None
        if pk is None:
            return cached, None
        text = cached.pk_text(pk if isinstance(pk, tuple | list) else (pk,))
        if text is None:
            wanted = ", ".join(
                f"{name}: {t.__name__}" for name, t in zip(cached.pk_columns, cached.pk_types, strict=True)
            )
            raise ConfigurationError("pk", pk, f"give the primary key of {mapper.class_.__name__}: ({wanted})")
        return cached, text

    def all_tables(self) -> list[CachedTable]:
        """Return every cached table."""
        return [cached for interest in self.interests().values() for cached in interest.cached]

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
            mapper: Any = inspect(class_, raiseerr=False)
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
        mentioned = set()
        for found in self._mentions.finditer(sql):
            schema = found["schema"]
            mentioned.add((schema and schema.strip('"`[]'), found["table"]))
            if schema is not None and schema[0] not in '"`[':
                mentioned.add((schema.lower(), found["table"]))  # some databases fold a name without quotes
        return mentioned

    def _collect(self) -> dict[str, Interest]:
        # Mappers may be half configured at this moment, and configuring them here could fail for good. So a class
        # that its relationships would refuse counts too: its writes fence in vain, which is harmless.
        interests: dict[str, Interest] = {}
        for mapper in list(_sqlalchemy.mappers()):
            table = mapper.local_table
            try:
                config = config_of(mapper.class_)
                if not isinstance(table, Table) or config is None:
                    continue
                cached = _cached_table(mapper, table, config)
            except (ConfigurationError, Refused):
                continue  # said where the class is used
            mine = interests.setdefault(cached.name.lower(), Interest())
            if cached not in mine.cached:
                mine.cached.append(cached)
            mine.replaces |= replaces(table)
            for rewriter in rewriters(table):
                theirs = interests.setdefault(rewriter.name.lower(), Interest())
                theirs.replaces |= rewriter.table is not None and replaces(rewriter.table)
                if rewriter.action == "update":
                    theirs.on_update.setdefault(cached, set()).update(rewriter.columns)
                else:
                    (theirs.on_delete if rewriter.action == "delete" else theirs.on_truncate).add(cached)
        return interests


def _mentions(names: list[str]) -> re.Pattern[str] | None:
    if not names:
        return None
    any_name = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    quote = r'["`\[\]]?'
    schema = r'(?P<schema>"[^"]+"|`[^`]+`|\[[^\]]+\]|[\w$]+)'
    return re.compile(rf"(?<!\w)(?:{schema}\s*\.\s*)?{quote}(?P<table>{any_name})(?!\w)", re.IGNORECASE)
