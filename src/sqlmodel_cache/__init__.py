"""A second-level cache for SQLModel: `session.get()` answered from a shared cache that stays right."""

from __future__ import annotations

from .config import CacheConfig, NearCache, Settings
from .configure import SQLModelCache
from .errors import CacheError, CodecError, ConfigurationError, FollowerError, InvalidationError, TransportError
from .explanation import Explanation, RowExplanation
from .metrics import Histogram, ModelStats, Stats
from .transport import AsyncTransport, MemoryTransport, RedisAsyncTransport, RedisSyncTransport, SyncTransport

__all__ = [
    "AsyncTransport",
    "CacheConfig",
    "CacheError",
    "CodecError",
    "ConfigurationError",
    "Explanation",
    "FollowerError",
    "Histogram",
    "InvalidationError",
    "MemoryTransport",
    "ModelStats",
    "NearCache",
    "RedisAsyncTransport",
    "RedisSyncTransport",
    "RowExplanation",
    "SQLModelCache",
    "Settings",
    "Stats",
    "SyncTransport",
    "TransportError",
]

__version__ = "0.1.0"
