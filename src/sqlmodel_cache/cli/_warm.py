"""`sqlmodel-cache warm`: fills the cache from the database, batch by batch, as any reader would."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine, and_, func, or_, select, text
from sqlalchemy.orm import Session

from .._entities import Entities
from .._shapes import Entity
from ..configure import SQLModelCache
from ._app import CommandError, ExitCode, app, err, out, print_json
from ._target import AsJson, Database, Model, Target, parts, with_target, without_password


@dataclass(slots=True)
class Warmed:
    """What a run has done."""

    model: str
    rows: int = 0  # that were read
    stored: int = 0
    cached: int = 0  # that were in the cache already
    passed_over: int = 0  # a writer was there first, or the row was deleted meanwhile: nothing is wrong
    not_stored: int = 0  # rows that the cache cannot hold
    errors: int = 0  # rows for which Redis did not answer
    last: list[str] | None = None  # the primary key of the last row
    done: bool = False  # whether no row is left
    seconds: float = 0.0
    rows_per_second: float = 0.0


@dataclass(slots=True)
class Place:
    """Where to begin: behind a primary key, after so many rows."""

    last: list[str] | None = None
    rows: int = 0


@app.command()
@with_target
def warm(
    target: Target,
    model: Model,
    database: Database = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="a condition on the table's columns")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="rows in all, those of an interrupted run included")] = None,
    batch: Annotated[int, typer.Option(min=1, max=5_000, help="rows in one SELECT")] = 500,
    resume: Annotated[Path | None, typer.Option(metavar="FILE", help="keep there how far it is, and go on")] = None,
    after: Annotated[list[str] | None, typer.Option(metavar="PK", help="begin behind it; one for each column")] = None,
    count: Annotated[bool, typer.Option(help="count the rows first, for the time that is left")] = True,
    as_json: AsJson = False,
) -> None:
    """Fill the cache with the rows of a model. Ctrl-C stops behind the batch under way, and says how to go on."""
    class_ = target.load(model)
    if target.configure().hash_keys == "rollout":
        raise CommandError('hash_keys="rollout" reads the database and stores nothing: warm when it is over')
    entity = _entity(class_, model)
    state = (
        None
        if resume is None
        else State(resume, {"model": model, "where": where, "database": without_password(database)})
    )
    place = state.read() if state is not None else Place()
    if after:
        if state is not None and place.last is not None:
            raise CommandError("--after: the file of --resume says where to go on; give one of them")
        place.last = after
    run = Run(entity, model, where, batch, limit, place, state, counts=count and not as_json)
    with stopping() as stop:
        done = target.on(database, lambda engine: run.on(engine, stop))
    if as_json:
        print_json(asdict(done))
    else:
        _print(done)
    _end(done, resume, stop.asked, class_, limit)


def _entity(class_: type, model: str) -> Entity:
    entities = Entities()
    entity = entities.get(class_)
    explained = SQLModelCache.explain(class_)
    if entity is None or not explained.cached:
        raise CommandError(f"MODEL={model}: it is not cached: {explained.reason}")
    return entity


class Stop:
    """Whether somebody has asked to stop."""

    asked = False


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a wish, and leave the second one as it is."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class State:
    """The file of `--resume`: written whole after every batch, removed when no row is left."""

    path: Path
    of: dict[str, Any]  # what it must be about

    def read(self) -> Place:
        """Return where to go on.

        Raises:
            CommandError: it is not such a file, or about other rows.
        """
        try:
            found = json.loads(self.path.read_text())
            place = Place([str(each) for each in found["last"]], int(found["rows"]))
            about = {name: found[name] for name in self.of}
        except FileNotFoundError:
            return Place()
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CommandError(f"--resume={self.path}: not a file of this command: {type(error).__name__}") from None
        if about != self.of:
            raise CommandError(f"--resume={self.path}: it is about {about}: give another file, or delete it")
        return place

    def write(self, place: Place) -> None:
        """Keep where to go on."""
        fresh = self.path.with_name(f"{self.path.name}.new")
        try:
            fresh.write_text(json.dumps(self.of | asdict(place)))
            fresh.replace(self.path)
        except OSError as error:
            raise CommandError(f"--resume={self.path}: {error.strerror}") from None

    def remove(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)


@dataclass(slots=True)
class Run:
    """One run over the rows, in the order of their primary key."""

    entity: Entity
    model: str
    where: str | None
    batch: int
    limit: int | None
    place: Place
    state: State | None
    counts: bool
    done: Warmed = field(init=False)

    def on(self, engine: Engine, stop: Stop) -> Warmed:
        """Warm what is left until no row is, somebody asks to stop, or Redis does not answer."""
        self.done = Warmed(self.model, last=self.place.last)
        begin = self._begin()
        began = time.monotonic()
        with self._progress() as progress:
            task = progress.add_task("", total=self._total(engine, begin), completed=self.place.rows, rate="")
            while not stop.asked and not self.done.done and not self.done.errors:
                begin = self._step(engine, begin)
                self.done.seconds = time.monotonic() - began
                self.done.rows_per_second = round(self.done.rows / max(self.done.seconds, 1e-9), 1)
                progress.update(task, completed=self.place.rows, rate=f"{self.done.rows_per_second:,.0f} rows/s")
        self.done.seconds = round(self.done.seconds, 3)
        return self.done

    def _begin(self) -> tuple[Any, ...] | None:
        if self.place.last is None:
            return None
        names = self.entity.pk_attributes
        return parts("--after", self.place.last, self.entity.table.pk_types, names)

    def _step(self, engine: Engine, begin: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        """Warm one batch; return its last primary key."""
        size = self.batch if self.limit is None else min(self.batch, self.limit - self.place.rows)
        # In a session of its own: in one transaction with the rows it would be the older snapshot that may not fill.
        pks: list[tuple[Any, ...]] = []
        if size > 0:
            with Session(engine) as session:
                found = session.execute(self._keys(begin).limit(size))
                pks = [tuple(row) for row in found]
        if pks:
            self._fill(engine, pks)
            begin = pks[-1]
        self.done.done = len(pks) < size or size <= 0 or self.place.rows == self.limit
        if self.state is not None and self.done.done and not self.done.errors:
            self.state.remove()
        return begin

    def _fill(self, engine: Engine, pks: Sequence[tuple[Any, ...]]) -> None:
        idents = [pk[0] if len(pk) == 1 else pk for pk in pks]
        before = SQLModelCache.stats()
        with Session(engine) as session:
            rows = SQLModelCache.get_many(session, self.entity.class_, idents)
        after = SQLModelCache.stats()
        done = self.done
        gone = sum(row is None for row in rows) if self.entity.missing_ttl_ms is None else 0
        stored, cached, errors = after.fills - before.fills, after.hits - before.hits, after.errors - before.errors
        late = sum(getattr(after, name) - getattr(before, name) for name in ("refused", "fenced", "shared"))
        done.rows += len(pks)
        done.stored += stored
        done.cached += cached
        done.errors += errors
        done.passed_over += late + gone
        done.not_stored += max(0, len(pks) - stored - cached - errors - late - gone)
        if errors:  # the batch is to be warmed again
            return
        done.last = self.place.last = [_text(part) for part in pks[-1]]
        self.place.rows += len(pks)
        if self.state is not None:
            self.state.write(self.place)

    def _keys(self, begin: tuple[Any, ...] | None) -> Any:
        columns = [getattr(self.entity.class_, name) for name in self.entity.pk_attributes]
        query: Any = select(*columns).order_by(*columns)
        if begin is not None:
            query = query.where(_behind(columns, begin))
        if self.where is not None:
            # A colon is a parameter to text(), but for a cast's; here there are none.
            query = query.where(text("(" + re.sub(r"(?<!:):(?!:)", r"\:", self.where) + ")"))
        return query

    def _total(self, engine: Engine, begin: tuple[Any, ...] | None) -> int | None:
        if not self.counts:
            return None
        query = self._keys(begin).order_by(None)
        with Session(engine) as session:
            left = session.execute(select(func.count()).select_from(query.subquery())).scalar_one()
        total = int(left) + self.place.rows
        return total if self.limit is None else min(total, self.limit)

    def _progress(self) -> Progress:
        rate = TextColumn("{task.fields[rate]}")
        return Progress(
            BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), console=err, disable=not err.is_terminal
        )


def _behind(columns: Sequence[Any], begin: Sequence[Any]) -> Any:
    """Return the condition that a row's key is behind another one; not every database compares tuples."""
    ors = []
    for at, column in enumerate(columns):
        equal = [columns[before] == begin[before] for before in range(at)]
        ors.append(and_(*equal, column > begin[at]))
    return or_(*ors)


def _text(part: Any) -> str:
    return part.isoformat() if hasattr(part, "isoformat") else str(part)


def _print(done: Warmed) -> None:
    rest = [
        (done.passed_over, "were being written or deleted"),
        (done.not_stored, "cannot be stored"),
        (done.errors, "met an error of Redis"),
    ]
    told = "".join(f", {number} {what}" for number, what in rest if number)
    out.print(
        f"{done.rows} rows in {done.seconds:.1f} s, {done.rows_per_second:,.0f} a second: {done.stored} stored, "
        f"{done.cached} were cached already{told}",
        markup=False,
    )


def _end(done: Warmed, resume: Path | None, asked: bool, class_: type, limit: int | None) -> None:
    """End with the exit code, and say on stderr what is to be done."""
    where = "from the beginning"
    if resume is not None and done.last is not None:
        where = f"with --resume {resume}"
    elif done.last is not None:
        where = "with " + " ".join(f"--after {_quoted(part)}" for part in done.last)
    if done.errors:
        err.print(f"Redis does not answer; when it does, go on {where}", markup=False)
        raise typer.Exit(ExitCode.UNREACHABLE)
    if not done.done:
        left = "" if limit is None or resume is not None else f" --limit {limit - done.rows}"
        err.print(f"stopped; go on {where}{left}", markup=False)
        raise typer.Exit(ExitCode.INTERRUPTED if asked else ExitCode.FINDING)
    if done.not_stored:
        err.print(f"{done.not_stored} rows were not stored: {_reasons(class_)}", markup=False)
        raise typer.Exit(ExitCode.FINDING)


def _reasons(class_: type) -> str:
    """Return what has kept rows from being stored: what the log says of values, else the counters' own words."""
    told = list(SQLModelCache.explain(class_).not_stored.values())
    if not told:
        for counts in SQLModelCache.stats().models.values():
            told += [f"bypass: {reason}" for reason, count in counts.bypass_reasons.items() if count]
            told += [f"refused: {reason}" for reason, count in counts.refused_reasons.items() if count]
    return "; ".join(told)


def _quoted(part: str) -> str:
    return part if re.fullmatch(r"[\w.:-]+", part) and os.sep not in part else "'" + part.replace("'", "'\\''") + "'"
