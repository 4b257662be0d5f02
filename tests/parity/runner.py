"""Runs a scenario twice, without the library and with it, on two databases of the same content, and compares.

A scenario is a function of a `World`. What it does is recorded in a journal: the SQL with its parameters, the events,
and whatever the scenario looks at. A get that must be a hit is announced with `World.expecting("hit")`: it is the only
thing that may be missing from the cached run's journal, and it must be exactly one SELECT.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parity.looks import outcome, plain, portrait, typed
from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.orm import Session

from sqlmodel_cache import MemoryTransport, SQLModelCache

INSTANCE_EVENTS = ("load", "refresh", "refresh_flush", "expire", "init", "init_failure", "pickle", "unpickle")
SESSION_EVENTS = (
    "loaded_as_persistent",
    "transient_to_pending",
    "pending_to_persistent",
    "pending_to_transient",
    "persistent_to_deleted",
    "persistent_to_detached",
    "persistent_to_transient",
    "detached_to_persistent",
    "deleted_to_detached",
    "deleted_to_persistent",
    "before_flush",
    "after_flush",
    "after_flush_postexec",
    "before_commit",
    "after_commit",
    "after_rollback",
    "after_soft_rollback",
    "before_attach",
    "after_attach",
    "after_transaction_create",
    "after_transaction_end",
)
MAPPER_EVENTS = ("before_insert", "after_insert", "before_update", "after_update", "before_delete", "after_delete")


Scenario = Callable[["World"], object]


class Different(AssertionError):
    """The cached run is not the same as the other."""


class World:
    """One run of a scenario: an engine on a database of its own, and the journal."""

    def __init__(self, engine: Engine, cached: bool) -> None:
        self.engine = engine
        self.cached = cached
        self.journal: list[tuple[Any, ...]] = []
        self._quiet = 0
        self._listening: list[tuple[Any, str, Callable[..., Any]]] = []
        self.watch(engine)

    # what happens by itself

    def watch(self, engine: Engine) -> None:
        """Record the SQL of an engine."""
        self.listen(engine, "before_cursor_execute", self._executed)

    def listen(self, target: Any, name: str, listener: Callable[..., Any], **options: Any) -> None:
        """Listen to an event until the end of the run."""
        event.listen(target, name, listener, **options)
        self._listening.append((target, name, listener))

    def close(self) -> None:
        """Stop listening."""
        while self._listening:
            event.remove(*self._listening.pop())

    def _executed(self, conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        # A SAVEPOINT is sent when a connection is first used inside it, and a hit uses none.
        if not self._quiet and "SAVEPOINT sa_savepoint" not in statement:
            self.journal.append(("sql", plain(statement), typed(parameters)))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Record nothing that happens by itself."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    def record_events(self, *classes: type) -> None:
        """Record the events of these classes and of all sessions."""

        def recorder(name: str) -> Callable[..., None]:
            def record(*arguments: Any) -> None:
                if not self._quiet:
                    described = [typed(a) if hasattr(a, "_sa_instance_state") else type(a).__name__ for a in arguments]
                    described = [each for each in described if each not in ("ORMCompileState", "QueryContext")]
                    self.journal.append(("event", name, [each for each in described if each != "NoneType"]))

            record.__name__ = name
            return record

        for class_ in classes:
            for name in INSTANCE_EVENTS:
                self.listen(class_, name, recorder(name))
            for name in MAPPER_EVENTS:
                self.listen(class_, name, _mapper_listener(recorder(name)))
        for name in SESSION_EVENTS:
            self.listen(Session, name, recorder(name))

    # what a scenario looks at

    def see(self, label: str, value: object) -> None:
        """Put a value into the journal."""
        self.journal.append(("see", label, typed(value)))

    def look(self, label: str, instance: Any) -> None:
        """Put a portrait of an instance into the journal."""
        self.journal.append(("look", label, portrait(instance)))

    def attempt(self, label: str, function: Callable[[], object]) -> None:
        """Put what a call gives or raises into the journal."""
        self.journal.append(("attempt", label, outcome(function)))

    # gets

    def warm(self, model: Any, *idents: Any, session: Callable[[], Session] | None = None, **options: Any) -> None:
        """Get rows in a session of their own, so that the next get can be a hit."""
        with self.quiet():
            for ident in idents:
                with session() if session else Session(self.engine) as warming:
                    warming.get(model, ident, **options)

    @contextmanager
    def expecting(self, kind: str, selects: int = 1) -> Iterator[None]:
        """Say what the one get of the block must be.

        A "hit", a "miss", a "bypass" (by rule, for the call or the session), or "refused" (the model is never cached,
        so nothing is counted).
        """
        before = SQLModelCache.stats()
        try:
            yield
        finally:
            if kind == "hit" and not self.cached:
                self._drop_selects(selects)
        if not self.cached:
            return
        after = SQLModelCache.stats()
        got = {
            name
            for name, counter in (("hit", "hits"), ("miss", "misses"), ("bypass", "bypasses"))
            if getattr(after, counter) > getattr(before, counter)
        }
        if got != ({kind} if kind != "refused" else set()):
            raise Different(f"the get must be a {kind}, and was {sorted(got) or 'nothing that is counted'}")

    def _drop_selects(self, selects: int) -> None:
        at = len(self.journal)
        while selects:
            at -= 1
            if at < 0:
                raise Different("a hit must stand for a SELECT, and there was none")
            if self.journal[at][0] == "sql" and self.journal[at][1].startswith("SELECT"):
                del self.journal[at]
                selects -= 1

    def get(self, session: Any, model: Any, ident: Any, kind: str = "hit", **options: Any) -> Any:
        """Return `session.get(...)`, which must be of this kind."""
        with self.expecting(kind):
            return session.get(model, ident, **options)


def _mapper_listener(record: Callable[..., None]) -> Callable[..., None]:
    return lambda mapper, connection, target: record(target)


class Databases:
    """Two databases, each made anew from a template for each run; their engines stay, with what they have compiled."""

    def __init__(self, folder: Path, template: Path) -> None:
        self._folder = folder
        self._template = template
        self._engines: dict[str, Engine] = {}

    def engine(self, name: str, **options: Any) -> Engine:
        """Return an engine on a fresh copy of the template, of this name."""
        path = self._folder / f"{name}.db"
        key = f"{name} {options}"
        if key not in self._engines:
            self._engines[key] = faster(create_engine(f"sqlite:///{path}", **options))
        shutil.copyfile(self._template, path)
        return self._engines[key]


def template(path: Path, metadata: MetaData, seed: Callable[[Session], None]) -> Path:
    """Return a SQLite file with the tables of `metadata` and the rows of `seed`."""
    SQLModelCache.reset()
    engine = create_engine(f"sqlite:///{path}")
    faster(engine)
    metadata.create_all(engine)
    with Session(engine) as session:
        seed(session)
        session.commit()
    engine.dispose()
    return path


def faster(engine: Engine) -> Engine:
    """Let SQLite not wait for the disk, nor for locks."""

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA busy_timeout=0")

    return engine


def run(scenario: Scenario, engine: Engine, *, cached: bool) -> list[Any]:
    """Run a scenario once and return its journal; what it raises is in the journal, too."""
    world = World(engine, cached)
    try:
        scenario(world)
    except Different:
        raise
    except Exception as error:
        world.journal.append(("raised", f"{type(error).__module__}.{type(error).__qualname__}", plain(str(error))))
    finally:
        world.close()
        engine.dispose()
    return world.journal


def compare(databases: Databases, *scenarios: Scenario, raises: bool = False, **engine: Any) -> list[list[Any]]:
    """Run scenarios on SQLite without and with the library; raise Different unless the journals are the same.

    Returns the journals. An error that leaves a scenario is a mistake of the scenario unless it `raises`.
    """
    SQLModelCache.reset()
    truths = [run(scenario, databases.engine("truth", **engine), cached=False) for scenario in scenarios]
    transport = MemoryTransport()
    SQLModelCache.configure(transport)
    different = []
    try:
        for scenario, truth in zip(scenarios, truths, strict=True):
            transport.clear()
            try:
                agree(truth, run(scenario, databases.engine("cached", **engine), cached=True), raises=raises)
            except Different as why:
                different.append(f"{getattr(scenario, '__name__', scenario)}: {why}")
    finally:
        SQLModelCache.reset()
    if different:
        raise Different("\n".join(different))
    return truths


def agree(truth: list[Any], cached: list[Any], raises: bool = False) -> list[Any]:
    """Return the journal if both are the same, else say where they part. A scenario raises only if it `raises`."""
    truth, cached = _in_order(truth), _in_order(cached)
    for at, (ours, theirs) in enumerate(zip(truth, cached, strict=False)):
        if ours != theirs:
            raise Different(f"entry {at}\n{_difference(ours, theirs)}\nafter {_tail(truth[:at])}")
    if len(truth) != len(cached):
        shorter = min(len(truth), len(cached))
        who, more = ("without", truth) if len(truth) > len(cached) else ("with", cached)
        raise Different(f"only {who} the library: {more[shorter]!r}\nafter {_tail(truth[:shorter])}")
    if not truth:
        raise Different("the scenario looked at nothing")
    if truth[-1][0] == "raised" and not raises:
        raise Different(f"the scenario itself fails: {truth[-1]!r}")
    return truth


def _in_order(journal: list[Any]) -> list[Any]:
    """Return the journal with events of one name that follow each other sorted: SQLAlchemy fires them over sets."""
    runs = itertools.groupby(journal, key=lambda entry: entry[:2] if entry[0] == "event" else id(entry))
    return [entry for _, run in runs for entry in sorted(run, key=repr)]


def _difference(ours: Any, theirs: Any, where: str = "") -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return "\n".join(_difference(ours[k], theirs[k], f"{where}[{k!r}]") for k in ours if ours[k] != theirs[k])
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and (ours[:1], len(ours)) == (theirs[:1], len(theirs)):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return "\n".join(_difference(a, b, f"{where}[{i}]") for i, (a, b) in pairs if a != b)
    return f"{where}\n  without: {repr(ours)[:600]}\n  with:    {repr(theirs)[:600]}"


def _tail(journal: list[Any]) -> str:
    return " / ".join(repr(entry)[:90] for entry in journal[-2:])
