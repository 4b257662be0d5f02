"""`sqlmodel-cache inspect`: what is in the cache for one row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from .. import _sqlalchemy
from .._admission import table_name
from .._effects import ABSENT, Entry, Lookup
from .._entities import Entities
from .._namespace import Naming
from .._sealing import OVERHEAD, Gate
from .._shapes import Entity
from .._writeset import TableRef
from ..config import Settings
from ..errors import CodecError
from ..transport import _layout
from ._app import CommandError, ExitCode, app, out, print_json, size
from ._servers import Servers, info, replies
from ._target import AsJson, Database, Model, Target, parts, with_target


@dataclass(slots=True)
class Shape:
    """One payload of a row: releases, drivers and the classes of a family have one each."""

    fingerprint: str
    bytes: int
    kind: str  # "row" or "absent" of this model and driver, "class" of another, "encrypted", "other", "undecodable"
    model: str | None = None  # whose it is, where that is known


@dataclass(slots=True)
class Inspected:
    """What is in the cache for one row. `hit` says whether a get by this model and driver would be one now."""

    model: str
    pk: str
    key: str
    table_key: str
    hit: bool
    state: str  # "value", "absent", "outdated", "fenced", "leased", "nothing"
    reason: str  # the same in words
    ttl_seconds: float | None = None
    bytes: int = 0
    memory_bytes: int | None = None
    shapes: list[Shape] = field(default_factory=list)
    columns: dict[str, Any] | None = None  # attributes; None where there is nothing to decode


@app.command()
@with_target
def inspect(
    target: Target,
    model: Model,
    pk: Annotated[list[str], typer.Argument(metavar="PK...", help="one for each column of the primary key")],
    database: Database = None,
    columns: Annotated[bool, typer.Option(help="show the values of the columns")] = True,
    as_json: AsJson = False,
) -> None:
    """Show what is in the cache for one row; exit code 1 unless a get would be a hit."""
    class_ = target.load(model)
    settings = target.configure()
    servers = Servers(settings.transport, target.options.timeout)
    try:
        found = target.on(database, lambda engine: Look(servers, settings, engine, class_, model).at(pk))
    finally:
        servers.close()
    for each in found:
        each.columns = each.columns if columns else None
    if as_json:
        print_json([asdict(each) for each in found] if len(found) > 1 else asdict(found[0]))
    else:
        for each in found:
            _print(each)
    raise typer.Exit(ExitCode.OK if any(each.hit for each in found) else ExitCode.FINDING)


class Look:
    """Looks at rows of a model as the application would name and decode them."""

    def __init__(self, servers: Servers, settings: Settings, engine: Engine, class_: type, model: str) -> None:
        self._servers = servers
        self._entities = Entities()
        self._gate = Gate(settings.max_payload_bytes, settings.encryption_keys)
        self._naming = Naming(settings)
        self._engine = engine
        self._model = model
        entity = self._entities.get(class_)
        if entity is None:
            why = self._entities.refusal(class_) or "it has no __cache_config__"
            raise CommandError(f"MODEL={model}: it is not cached: {why}")
        self._entity = entity

    def at(self, texts: list[str]) -> list[Inspected]:
        """Return what is under each name that the row may have: one, but for `hash_keys="rollout"`."""
        entity = self._entity
        pk = parts("PK", texts, entity.table.pk_types, entity.pk_attributes)
        text = entity.table.pk_text(pk)
        if text is None:
            raise CommandError(f"PK={' '.join(texts)}: it is beyond what an integer column holds")
        with Session(self._engine) as session:
            try:
                namespace = self._naming.namespace(session, self._engine)
            except LookupError as why:
                raise CommandError(f"{why}: give --namespace") from None
        translate = self._engine.get_execution_options().get("schema_translate_map")
        ref = TableRef(namespace, table_name(entity, translate, self._engine))
        return [self._look(entry, " ".join(texts)) for entry in self._naming.entries(ref, text)]

    def _look(self, entry: Entry, pk: str) -> Inspected:
        client = self._servers.of(entry.table)
        row, table = (key.encode("utf-8", "surrogatepass") for key in entry)
        [both, ttl, time] = replies(client, [("MGET", row, table), ("PTTL", row), ("TIME",)])
        for reply in (both, ttl, time):
            if isinstance(reply, Exception):
                raise reply
        [memory] = replies(client, [("MEMORY", "USAGE", row)])
        raw, shard = both[0], _layout.shard(both[1])
        state, reason = _state(raw, shard, float(time[0]) * 1000, _server_name(client))
        found = Inspected(self._model, pk, entry.row, entry.table, False, state, reason)
        found.ttl_seconds = ttl / 1000 if ttl >= 0 else None
        found.bytes = len(raw or b"")
        found.memory_bytes = memory if isinstance(memory, int) else None
        held = _layout.row(raw)
        if isinstance(held, _layout.Value):
            self._decode(found, entry, held)
        return found

    def _decode(self, found: Inspected, entry: Entry, value: _layout.Value) -> None:
        known = self._known(entry)
        for mark, payload in value.payloads.items():
            model, entity = known.get(mark, (None, None))
            shape = Shape(mark.hex(), len(payload), "other", model)
            found.shapes.append(shape)
            if entity is None:
                shape.kind = "encrypted" if _looks_sealed(payload) else "other"
            elif entity is not self._entity:
                shape.kind = "class"
            else:
                shape.kind, found.columns = self._opened(entry, payload)
                found.hit = found.state == "value" and shape.kind in ("row", "absent")
                if shape.kind == "absent" and found.hit:
                    found.state, found.reason = "absent", "a get is told that there is no such row"
        if found.state == "value" and not found.hit:
            found.reason = "a get would not be a hit: it holds no row of this model and driver that can be read"

    def _opened(self, entry: Entry, payload: bytes) -> tuple[str, dict[str, Any] | None]:
        rows = self._entity.rows(self._engine.dialect)
        opened = self._gate.take(Lookup(entry, rows.fingerprint), payload)
        if opened == ABSENT:
            return "absent", None
        try:
            _, values = rows.decode(opened)
        except CodecError:
            return "undecodable", None
        return "row", values

    def _known(self, entry: Entry) -> dict[bytes, tuple[str, Entity]]:
        """Return whose payloads are recognised, by the fingerprint under which they are stored."""
        found = {}
        for mapper in _sqlalchemy.mappers():
            entity = self._entities.get(mapper.class_)
            if entity is not None and entity.table.family == self._entity.table.family:
                rows = entity.rows(self._engine.dialect)
                put: Any = self._gate.put(Lookup(entry, rows.fingerprint))
                name = f"{mapper.class_.__module__}:{mapper.class_.__qualname__}"
                if put.fingerprint not in found or entity is self._entity:
                    found[put.fingerprint] = name, entity
        return found


def _server_name(client: Any) -> bytes:
    """Return what a shard calls this server in this run of it; empty where it does not tell."""
    name = info(client, "replication").get("master_replid", "")
    return str(name)[:16].encode()


def _state(raw: bytes | None, shard: _layout.Shard | None, now_ms: float, server: bytes) -> tuple[str, str]:
    if raw is None:
        return "nothing", "the key is not there: never stored, expired, evicted or deleted"
    held = _layout.row(raw)
    if held is None:
        return "nothing", "the key holds nothing of the library's: a get replaces it"
    pending = [each for each in (shard.deadlines if shard else ()) if each > now_ms]
    if isinstance(held, _layout.Fence):
        pending += [each for each in held.deadlines if each > now_ms]
    if pending:
        left = (max(pending) - now_ms) / 1000
        return "fenced", f"a commit is in flight, or its writer died: gets read the database, at most {left:.0f} s more"
    if isinstance(held, _layout.Fence):
        waits = held.elected_ms is not None and held.elected_ms > now_ms
        return "leased", "a reader is about to fill it" if waits else "it was invalidated: the next get may fill it"
    if shard is None or shard.version != held.table_version:
        return "outdated", "its table was invalidated since it was stored: a get reads the database"
    if server and shard.server != server:
        return (
            "outdated",
            "it was stored before this server was started, restored or promoted: a get reads the database",
        )
    return "value", "a get is a hit"


def _looks_sealed(payload: bytes) -> bool:
    return len(payload) >= OVERHEAD and payload[:1] == b"\x01"


_KINDS = {
    "row": "this model and driver",
    "absent": 'this model and driver: "no such row"',
    "class": "another class of the family",
    "encrypted": "encrypted with a key that is not given: SQLMODEL_CACHE_ENCRYPTION_KEY or --app gives it",
    "other": "another release, driver or class",
    "undecodable": "this model and driver, and does not decode: a get replaces it",
}


def _print(found: Inspected) -> None:
    ttl = "" if found.ttl_seconds is None else f"{found.ttl_seconds:.1f} s"
    memory = "" if found.memory_bytes is None else f", {size(found.memory_bytes)} of memory"
    lines = [f"{found.model} {found.pk}", f"  key      {found.key}", f"  state    {found.state}: {found.reason}"]
    if found.bytes:
        lines += [f"  ttl      {ttl}", f"  size     {size(found.bytes)}{memory}"]
    for shape in found.shapes:
        whose = f" ({shape.model})" if shape.kind == "class" else ""
        lines += [f"  shape    {shape.fingerprint} {size(shape.bytes)}, {_KINDS[shape.kind]}{whose}"]
    for name, value in (found.columns or {}).items():
        lines += [f"  column   {name} = {value!r}"]
    out.print("\n".join(lines), markup=False)
