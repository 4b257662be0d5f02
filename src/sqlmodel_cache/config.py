"""What a user declares, checked once and turned into milliseconds once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from .errors import ConfigurationError

Duration: TypeAlias = int | float | timedelta
"""Seconds as a number, or a `timedelta`."""

Namespace: TypeAlias = str | Callable[[Any], str]

CONFIG_ATTRIBUTE = "__cache_config__"

MAX_TTL_MS = 10 * 365 * 24 * 3600 * 1000  # ten years: a longer one is a mistake in the unit


def milliseconds(argument: str, value: object) -> int:
    """Return a duration in whole milliseconds, at least 1.

    Raises:
        ConfigurationError: it is not a positive, finite duration of at most ten years.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise ConfigurationError(argument, value, "give seconds as int, float or timedelta")
    if not math.isfinite(seconds) or seconds <= 0:
        raise ConfigurationError(
            argument, value, "give a duration above zero; to switch caching off, use enabled=False"
        )
    ms = seconds * 1000
    if ms > MAX_TTL_MS:
        raise ConfigurationError(argument, value, "give at most ten years; durations are in seconds")
    return max(1, round(ms))


def flag(argument: str, value: object) -> bool:
    """Return `value` if it is a bool, else raise ConfigurationError."""
    if not isinstance(value, bool):
        raise ConfigurationError(argument, value, "give True or False")
    return value


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Declares that a model is cached: `__cache_config__ = CacheConfig(ttl=600)` in the class body.

    Args:
        enabled: False neither reads the model from the cache nor fills it. Its commits still invalidate, for the
            processes in which it is enabled.
        ttl: seconds until a cached row expires; None means `configure(default_ttl=...)`.
        missing_ttl: seconds for which "no such row" is cached; None caches no absence. Then an INSERT fences its key
            like any other write, and one whose key is not in its parameters (autoincrement) fences the table. Every
            process that inserts must know it: deploy it to writers first.
        many_to_one: True also answers lazy loads of the model by its primary key, as of `hero.team`, under the same
            rules and with the same guarantee as a `get`: a load that begins after a `commit()` has returned never
            gives the row as it was before that commit. Loads of an object that a statement with loader options has
            loaded go to the database. `relationship(info={"cache": True})`, or False, decides for one relationship.

    Raises:
        ConfigurationError: a ttl that is not a positive duration, an `enabled` or `many_to_one` that is not a bool.
    """

    enabled: bool = True
    ttl: Duration | None = None
    missing_ttl: Duration | None = None
    many_to_one: bool = False

    def __post_init__(self) -> None:
        flag("CacheConfig(enabled)", self.enabled)
        flag("CacheConfig(many_to_one)", self.many_to_one)
        if self.ttl is not None:
            milliseconds("CacheConfig(ttl)", self.ttl)
        if self.missing_ttl is not None:
            milliseconds("CacheConfig(missing_ttl)", self.missing_ttl)

    @property
    def ttl_ms(self) -> int | None:
        """The ttl in milliseconds, or None for the default."""
        return None if self.ttl is None else milliseconds("CacheConfig(ttl)", self.ttl)

    @property
    def missing_ttl_ms(self) -> int | None:
        """The missing_ttl in milliseconds, or None when absence is not cached."""
        return None if self.missing_ttl is None else milliseconds("CacheConfig(missing_ttl)", self.missing_ttl)


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


@dataclass(frozen=True, slots=True)
class Settings:
    """What `SQLModelCache.configure()` was told, as `SQLModelCache.get_config()` returns it. Durations in seconds."""

    transport: object
    async_transport: object
    default_ttl: Duration = 300
    key_prefix: str = "sqlmodelcache"
    enabled: bool = True
    namespace: Namespace | None = None
    fence_ttl: Duration = 60
    on_unreachable: Literal["serve", "refuse"] = "serve"
    snapshot_reads: Literal["requested", "database"] = "requested"

    def __post_init__(self) -> None:
        milliseconds("default_ttl", self.default_ttl)
        flag("enabled", self.enabled)
        if not isinstance(self.key_prefix, str) or not self.key_prefix.strip():
            raise ConfigurationError("key_prefix", self.key_prefix, "give a string that is not empty")
        if self.namespace is not None and not callable(self.namespace):
            if not isinstance(self.namespace, str) or not self.namespace.strip():
                raise ConfigurationError(
                    "namespace", self.namespace, "give a string that is not empty, or a callable of the session"
                )
        if milliseconds("fence_ttl", self.fence_ttl) < 1000:
            raise ConfigurationError("fence_ttl", self.fence_ttl, "give at least a second: it must outlive any COMMIT")
        if self.on_unreachable not in ("serve", "refuse"):
            raise ConfigurationError("on_unreachable", self.on_unreachable, 'give "serve" or "refuse"')
        if self.snapshot_reads not in ("requested", "database"):
            raise ConfigurationError("snapshot_reads", self.snapshot_reads, 'give "requested" or "database"')

    @property
    def default_ttl_ms(self) -> int:
        """The default ttl in milliseconds."""
        return milliseconds("default_ttl", self.default_ttl)

    @property
    def fence_ttl_ms(self) -> int:
        """The deadline of a fence in milliseconds."""
        return milliseconds("fence_ttl", self.fence_ttl)
