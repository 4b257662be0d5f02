"""What a get of a mapped class may find, and which attributes a SELECT would set on it.

A get of a base class finds subclasses, each with other attributes: a shape is one class, found by a get of another.
What the cache cannot reproduce exactly is refused here, once, with the reason: a class as a whole, or a shape, whose
rows are then not stored. Every fill compares its instance with the shape, so a wrong expectation costs a miss.
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import Column as TableColumn
from sqlalchemy import Dialect, Table
from sqlalchemy import types as sqltypes
from sqlalchemy.orm import ColumnProperty, Mapper
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList, Grouping
from sqlalchemy.types import TypeEngine

from . import _keys, _sqlalchemy
from ._codec import Codec, Column, not_a_row, plain_type
from ._renewal import body
from .config import CacheConfig, config_of
from .errors import CodecError, ConfigurationError
from .metrics import ModelCounters

_EAGER = {"joined", "selectin", "subquery", "immediate", "noload", False}


_ONE_INT = (int,)


class Refused(Exception):
    """Why a mapped class, or what a get of it finds, is not cached."""


@dataclass(frozen=True, slots=True)
class CachedTable:
    """A table whose rows are cached, and how its primary keys become text.

    The rows of joined inheritance span several tables; in keys they have the name of the first, `family`.
    """

    schema: str | None
    name: str
    family: str
    pk_columns: tuple[str, ...]  # empty when they are not known: then any write is the whole table's
    pk_types: tuple[type, ...]
    absences: bool = False  # an INSERT changes what is cached: "no such row", or the rest of a row

    def pk_text(self, parts: Sequence[object]) -> str | None:
        """Return the text of a primary key, or None unless its values have exactly the columns' types."""
        if len(parts) != len(self.pk_types):
            return None
        for part, wanted in zip(parts, self.pk_types, strict=True):
            if type(part) is not wanted and not (wanted is uuid.UUID and isinstance(part, wanted)):
                return None  # drivers have UUID classes of their own
            if type(part) is int and not -(2**63) <= part < 2**63:
                return None  # beyond any integer column
        return _keys.pk_text(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A class as a get finds it: the attributes that are loaded, and those that are left for a later SELECT."""

    mapper: Mapper[Any]
    make: _sqlalchemy.Maker
    columns: tuple[Column, ...]
    attributes: tuple[str, ...]  # in the order in which a SELECT sets them
    expired: frozenset[str]
    others: frozenset[str]  # attributes of columns that a SELECT leaves alone, and nothing says so: deferred ones
    excluded: frozenset[str]  # what a SELECT loads, and is not stored: a hit leaves it expired

    def fits(self, loaded: Mapping[str, Any], expired: set[str]) -> bool:
        """Return whether an instance that a SELECT has made has just these attributes."""
        left = not any(key in loaded for key in self.others | self.expired)
        return left and expired == self.expired and all(key in loaded for key in self.attributes)


Found: TypeAlias = tuple[Shape, dict[str, Any]]
"""A decoded row: what to make of it, and its attributes."""


class Rows:
    """Encodes and decodes what a get of a class finds, as one dialect loads it.

    Attributes:
        fingerprint: 8 bytes that differ when anything does that the meaning of a payload depends on.
    """

    def __init__(
        self,
        class_: type,
        shapes: Sequence[Shape],
        dialect: Dialect,
        reads: Sequence[str],
        *,
        polymorphic: bool,
        stamped: bool,
        absences: bool,
    ) -> None:
        self._only: tuple[Shape, Codec] | None = None
        self._stamped = stamped
        self._by_class: dict[type, tuple[bytes, Shape, Codec]] = {}
        self._by_tag: dict[bytes, tuple[Shape, Codec]] = {}
        for shape in shapes:
            codec = Codec(shape.columns, dialect, shape.attributes)
            tag = _digest(_name(shape.mapper.class_), codec.fingerprint) if polymorphic else b""
            self._by_class[shape.mapper.class_] = tag, shape, codec
            self._by_tag[tag] = shape, codec
        read = [each.encode() for each in reads]
        if polymorphic:  # a get of a subclass finds other rows than one of its base, though the columns may be the same
            self.fingerprint = _digest(_name(class_), *read, *sorted(self._by_tag))
        else:
            self._only = self._by_tag[b""]
            self.fingerprint = _digest(*read, self._only[1].fingerprint)
        if stamped:
            self.fingerprint = _digest(b"stamped", self.fingerprint)
        if absences:  # others would be told "no such row", and could not read it
            self.fingerprint = _digest(b"absences", self.fingerprint)

    def decode(self, payload: bytes) -> Found:
        """Return the row.

        Raises:
            CodecError: the bytes are not a row that this get may find.
        """
        if self._stamped:
            payload = body(payload)
        if self._only is not None:
            shape, codec = self._only
            try:
                return shape, codec.load(payload)
            except Exception as error:
                raise not_a_row(error) from error
        known = self._by_tag.get(payload[:8])
        if known is None:
            raise CodecError("a row of an unknown class")
        return known[0], known[1].decode(payload[8:])

    def encode(self, class_: type, attributes: dict[str, Any], expired: set[str]) -> bytes:
        """Return the payload of an instance that a SELECT has made, without the stamp that it may need.

        Raises:
            CodecError: it would not come back as it is; the message says why.
        """
        known = self._by_class.get(class_)
        if known is None:
            raise CodecError(f"{class_.__qualname__} is not cached as a result of this get")
        tag, shape, codec = known
        if not shape.fits(attributes, expired):
            raise CodecError("its loaded attributes are not those that its mapping says")
        return tag + codec.encode(attributes)


def _name(class_: type) -> bytes:
    return f"{class_.__module__}.{class_.__qualname__}".encode()


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Entity:
    """A cached class.

    Attributes:
        reads: which rows its SELECT finds, and as which classes; a part of every fingerprint.
        shapes: what a get of it may find and the cache can hold.
        refused: why it cannot hold the other classes that a get may find.
        counters: of gets of it; they outlive it.
    """

    mapper: Mapper[Any]
    identity_class: type
    table: CachedTable
    pk_attributes: tuple[str, ...]
    ttl_ms: int | None
    missing_ttl_ms: int | None
    renewal: float | None  # how eagerly rows are renewed before they expire
    near: bool
    polymorphic: bool
    reads: tuple[str, ...]
    shapes: tuple[Shape, ...]
    refused: dict[type, str]
    counters: ModelCounters
    memo: dict[str, Any] = field(default_factory=dict)  # for those who serve it: what they need not find out again
    _rows: dict[tuple[str, str], Rows] = field(default_factory=dict)  # by database and driver

    @property
    def class_(self) -> type:
        """The class that is asked for."""
        return self.mapper.class_

    @property
    def mappers(self) -> tuple[Mapper[Any], ...]:
        """The classes that a get may find and the cache can hold."""
        return tuple(shape.mapper for shape in self.shapes)

    def rows(self, dialect: Dialect) -> Rows:
        """Return what encodes and decodes rows that a dialect loads."""
        kind = dialect.name, dialect.driver
        rows = self._rows.get(kind)
        if rows is None:
            rows = self._rows[kind] = Rows(
                self.class_,
                self.shapes,
                dialect,
                self.reads,
                polymorphic=self.polymorphic,
                stamped=self.renewal is not None,
                absences=self.missing_ttl_ms is not None,
            )
        return rows

    def identify(self, ident: object) -> tuple[_sqlalchemy.IdentityKey, str] | None:
        """Return the identity key that a `get()` argument names, and its text; None if it is not a primary key."""
        pk: tuple[Any, ...]
        if type(ident) is int and self.table.pk_types == _ONE_INT and -(2**63) <= ident < 2**63:  # nearly all
            return (self.identity_class, (ident,), None), str(ident)
        if isinstance(ident, tuple | list):
            pk = tuple(ident)
        elif isinstance(ident, dict):
            if ident.keys() != set(self.pk_attributes):
                return None
            pk = tuple(ident[name] for name in self.pk_attributes)
        else:
            pk = (ident,)
        text = self.table.pk_text(pk)
        return None if text is None else ((self.identity_class, pk, None), text)


def entity_of(mapper: Mapper[Any], config: CacheConfig, counters: ModelCounters) -> Entity:
    """Return how a class is cached.

    Raises:
        Refused: the cache could not reproduce what a SELECT loads.
        ConfigurationError: its `CacheConfig` excludes what a hit needs.
    """
    table = cached_table(mapper, config)
    if mapper.always_refresh:
        raise Refused("its mapper has always_refresh")
    if mapper.with_polymorphic and mapper.with_polymorphic[1] is not None:
        raise Refused("it is loaded from a selectable of its own (with_polymorphic)")
    # A concrete class without a union is asked for, and found, in its own table.
    polymorphic = mapper.polymorphic_on is not None and not mapper.concrete
    if polymorphic and not _is_column(mapper.polymorphic_on, mapper):
        raise Refused("its subclasses are told apart by an SQL expression (polymorphic_on)")
    shapes: list[Shape] = []
    refused: dict[type, str] = {}
    for found in _family(mapper) if polymorphic else [mapper]:
        try:
            shapes.append(_shape(mapper, found))
        except Refused as why:
            if not polymorphic:
                raise
            refused[found.class_] = str(why)
    for name in {name for key in config.unique for name in key} & _excluded(mapper):
        raise ConfigurationError(
            f"CacheConfig(exclude) of {mapper.class_.__qualname__}", name, "get_by compares it: it is in `unique`"
        )
    if not shapes:
        raise Refused("; ".join(f"{class_.__qualname__}: {why}" for class_, why in refused.items()))
    return Entity(
        mapper=mapper,
        identity_class=_sqlalchemy.identity_class(mapper),
        table=table,
        polymorphic=polymorphic,
        reads=tuple(_reads(mapper, polymorphic=polymorphic)),
        pk_attributes=tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key),
        ttl_ms=config.ttl_ms,
        missing_ttl_ms=config.missing_ttl_ms,
        near=config.near,
        renewal=config.refresh_ahead,
        shapes=tuple(shapes),
        refused=refused,
        counters=counters,
    )


def _reads(mapper: Mapper[Any], *, polymorphic: bool) -> Iterator[str]:
    """Yield what decides on the rows that a SELECT of the class by its key finds: equal columns do not make them equal.

    Two classes may name the rows of a table by different columns, a class without columns of its own may join another
    table to its base's, and the next release may tell its classes apart in another way.
    """
    yield from map(str, mapper.primary_key)
    yield from (str(table) for table in mapper.tables)
    if polymorphic:
        yield str(mapper.polymorphic_on)
        yield from sorted(f"{_name(member.class_)!r} {member.polymorphic_identity!r}" for member in _family(mapper))


def _shape(asked: Mapper[Any], found: Mapper[Any]) -> Shape:
    """Return what a get of a class sets on an instance of that class or of a subclass."""
    config = config_of(found.class_)
    if config is None or not config.enabled:
        raise Refused("its CacheConfig is not enabled")
    for relationship in found.relationships:
        if relationship.lazy in _EAGER:
            raise Refused(f"relationship {relationship.key!r} is set by the load itself (lazy={relationship.lazy!r})")
    if any(mapper.polymorphic_load == "selectin" for mapper in _between(asked, found)):
        raise Refused('its attributes are loaded by a second SELECT (polymorphic_load="selectin")')
    asked_for = {
        prop for mapper in _sqlalchemy.selected_with(asked) for prop in mapper.column_attrs if not prop.deferred
    }
    selected = {column for prop in asked_for for column in prop.columns}
    wanted = [prop for prop in found.column_attrs if not prop.deferred]
    loaded = {prop.key: prop for prop in wanted if any(column in selected for column in prop.columns)}
    excluded = _excluded(found) & loaded.keys()
    for column in found.primary_key:
        if found.get_property_by_column(column).key not in loaded:
            raise Refused(f"primary key column {column.name!r} is deferred")
    expired = frozenset(prop.key for prop in wanted if prop.key not in loaded)
    loaded = {key: prop for key, prop in loaded.items() if key not in excluded}
    return Shape(
        mapper=found,
        make=_sqlalchemy.Maker(found, _sqlalchemy.path_of(asked), expired | excluded),
        columns=tuple(Column(key, *_column(prop, found)) for key, prop in loaded.items()),
        # Attributes that the SELECT did not ask for by name (a joined class's own primary key) are found last.
        attributes=tuple(
            sorted(
                (key for key in _sqlalchemy.load_order(found) if key in loaded),
                key=lambda key: loaded[key] not in asked_for,
            )
        ),
        expired=expired,
        others=frozenset(prop.key for prop in found.column_attrs if prop.deferred),
        excluded=excluded,
    )


def _excluded(mapper: Mapper[Any]) -> frozenset[str]:
    """Return the attributes that a class, or one that it inherits from, keeps out of the cache.

    Raises:
        ConfigurationError: the cache or SQLAlchemy needs one of them in every row, or it is not a column.
    """
    excluded: set[str] = set()
    for level in mapper.iterate_to_root():
        config = config_of(level.class_)
        for name in () if config is None else config.exclude:
            why = _needed(level, name)
            if why is not None:
                raise ConfigurationError(f"CacheConfig(exclude) of {level.class_.__qualname__}", name, why)
            excluded.add(name)
    return frozenset(excluded)


def _needed(mapper: Mapper[Any], name: str) -> str | None:
    """Return why an attribute cannot be excluded, or None if it can."""
    if name in mapper.relationships:
        return "a relationship is never stored; exclude columns"
    prop = mapper.column_attrs.get(name)
    if prop is None:
        known = ", ".join(sorted(attribute.key for attribute in mapper.column_attrs))
        return f"it has no such column attribute; it has {known}"
    if any(column in mapper.primary_key for column in prop.columns):
        return "it is in the primary key, which names the row in the cache"
    if mapper.version_id_col is not None and mapper.version_id_col in prop.columns:
        return "it is the version_id_col, with which every UPDATE of a loaded row is checked"
    if mapper.polymorphic_on is not None and mapper.polymorphic_on in prop.columns:
        return "it tells which class a row is of (polymorphic_on)"
    return None


def _column(prop: ColumnProperty[Any], mapper: Mapper[Any]) -> tuple[str, TypeEngine[Any]]:
    if not all(_is_column(column, mapper) for column in prop.columns):
        raise Refused(f"attribute {prop.key!r} is an SQL expression, not a column of the table")
    if isinstance(prop.columns[0].type, sqltypes.PickleType):
        raise Refused(f"attribute {prop.key!r} is pickled")
    return str(prop.columns[0]), prop.columns[0].type  # with its table: a family may have it in another


def cached_table(mapper: Mapper[Any], config: CacheConfig) -> CachedTable:
    """Return the table that names the rows of a class in keys: that of its base, unless its inheritance is concrete.

    Raises:
        Refused: there is none, or its primary keys have no unique text.
    """
    base = _base(mapper)
    table = base.local_table
    if not isinstance(table, Table) or not all(isinstance(each, Table) for each in mapper.tables):
        raise Refused("it is not mapped to a table")
    if {getattr(each, "schema", None) for member in _family(mapper) for each in member.tables} != {table.schema}:
        raise Refused("the tables of its family are in several schemas")
    if mapper.primary_key != base.primary_key:
        raise Refused("its primary key is not that of its base class")
    return CachedTable(
        table.schema,
        table.name,
        table.name,
        tuple(column.name for column in base.primary_key),
        tuple(pk_type(column.name, column.type) for column in base.primary_key),
        config.missing_ttl is not None,
    )


def tables_of(mapper: Mapper[Any], config: CacheConfig) -> list[tuple[Table, CachedTable]]:
    """Return every table that a get of the class may read, with the rows of the cache that it is part of.

    Raises:
        Refused: as `cached_table`.
    """
    first = cached_table(mapper, config)
    base = _base(mapper)
    found: dict[Table, CachedTable] = {}
    for member in _family(mapper):
        for table in member.tables:
            if not isinstance(table, Table):
                continue
            if table is base.local_table:
                found[table] = first
            elif table not in found:
                # An outer join may have cached the row without this part of it: then an INSERT changes the row.
                pk = _pk_in(table, member, base)
                found[table] = CachedTable(table.schema, table.name, first.family, pk, first.pk_types, absences=True)
    return list(found.items())


def _family(mapper: Mapper[Any]) -> list[Mapper[Any]]:
    """Return the mapper and those that inherit from it, but for concrete ones: those have tables of their own."""
    return [member for member in mapper.self_and_descendants if _base(member) is _base(mapper)]


def _base(mapper: Mapper[Any]) -> Mapper[Any]:
    while mapper.inherits is not None and not mapper.concrete:
        mapper = mapper.inherits
    return mapper


def _between(base: Mapper[Any], mapper: Mapper[Any] | None) -> Iterator[Mapper[Any]]:
    """Yield a mapper and those that it inherits from, up to but not including `base`."""
    while mapper is not None and mapper is not base:
        yield mapper
        mapper = mapper.inherits


def _is_column(column: object, mapper: Mapper[Any]) -> bool:
    return isinstance(column, TableColumn) and column.table in mapper.tables


def _pk_in(table: Table, mapper: Mapper[Any], base: Mapper[Any]) -> tuple[str, ...]:
    """Return the names of a table's columns that hold the primary key of a base class, or () if some do not."""
    pairs = [
        (comparison.left, comparison.right)
        for level in _between(base, mapper)
        if level.inherit_condition is not None
        for comparison in _conjuncts(level.inherit_condition)
        if isinstance(comparison, BinaryExpression) and comparison.operator is operators.eq
    ]
    names = []
    for column in base.primary_key:
        same: set[Any] = {column}
        for left, right in reversed(pairs):  # from the base down: each level is joined to one above it
            if left in same or right in same:
                same |= {left, right}
        names += [each.name for each in same if getattr(each, "table", None) is table][:1]
    return tuple(names) if len(names) == len(base.primary_key) else ()


def _conjuncts(condition: Any) -> Iterator[Any]:
    """Yield the conditions that are true of every row of which this one is."""
    if isinstance(condition, Grouping):
        yield from _conjuncts(condition.element)
    elif isinstance(condition, BooleanClauseList) and condition.operator is operators.and_:
        for part in condition.clauses:
            yield from _conjuncts(part)
    else:
        yield condition


def pk_type(name: str, type_: TypeEngine[Any]) -> type:
    """Return the Python type of a key column's values.

    Raises:
        Refused: their text would not be unique.
    """
    plain = plain_type(type_)
    if isinstance(plain, sqltypes.Integer):
        return int
    if isinstance(plain, sqltypes.String) and not isinstance(plain, sqltypes.Enum) and plain.collation is None:
        return str
    if isinstance(plain, sqltypes.Uuid) and plain.as_uuid:
        return uuid.UUID
    if isinstance(plain, sqltypes.Date):
        return datetime.date
    raise Refused(f"key column {name!r} has type {type_!r}, whose values have no unique text")
