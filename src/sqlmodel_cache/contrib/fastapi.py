"""A lifespan for FastAPI, and Starlette: the cache is configured before the application starts, and closed after it.

It decides when `configure()`, `aclose()` and `reset()` are called, and nothing else.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ParamSpec, Protocol, TypeAlias, cast, overload

from ..configure import SQLModelCache
from ..errors import ConfigurationError

log = logging.getLogger("sqlmodel_cache")

P = ParamSpec("P")

# What FastAPI and Starlette take as `lifespan=`, told by shape: it is imported from neither.
Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]


class _TakesOptions(Protocol[P]):
    """The signature of `cache_lifespan`: a lifespan, and then what `configure()` takes."""

    @overload
    def __call__(self, lifespan: Lifespan | None, /, *args: P.args, **options: P.kwargs) -> Lifespan: ...
    @overload
    def __call__(self, *args: P.args, **options: P.kwargs) -> Lifespan: ...


def _options_of(configure: Callable[P, None]) -> Callable[[Callable[..., Lifespan]], _TakesOptions[P]]:
    """Return a decorator that types a function as one that takes what `configure()` does."""
    return lambda function: cast("_TakesOptions[P]", function)


@_options_of(SQLModelCache.configure)
def cache_lifespan(lifespan: Lifespan | None = None, transport: Any = None, **options: Any) -> Lifespan:
    """Return a lifespan for `FastAPI(lifespan=...)` that configures the cache around your own.

    `SQLModelCache.configure(transport, **options)` comes before your start-up, so that what this commits is
    invalidated; `aclose()` and `reset()` come after your shut-down, for the same reason. They come, too, if either
    raises. What your lifespan yields is the application's state, as without the cache.

    A process has one cache: an application that is mounted in another, or runs beside it, may have a lifespan with
    equal options. The first to start configures, the last to end resets.

    Args:
        lifespan: your own; None if there is none.
        transport: as in `configure()`. With a Redis URL nothing remains to be closed; a client that you made stays
            yours: close it behind the `yield` of your own lifespan.
        **options: all others that `configure()` takes.

    Raises:
        ConfigurationError: `lifespan` is not one, or an option has a name that `configure()` does not know. At
            start-up, before anything has started: an option is wrong, or another application in this process runs
            with other options.
    """
    if lifespan is not None and not callable(lifespan):
        raise ConfigurationError("lifespan", lifespan, "give a function of the application, as FastAPI(lifespan=...)")
    unknown = sorted(set(options) - set(inspect.signature(SQLModelCache.configure).parameters))
    if unknown:
        raise ConfigurationError("cache_lifespan", unknown, "give what SQLModelCache.configure() takes")
    configuration = {"transport": transport, **options}

    @asynccontextmanager
    async def around(app: Any) -> AsyncIterator[Any]:
        _running.begin(configuration)
        try:
            if lifespan is None:
                yield None
            else:
                async with lifespan(app) as state:
                    yield state
        finally:
            try:
                if not await SQLModelCache.aclose():
                    log.warning("the application ends before the cache could be told of its last commits")
            finally:
                _running.end()

    return around


class _Running:
    """The lifespans that are between start-up and shut-down in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both; test clients run applications in threads of their own
        self._count = 0
        self._configuration: Mapping[str, Any] = {}

    def begin(self, configuration: Mapping[str, Any]) -> None:
        """Configure the cache, unless one that runs has done so."""
        with self._lock:
            if self._count and configuration != self._configuration:
                raise ConfigurationError(
                    "cache_lifespan",
                    sorted(configuration),
                    "another application in this process runs with other options, and a process has one cache: "
                    "give both the same",
                )
            if not self._count:
                SQLModelCache.configure(**configuration)
            self._count, self._configuration = self._count + 1, configuration

    def end(self) -> None:
        """Leave SQLAlchemy as it was found, if nobody else runs."""
        with self._lock:
            self._count -= 1
            if not self._count:
                self._configuration = {}
                SQLModelCache.reset()


_running = _Running()
