"""What a command is about: the application's cache, its models, its database. The options that commands share.

Keys must be named as the application names them, so what the application itself configures is asked first: `--app`, or
a module that calls `SQLModelCache.configure()` when it is imported. Options stand in where there is neither.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer
from sqlalchemy import Engine, create_engine, make_url

from .. import _sqlalchemy
from ..config import Settings
from ..configure import SQLModelCache
from ..transport import MemoryTransport, RedisAsyncTransport, RedisSyncTransport
from ..transport._clients import Members
from ._app import CommandError, ExitCode, first_line

T = TypeVar("T")
P = ParamSpec("P")

ENCRYPTION_KEY = "SQLMODEL_CACHE_ENCRYPTION_KEY"

AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, and nothing else there")]
Database = Annotated[
    str | None,
    typer.Option(
        envvar="DATABASE_URL", help="URL, with the application's driver; or where its engine is: app.db:engine"
    ),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="app.models:Hero, imported from the current directory")]


class HashKeys(StrEnum):
    """`configure(hash_keys=...)`, on a command line."""

    NO = "no"
    YES = "yes"
    ROLLOUT = "rollout"


@dataclass(frozen=True, slots=True)
class Options:
    """What the commands have in common."""

    app: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE[:CALLABLE]",
            envvar="SQLMODEL_CACHE_APP",
            help="what calls the application's own SQLModelCache.configure(): safer than the options below",
        ),
    ] = None
    transport: Annotated[
        str | None, typer.Option(metavar="URL", help="redis://, rediss:// or unix://; else REDIS_URL")
    ] = None
    cluster: Annotated[bool, typer.Option("--cluster", help="the URL is of a node of a Redis Cluster")] = False
    key_prefix: Annotated[str | None, typer.Option(help="as in configure()")] = None
    namespace: Annotated[str | None, typer.Option(help="as in configure(); one, where that has a callable")] = None
    hash_keys: Annotated[HashKeys | None, typer.Option(help="as in configure()")] = None
    timeout: Annotated[float, typer.Option(min=0.001, help="seconds that one round trip to Redis may take")] = 5.0


def with_target(command: Callable[Concatenate[Target, P], T]) -> Callable[..., T]:
    """Return a command that has `Options` as options of its own, and gets a `Target` that is made of them."""
    own = inspect.signature(command, eval_str=True)
    shared = inspect.signature(Options, eval_str=True).parameters

    @functools.wraps(command)
    def run(*args: P.args, **given: P.kwargs) -> T:
        target = Target(Options(**{name: given.pop(name) for name in shared}))  # type: ignore[arg-type]
        try:
            return command(target, *args, **given)
        finally:
            SQLModelCache.reset()

    ours = [*list(own.parameters.values())[1:], *shared.values()]
    ours = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in ours]
    run.__dict__["__signature__"] = own.replace(parameters=ours)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in ours}
    return run


class Target:
    """One command's cache, models and database."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def load(self, reference: str) -> type:
        """Return the class that `app.models:Hero` names."""
        found = load("MODEL", reference)
        if not isinstance(found, type):
            raise CommandError(f"MODEL={reference}: not a class but a {type(found).__name__}; give app.models:Hero")
        return found

    @functools.cached_property
    def settings(self) -> Settings:
        """The application's settings, or what the options say. Models are loaded before: they may configure."""
        options = self.options
        if options.app is not None:
            if options.transport or options.cluster or options.key_prefix or options.hash_keys:
                raise CommandError("--app: the application says where its keys are: leave out the options that do")
            configure_app(options.app)
        settings = SQLModelCache.get_config()
        if settings is None or options.transport is not None:
            settings = self._told()
        elif options.key_prefix or options.hash_keys or options.cluster:
            raise CommandError("a module has called configure(): --key-prefix, --hash-keys and --cluster say it twice")
        if isinstance(settings.transport, MemoryTransport):
            raise CommandError(
                "the application keeps its rows in its own process's memory, which no other process can reach"
            )
        return settings

    def _told(self) -> Settings:
        options = self.options
        url = options.transport or os.environ.get("REDIS_URL")
        if url is None:
            raise CommandError("which Redis? Give --transport redis://..., REDIS_URL, or --app app.cache:configure")
        keys = [key for key in os.environ.get(ENCRYPTION_KEY, "").split(",") if key.strip()]
        hashing: Any = {HashKeys.YES: True, HashKeys.ROLLOUT: "rollout"}.get(options.hash_keys or HashKeys.NO, False)
        SQLModelCache.configure(
            cluster_transport(url) if options.cluster else url,
            key_prefix=options.key_prefix or "sqlmodelcache",
            namespace=options.namespace,
            encryption_key=keys or None,
            hash_keys=hashing,
        )
        settings = SQLModelCache.get_config()
        assert settings is not None  # noqa: S101  it was made a moment ago
        return settings

    def configure(self) -> Settings:
        """Configure the library as the application does, but for a command's patience; return the settings.

        An invalidation that Redis does not confirm is an error, and what is of use to a long-lived process only is left
        out: the near cache, and the verification of hits.
        """
        settings = self.settings
        given = {field.name: getattr(settings, field.name) for field in fields(settings)}
        own = _own(settings.transport)
        if own is not None:
            given |= {"transport": own, "async_transport": None}
        timeout = self.options.timeout
        given |= {"timeout": timeout, "commit_timeout": timeout, "on_unreachable": "refuse"}
        given |= {"near_cache": None, "verify": 0.0}
        if self.options.namespace is not None:
            given["namespace"] = self.options.namespace
        SQLModelCache.configure(**given)
        changed = SQLModelCache.get_config()
        assert changed is not None  # noqa: S101  as above
        return changed

    def on(self, database: str | None, body: Callable[[Engine], T]) -> T:
        """Return what `body` returns, given an engine of the database that answers; an asyncio one's sync face.

        What is stored depends on the driver, so it is the application's that is used, asyncio or not.
        """
        if database is None:
            raise CommandError("which database? Give --database, or DATABASE_URL: keys contain its name")
        engine = engine_of(database)
        if not engine.dialect.is_async:
            try:
                return _reached(engine, body)
            finally:
                engine.dispose()

        async def run() -> T:
            try:
                return await _sqlalchemy.in_new_greenlet(_reached, engine, body)
            finally:
                await SQLModelCache.aclose()
                await _sqlalchemy.in_new_greenlet(engine.dispose)

        return asyncio.run(run())


def load(argument: str, reference: str) -> Any:
    """Return what `module:name` names; the current directory is searched, too."""
    module, _, path = reference.partition(":")
    if not module or not path:
        raise CommandError(f"{argument}={reference}: give module:name, such as app.models:Hero")
    found: Any = import_module(argument, module)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise CommandError(f"{argument}={reference}: module {module} has no {path!r}") from None
    return found


def import_module(argument: str, name: str) -> Any:
    """Return a module, as a server would import it that was started in the current directory."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is not None and f"{name}.".startswith(f"{missing.name}."):
            raise CommandError(
                f"{argument}={name}: there is no module {missing.name}, seen from {os.getcwd()}"
            ) from None
        raise CommandError(f"{argument}={name}: importing it fails: {missing}") from None
    except Exception as error:  # of the application's own
        what = f"{type(error).__name__}: {first_line(error)}"
        raise CommandError(f"{argument}={name}: importing it fails: {what}") from error


def configure_app(reference: str) -> None:
    """Let the application configure the library."""
    if ":" not in reference:
        import_module("--app", reference)
    else:
        configure = load("--app", reference)
        if not callable(configure) or inspect.iscoroutinefunction(configure):
            raise CommandError(f"--app={reference}: give a plain function that calls SQLModelCache.configure()")
        try:
            configure()
        except Exception as error:  # of the application's own
            what = f"{type(error).__name__}: {first_line(error)}"
            raise CommandError(f"--app={reference}: calling it fails: {what}") from error
    if SQLModelCache.get_config() is None:
        raise CommandError(f"--app={reference}: it has not called SQLModelCache.configure()")


def cluster_transport(url: str) -> RedisSyncTransport:
    """Return a transport to the cluster that a URL's node belongs to."""
    import redis.cluster
    from redis import exceptions

    try:
        client = redis.cluster.RedisCluster.from_url(url)
    except exceptions.RedisClusterException as error:
        raise CommandError(f"--cluster: {first_line(error)}", ExitCode.UNREACHABLE) from None
    except ValueError as error:
        raise CommandError(f"--transport: {first_line(error)}") from None
    members: Any = Members.of(client)
    client.close()
    return RedisSyncTransport(members)


def _own(transport: Any) -> RedisSyncTransport | None:
    """Return a transport to the same servers, without time-outs of its own and with connections that it closes."""
    if isinstance(transport, RedisAsyncTransport):
        transport = transport.twin()
    if isinstance(transport, RedisSyncTransport):
        return RedisSyncTransport(transport.client, check_server=transport.check_server)
    return None


def engine_of(database: str) -> Engine:
    """Return the engine of a URL, or the application's own; of an asyncio one its sync face."""
    if "://" not in database:
        engine = load("--database", database)
        engine = getattr(engine, "sync_engine", engine)
        if not isinstance(engine, Engine):
            raise CommandError(f"--database={database}: not an engine but a {type(engine).__name__}")
        return engine
    url = make_url(database)
    try:
        if not url.get_dialect().is_async:
            return create_engine(url)
        from sqlalchemy.ext.asyncio import create_async_engine

        return create_async_engine(url).sync_engine
    except ImportError as missing:
        raise CommandError(f"--database={url.drivername}://...: {first_line(missing)}") from None


def without_password(database: str | None) -> str | None:
    """Return what `--database` names, so that it may be written down."""
    return make_url(database).render_as_string() if database is not None and "://" in database else database


def _reached(engine: Engine, body: Callable[[Engine], T]) -> T:
    try:
        engine.connect().close()
    except Exception as error:  # drivers do not agree upon which
        what = first_line(getattr(error, "orig", None) or error)
        raise CommandError(f"the database does not answer: {what}", ExitCode.UNREACHABLE) from None
    return body(engine)


def parts(argument: str, texts: Sequence[str], types: Sequence[type], names: Sequence[str]) -> tuple[Any, ...]:
    """Return a primary key's values from their texts, in the order of its columns."""
    wanted = " ".join(f"{name.upper()}({kind.__name__})" for name, kind in zip(names, types, strict=True))
    if len(texts) != len(types):
        raise CommandError(f"{argument}={' '.join(texts)}: the primary key is {wanted}")
    found = []
    for text, kind in zip(texts, types, strict=True):
        read: Callable[[str], Any] = getattr(kind, "fromisoformat", kind)
        try:
            found.append(read(text))
        except ValueError:
            raise CommandError(f"{argument}={text}: the primary key is {wanted}") from None
    return tuple(found)
