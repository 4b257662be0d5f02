"""`sqlmodel-cache top`: the largest rows, and those that are read most."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ._app import app, out, print_json, size
from ._sampling import Extent, sample
from ._servers import Servers, info, replies
from ._stats import Sample
from ._target import AsJson, Target, with_target


@dataclass(slots=True)
class Row:
    """A row's key. Of `frequency` and `idle_seconds` the server tells at most one, by its eviction policy."""

    key: str
    namespace: str
    table: str
    pk: str
    bytes: int | None  # of memory
    frequency: int | None = None  # OBJECT FREQ: logarithmic, it decays
    idle_seconds: int | None = None  # OBJECT IDLETIME: since it was last read or written
    ttl_seconds: float | None = None


@dataclass(slots=True)
class Look:
    """What one look at the keys has found."""

    largest: list[Row]
    hottest: list[Row]
    by: str | None  # what tells the hottest: "frequency", "idle", or None where neither may be asked for
    extent: Extent


@app.command()
@with_target
def top(
    target: Target,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="rows of each kind")] = 10,
    sample: Sample = 20_000,
    interval: Annotated[float, typer.Option(min=0.1, help="seconds between two looks")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="look once; so it is where stdout is no terminal")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the largest rows in the cache, and the hottest: by frequency under an LFU policy, else by idle time."""
    settings = target.settings
    servers = Servers(settings.transport, target.options.timeout)
    try:
        found = look(servers, settings.key_prefix, number, sample)
        if as_json:
            told: dict[str, Any] = asdict(found)
            told["sample"] = told.pop("extent") | {"complete": found.extent.complete}
            print_json(told)
        elif once or not out.is_terminal:
            out.print(_shown(found))
        else:
            with Live(_shown(found), console=out, auto_refresh=False) as live:
                while True:
                    time.sleep(interval)
                    live.update(_shown(look(servers, settings.key_prefix, number, sample)), refresh=True)
    finally:
        servers.close()


def look(servers: Servers, key_prefix: str, number: int, limit: int) -> Look:
    """Return the largest and the hottest rows among so many keys."""
    frequent = "lfu" in str(info(servers.nodes[0].client, "memory").get("maxmemory_policy", ""))
    extent = Extent()
    largest: list[Row] = []
    hottest: list[Row] = []
    clients: dict[str, Any] = {}
    for portion in sample(servers, key_prefix, limit, extent):
        rows = list(_rows(portion.client, portion.names, portion.bytes, frequent))
        clients |= {row.key: portion.client for row in rows}
        largest = heapq.nlargest(number, [*largest, *rows], key=lambda row: row.bytes or 0)
        hottest = heapq.nsmallest(number, [*hottest, *filter(_is_told, rows)], key=_coldness)
        kept = {row.key for row in (*largest, *hottest)}
        clients = {key: client for key, client in clients.items() if key in kept}
    for row in {row.key: row for row in (*largest, *hottest)}.values():
        [ttl] = replies(clients[row.key], [("PTTL", row.key.encode())])
        row.ttl_seconds = ttl / 1000 if isinstance(ttl, int) and ttl >= 0 else None
    return Look(largest, hottest, None if not hottest else "frequency" if frequent else "idle", extent)


def _rows(client: Any, names: dict[bytes, Any], sizes: list[int | None], frequent: bool) -> Iterator[Row]:
    told = replies(client, (("OBJECT", "FREQ" if frequent else "IDLETIME", key) for key in names))
    for (key, name), used, heat in zip(names.items(), sizes, told, strict=True):
        if name.pk is not None:
            row = Row(key.decode(), name.namespace, name.table, name.pk, used)
            if isinstance(heat, int):
                row.frequency, row.idle_seconds = (heat, None) if frequent else (None, heat)
            yield row


def _is_told(row: Row) -> bool:
    return row.frequency is not None or row.idle_seconds is not None


def _coldness(row: Row) -> int:
    return -row.frequency if row.frequency is not None else row.idle_seconds or 0


def _shown(found: Look) -> Group:
    heat = {"frequency": "frequency", "idle": "idle", None: ""}[found.by]
    how = {
        "frequency": "read most, by frequency",
        "idle": "used last: only an LFU eviction policy counts reads",
        None: "used most: not told to this user",
    }[found.by]
    extent = found.extent
    seen = f"of {extent.keys} keys" if extent.complete else f"of {extent.examined} of {extent.keys} keys"
    return Group(_table(f"largest, {seen}", found.largest, heat), "", _table(how, found.hottest, heat))


def _table(title: str, rows: list[Row], heat: str) -> Table:
    shown = Table("row", "database", "memory", heat, "ttl", title=title, title_justify="left", box=None, pad_edge=False)
    for column in shown.columns[2:]:
        column.justify = "right"
    for row in rows:
        hot = str(row.frequency) if row.frequency is not None else f"{row.idle_seconds} s"
        ttl = "" if row.ttl_seconds is None else f"{row.ttl_seconds:.0f} s"
        shown.add_row(Text(f"{row.table} {row.pk}"), Text(row.namespace), size(row.bytes), hot if heat else "", ttl)
    return shown
