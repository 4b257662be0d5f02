"""Why a model or a row is cached, or is not: what `SQLModelCache.explain()` returns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper

from ._entities import Entities
from ._lazy import links_of
from ._shapes import Entity
from .config import CONFIG_ATTRIBUTE, Settings, config_of
from .errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether gets of a model are cached, and how. `print()` it."""

    model: str
    cached: bool  # False: every get of it goes to the database
    reason: str | None = None  # why it is not
    table: str | None = None  # as in keys
    primary_key: tuple[str, ...] = ()  # attributes, in the order of a key
    ttl: float | None = None  # seconds
    missing_ttl: float | None = None  # seconds for which "no such row" is cached; None when it is not
    attributes: tuple[str, ...] = ()  # what a hit sets, as a SELECT would
    left_out: tuple[str, ...] = ()  # columns that a SELECT leaves for later, too
    subclasses: tuple[str, ...] = ()  # what a get may find besides the model itself, and the cache can hold
    refused: Mapping[str, str] = field(default_factory=dict)  # what a get may find and the cache cannot hold: why
    not_stored: Mapping[str, str] = field(default_factory=dict)  # what has kept rows from being stored: attribute, why
    many_to_one: tuple[str, ...] = ()  # relationships of the model, cached or not, that are look-ups in the cache

    def __str__(self) -> str:
        head = f"{self.model} is cached" if self.cached else f"{self.model} is not cached: {self.reason}"
        lines = [head]
        if self.cached:
            missing = "never" if self.missing_ttl is None else f"for {self.missing_ttl:g} s"
            lines += [
                f"  table        {self.table}, by {', '.join(self.primary_key)}",
                f"  ttl          {self.ttl:g} s; absence {missing}",
                f"  attributes   {', '.join(self.attributes)}",
            ]
        lines += [f"  left out     {', '.join(self.left_out)}"] if self.left_out else []
        lines += [f"  subclasses   {', '.join(self.subclasses)}"] if self.subclasses else []
        lines += [f"  refused      {name}: {why}" for name, why in self.refused.items()]
        lines += [f"  not stored   {why}" for why in self.not_stored.values()]
        lines += [f"  many-to-one  {', '.join(self.many_to_one)}"] if self.many_to_one else []
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class RowExplanation:
    """What the cache holds of a row at this moment. `print()` it."""

    model: str
    key: str  # as it is in the cache; with `hash_keys` a hash stands in the place of the primary key
    state: Literal["value", "absent", "fence", "nothing", "unknown"]  # absent: that there is no such row is stored
    usable: bool = False  # whether a get in this process would be a hit
    reason: str | None = None  # why it would not
    values: Mapping[str, Any] | None = None  # the attributes that a hit would set
    ttl: float | None = None  # seconds that are left; None where the transport does not tell
    size: int | None = None  # bytes of its payloads as they are stored, encrypted if they are
    fingerprints: tuple[str, ...] = ()  # in which shapes it is stored: releases, drivers and classes have their own
    fingerprint: str = ""  # the shape that this process reads and stores

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.state}" + ("" if self.usable else f", and not used: {self.reason}")]
        lines += [f"  key          {self.key}"]
        lines += [f"  ttl          {self.ttl:g} s left"] if self.ttl is not None else []
        lines += [f"  size         {self.size} bytes"] if self.size is not None else []
        lines += [f"  shapes       {', '.join(self.fingerprints)}; this process's: {self.fingerprint}"]
        lines += [f"  {name:<12} {value!r}" for name, value in (self.values or {}).items()]
        return "\n".join(lines)


def explain(
    model: Any, settings: Settings | None, entities: Entities, not_stored: Mapping[type, Mapping[str, str]]
) -> Explanation:
    """Return whether and how a model is cached.

    Raises:
        ConfigurationError: it is not a mapped class.
    """
    mapper: Any = inspect(model, raiseerr=False) if isinstance(model, type) else None
    if not isinstance(mapper, Mapper):
        raise ConfigurationError("model", model, "give a mapped class")
    name = f"{model.__module__}.{model.__qualname__}"
    entity = entities.get(model)
    in_use = settings is not None and settings.enabled
    links = tuple(link.relationship.key for link in links_of(mapper, entities)) if in_use else ()
    if entity is None:
        declared = config_of(model) is not None
        why = entities.refusal(model) if declared else f"it has no {CONFIG_ATTRIBUTE}"
        return Explanation(name, False, why, many_to_one=links)
    if settings is None or not settings.enabled:
        why = "SQLModelCache is not configured" if settings is None else "configure(enabled=False)"
        return Explanation(name, False, why)
    return _of(entity, name, settings, not_stored.get(model, {}), links)


def _of(
    entity: Entity, name: str, settings: Settings, not_stored: Mapping[str, str], links: tuple[str, ...]
) -> Explanation:
    own = next((shape for shape in entity.shapes if shape.mapper is entity.mapper), entity.shapes[0])
    table = entity.table
    return Explanation(
        name,
        True,
        table=table.family if table.schema is None else f"{table.schema}.{table.family}",
        primary_key=entity.pk_attributes,
        ttl=(entity.ttl_ms or settings.default_ttl_ms) / 1000,
        missing_ttl=None if entity.missing_ttl_ms is None else entity.missing_ttl_ms / 1000,
        attributes=in_order(own.mapper, own.attributes),
        left_out=tuple(sorted(own.others | own.expired | own.excluded)),
        subclasses=tuple(shape.mapper.class_.__qualname__ for shape in entity.shapes if shape is not own),
        refused={class_.__qualname__: why for class_, why in entity.refused.items()},
        not_stored=dict(not_stored),
        many_to_one=links,
    )


def in_order(mapper: Mapper[Any], names: Collection[str]) -> tuple[str, ...]:
    """Return attributes in the order of their columns; in which order a SELECT sets them differs with the process."""
    order = list(mapper.columns.keys())
    return tuple(sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name)))
