"""A second-level cache for SQLModel: `session.get()` answered from a shared cache that stays right."""

from __future__ import annotations

from .config import CacheConfig, NearCache, Settings
from .configure import SQLModelCache
from .errors import CacheError, CodecError, ConfigurationError, FollowerError, InvalidationError, TransportError
from .explanation import Explanation, RowExplanation
from .metrics import Histogram, ModelStats, Stats
from .tracing import Trace, TracedGet
from .transport import AsyncTransport, MemoryTransport, RedisAsyncTransport, RedisSyncTransport, SyncTransport
from .verification import Discrepancy, Verification

__all__ = [
    "AsyncTransport",
    "CacheConfig",
    "CacheError",
    "CodecError",
    "ConfigurationError",
    "Discrepancy",
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
    "Trace",
    "TracedGet",
    "TransportError",
    "Verification",
]

__version__ = "0.1.0"
