"""Unique keys other than the primary one: which a model declares, and how their values become a key and a hint.

A hint is a primary key as bytes. What it says is looked up, and checked, before anybody is told of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Column, Index, Table, UniqueConstraint
from sqlalchemy.orm import Mapper

from . import _keys
from ._shapes import Entity, Refused, pk_type
from .config import config_of
from .errors import CodecError, ConfigurationError

_encode = msgspec.msgpack.Encoder(uuid_format="bytes").encode


@dataclass(frozen=True, slots=True, eq=False)
class UniqueKey:
    """Attributes whose values no two rows share.

    Attributes:
        names: of the attributes.
        fingerprint: of the hints: 8 bytes that differ when the primary key has other types.
        deferrable: a transaction may see two rows that share them, until it commits.
    """

    names: tuple[str, ...]
    types: tuple[type, ...]
    fingerprint: bytes
    deferrable: bool
    _decoder: Any

    def text(self, values: Mapping[str, Any]) -> str | None:
        """Return the text of a key, which no primary key has, or None unless the values have the columns' types.

        The values are hashed: they are no primary key, so nobody who looks at keys shall read them.
        """
        parts = [values[name] for name in self.names]
        if any(type(part) is not wanted for part, wanted in zip(parts, self.types, strict=True)):
            return None
        hidden = _keys.hidden(_keys.pk_text(parts))
        return f"/{','.join(map(_keys.escape, self.names))}={hidden}"  # a primary key has no bare "/"

    def matches(self, row: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
        """Return whether a row has these very values."""
        return all(type(row.get(name)) is type(value) and row[name] == value for name, value in values.items())

    def hint(self, pk: Sequence[Any]) -> bytes:
        """Return the hint that leads to a row."""
        return _encode(pk)

    def pk(self, hint: bytes) -> tuple[Any, ...]:
        """Return the primary key that a hint names.

        Raises:
            CodecError: it is not a hint of this key.
        """
        try:
            found: tuple[Any, ...] = self._decoder(hint)
        except Exception as error:
            raise CodecError("not a hint") from error
        return found


def unique_key(entity: Entity, names: Sequence[str]) -> UniqueKey:
    """Return the declared unique key of these attributes.

    Raises:
        ConfigurationError: it is not declared, or the table does not say that it is unique.
    """
    config = config_of(entity.class_)
    declared = () if config is None else tuple(config.unique)
    wanted = next((key for key in declared if sorted(key) == sorted(names)), None)
    model = entity.class_.__qualname__
    if wanted is None:
        known = ", ".join(f"({', '.join(key)})" for key in declared) or "none"
        raise ConfigurationError(
            f"unique key of {model}",
            tuple(names),
            f"declare it in the model: CacheConfig(unique=[{tuple(names)!r}]); declared are: {known}",
        )
    found: UniqueKey | None = entity.memo.get(f"unique {wanted}")
    if found is None:
        found = entity.memo[f"unique {wanted}"] = _make(entity, wanted)
    return found


def _make(entity: Entity, names: tuple[str, ...]) -> UniqueKey:
    mapper = entity.mapper
    argument = f"CacheConfig(unique) of {entity.class_.__qualname__}"
    columns = []
    for name in names:
        prop = mapper.column_attrs.get(name)
        if prop is None:
            raise ConfigurationError(argument, names, f"{name!r} is not a column attribute")
        columns.append(prop.columns[0])
    proofs = [item for table in _tables(mapper) for item in _proofs(table, set(columns))]
    if not proofs:
        raise ConfigurationError(
            argument, names, "no unique constraint or index of the table has exactly these columns; declare one there"
        )
    try:
        types = tuple(pk_type(column.name, column.type) for column in columns)
    except Refused as why:
        raise ConfigurationError(argument, names, str(why)) from None
    pk_types = entity.table.pk_types
    described = repr((names, [kind.__name__ for kind in pk_types]))
    return UniqueKey(
        names,
        types,
        hashlib.blake2b(f"unique\0{described}".encode(), digest_size=8).digest(),
        all(isinstance(proof, UniqueConstraint) and bool(proof.deferrable) for proof in proofs),
        msgspec.msgpack.Decoder(tuple[pk_types]).decode,  # type: ignore[valid-type]
    )


def _tables(mapper: Mapper[Any]) -> list[Table]:
    return [table for table in mapper.tables if isinstance(table, Table)]


def _proofs(table: Table, columns: set[Any]) -> Iterator[UniqueConstraint | Index]:
    """Yield what says that no two rows have equal values in these columns; a partial index says less."""
    for item in (*table.constraints, *table.indexes):
        if isinstance(item, UniqueConstraint) or (isinstance(item, Index) and item.unique and not _is_partial(item)):
            if set(item.columns) == columns:
                yield item


def _is_partial(index: Index) -> bool:
    if not all(isinstance(expression, Column) for expression in index.expressions):
        return True  # lower(email) is not unique where email is, nor the other way round
    return any(name.endswith("where") and value is not None for name, value in index.dialect_kwargs.items())
