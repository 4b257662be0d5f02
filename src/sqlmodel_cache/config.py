"""What a user declares, checked once and turned into milliseconds once."""

from __future__ import annotations

import base64
import contextlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from . import _keys
from .errors import ConfigurationError

Duration: TypeAlias = int | float | timedelta
"""Seconds as a number, or a `timedelta`."""

Namespace: TypeAlias = str | Callable[[Any], str]

Key: TypeAlias = bytes | str
"""16, 24 or 32 bytes, or their base64 text."""

CONFIG_ATTRIBUTE = "__cache_config__"

TIMEOUT = 0.05  # seconds that a read of the cache may take
COMMIT_TIMEOUT = 1.0  # seconds that an invalidation around a commit may take

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


def keys_of(value: Key | Sequence[Key] | None) -> tuple[bytes, ...]:
    """Return the keys of an `encryption_key` as bytes.

    Raises:
        ConfigurationError: one is not a key. The error does not contain it.
    """
    if value is None:
        return ()
    given = [value] if isinstance(value, bytes | str) or not isinstance(value, Sequence) else list(value)
    keys = tuple(_key(each) for each in given)
    if not keys or len(set(keys)) < len(keys):
        raise ConfigurationError("encryption_key", f"{len(keys)} keys", "give at least one key, and each of them once")
    return keys


def _key(value: object) -> bytes:
    key = b""
    if isinstance(value, bytes):
        key = value
    elif isinstance(value, str):
        with contextlib.suppress(ValueError):
            key = base64.b64decode(value.strip().translate({ord("-"): "+", ord("_"): "/"}), validate=True)
    if len(key) not in (16, 24, 32):
        raise ConfigurationError(
            "encryption_key",
            f"a {type(value).__name__}",  # and nothing else of it
            "give 16, 24 or 32 random bytes, or their base64 text: "
            "base64.b64encode(secrets.token_bytes(32)).decode() makes one",
        )
    return key


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
        refresh_ahead: renews rows before they expire, so that a row that is read all the time never does: a hit that
            is near its end is read from the database again, at random, and the earlier the longer its load takes.
            1.0 is the usual eagerness; more is earlier. None leaves rows to expire. `get_many` and `get_by` renew
            nothing. Where the database cannot be reached, the hit is returned.
        unique: keys that `SQLModelCache.get_by` may look up, each a tuple of attribute names whose columns have a
            unique constraint or index.
        many_to_one: True also answers lazy loads of the model by its primary key, as of `hero.team`, under the same
            rules and with the same guarantee as a `get`: a load that begins after a `commit()` has returned never
            gives the row as it was before that commit. Loads of an object that a statement with loader options has
            loaded go to the database. `relationship(info={"cache": True})`, or False, decides for one relationship.
        near: keeps rows in this process's memory, too, where `configure(near_cache=...)` asks for it, under the
            guarantee of `NearCache`.
        exclude: attributes that are never stored. A hit leaves them as an expired attribute is left: the first access
            loads all of them by one SELECT. What a class excludes is excluded in its subclasses, too.

    Raises:
        ConfigurationError: a ttl that is not a positive duration, an `enabled`, `many_to_one` or `near` that is not a
            bool, a `refresh_ahead` that is not a positive number, a `unique` that is not made of tuples of names, an
            `exclude` that is not made of names.
    """

    enabled: bool = True
    ttl: Duration | None = None
    missing_ttl: Duration | None = None
    refresh_ahead: float | None = None
    unique: Sequence[tuple[str, ...]] = ()
    many_to_one: bool = False
    near: bool = False
    exclude: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        beta = self.refresh_ahead
        if beta is not None and not (isinstance(beta, int | float) and 0 < beta < math.inf and beta is not True):
            raise ConfigurationError("CacheConfig(refresh_ahead)", beta, "give a number above zero: 1.0 is usual")
        if not isinstance(self.unique, list | tuple) or not all(_is_names(key) for key in self.unique):
            raise ConfigurationError(
                "CacheConfig(unique)", self.unique, 'give a list of tuples of attribute names: [("email",)]'
            )
        if isinstance(self.exclude, str) or not all(isinstance(name, str) and name for name in self.exclude):
            raise ConfigurationError(
                "CacheConfig(exclude)", self.exclude, 'give a set of attribute names: {"password_hash"}'
            )
        flag("CacheConfig(enabled)", self.enabled)
        flag("CacheConfig(many_to_one)", self.many_to_one)
        flag("CacheConfig(near)", self.near)
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


def _is_names(key: object) -> bool:
    return isinstance(key, tuple) and len(key) > 0 and all(isinstance(name, str) and name for name in key)


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
class NearCache:
    """Keeps rows in this process's memory, in front of Redis: `configure(near_cache=NearCache())`.

    For the models with `CacheConfig(near=True)`. What it promises:

    - In the process that commits, all that the library promises: a get that begins after a `commit()` has returned
      never returns the row as it was before that commit.
    - A get in another process may return the old row for as long as the word of the commit is on its way - Redis sends
      it on a connection of its own, with the replies to the commit's fence, a matter of milliseconds - and never longer
      than `max_age` after `commit()` has returned, whatever happens to Redis, that connection or the network. It never
      returns uncommitted data.
    - Rows that expire in Redis, are evicted there or deleted by hand are gone here within the same bounds.

    Everything is forgotten when that connection is lost, and nothing is served while it has left a PING unanswered for
    a second. Rows are kept as payloads and decoded at each hit, so that no two sessions ever share a value.

    Args:
        max_rows: how many rows are kept. Each takes about 260 bytes besides its payload and its key.
        max_age: seconds after which a row is looked up in Redis again.

    Raises:
        ConfigurationError: `max_rows` is not a positive int, `max_age` not a positive duration.
    """

    max_rows: int = 10_000
    max_age: Duration = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.max_rows, int) or isinstance(self.max_rows, bool) or self.max_rows < 1:
            raise ConfigurationError(
                "NearCache(max_rows)", self.max_rows, "give a positive int; for no near cache, leave near_cache out"
            )
        milliseconds("NearCache(max_age)", self.max_age)

    @property
    def max_age_ms(self) -> int:
        """The maximum age in milliseconds."""
        return milliseconds("NearCache(max_age)", self.max_age)


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
    fill_wait: Duration | None = 0.25
    near_cache: NearCache | None = None
    max_payload_bytes: int = 1_048_576
    encryption_key: Key | Sequence[Key] | None = field(default=None, repr=False)
    hash_keys: bool | Literal["rollout"] = False
    wait_replicas: int = 0
    timeout: Duration = TIMEOUT
    commit_timeout: Duration = COMMIT_TIMEOUT
    verify: float = 0.0

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
        if self.fill_wait is not None:
            milliseconds("fill_wait", self.fill_wait)
        if self.near_cache is not None and not isinstance(self.near_cache, NearCache):
            raise ConfigurationError("near_cache", self.near_cache, "give NearCache(max_rows=..., max_age=...) or None")
        if type(self.wait_replicas) is not int or self.wait_replicas < 0:
            raise ConfigurationError("wait_replicas", self.wait_replicas, "give the number of replicas, or 0")
        milliseconds("timeout", self.timeout)
        milliseconds("commit_timeout", self.commit_timeout)
        if self.snapshot_reads not in ("requested", "database"):
            raise ConfigurationError("snapshot_reads", self.snapshot_reads, 'give "requested" or "database"')
        if type(self.max_payload_bytes) is not int or self.max_payload_bytes < 1:
            raise ConfigurationError("max_payload_bytes", self.max_payload_bytes, "give a positive int")
        if isinstance(self.verify, bool) or not isinstance(self.verify, int | float) or not 0 <= self.verify <= 1:
            raise ConfigurationError("verify", self.verify, "give the share of hits to verify, from 0 to 1: 0.001")
        keys_of(self.encryption_key)
        if self.hash_keys != "rollout" and not isinstance(self.hash_keys, bool):
            raise ConfigurationError("hash_keys", self.hash_keys, 'give True or False, and "rollout" between the two')

    @property
    def default_ttl_ms(self) -> int:
        """The default ttl in milliseconds."""
        return milliseconds("default_ttl", self.default_ttl)

    @property
    def fill_wait_ms(self) -> int:
        """How long a reader waits for another's fill in milliseconds; 0 when it does not."""
        return 0 if self.fill_wait is None else milliseconds("fill_wait", self.fill_wait)

    @property
    def timeout_ms(self) -> int:
        """The time-out of a read of the cache in milliseconds."""
        return milliseconds("timeout", self.timeout)

    @property
    def commit_timeout_ms(self) -> int:
        """The time-out of an invalidation around a commit in milliseconds."""
        return milliseconds("commit_timeout", self.commit_timeout)

    @property
    def fence_ttl_ms(self) -> int:
        """The deadline of a fence in milliseconds."""
        return milliseconds("fence_ttl", self.fence_ttl)

    @property
    def encryption_keys(self) -> tuple[bytes, ...]:
        """The keys of payloads, the one that encrypts first; none where they are stored as they are."""
        return keys_of(self.encryption_key)

    @property
    def hash_secrets(self) -> tuple[bytes, ...]:
        """What primary keys may be hashed with, in this process or in another, the one that it reads by first."""
        secrets = tuple(_keys.hash_secret(key) for key in self.encryption_keys)
        if self.hash_keys == "rollout":
            return (*secrets, b"")
        return (secrets or (b"",)) if self.hash_keys else ()
