"""`sqlmodel-cache stats`: what Redis can tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ._app import app, out, print_json, size
from ._sampling import Extent, sample
from ._servers import Node, Servers, info
from ._target import AsJson, Target, with_target

ELSEWHERE = (
    "Hits, misses and invalidations of the cache are counted in each process of the application: SQLModelCache.stats()"
)

Sample = Annotated[int, typer.Option(min=1, help="look at no more than so many keys")]


@dataclass(slots=True)
class TableStats:
    """The keys of one table in one database, extrapolated from those that were seen."""

    namespace: str
    table: str
    rows: int = 0  # rows, absences and fences
    unique_keys: int = 0  # what leads from a unique key to a row
    shards: int = 0
    bytes: int | None = 0  # of memory, all of it; None where that may not be asked for


@app.command()
@with_target
def stats(target: Target, sample: Sample = 100_000, as_json: AsJson = False) -> None:
    """Show the cached tables and their memory, and the server's own hit rate and evictions."""
    settings = target.settings
    servers = Servers(settings.transport, target.options.timeout)
    try:
        about = [_server(node) for node in servers.nodes]
        extent = Extent()
        tables = _tables(servers, settings.key_prefix, sample, extent)
    finally:
        servers.close()
    if as_json:
        print_json(
            {
                "servers": about,
                "tables": [asdict(each) for each in tables],
                "sample": {"examined": extent.examined, "keys": extent.keys, "complete": extent.complete},
                "note": ELSEWHERE,
            }
        )
        return
    for server in about:
        _print_server(server)
    _print_tables(tables, extent)
    out.print(ELSEWHERE, style="dim")


def _tables(servers: Servers, key_prefix: str, limit: int, extent: Extent) -> list[TableStats]:
    found: dict[tuple[str, str], TableStats] = {}
    for portion in sample(servers, key_prefix, limit, extent):
        for name, used in zip(portion.names.values(), portion.bytes, strict=True):
            table = found.setdefault(name[:2], TableStats(*name[:2]))
            if name.pk is None:
                table.shards += 1
            elif name.pk.startswith("/"):
                table.unique_keys += 1
            else:
                table.rows += 1
            table.bytes = None if used is None or table.bytes is None else table.bytes + used
    for table in found.values():
        table.rows = round(table.rows * extent.factor)
        table.unique_keys = round(table.unique_keys * extent.factor)
        table.bytes = None if table.bytes is None else round(table.bytes * extent.factor)
    return sorted(found.values(), key=lambda table: (-(table.bytes or table.rows), table.namespace, table.table))


def _server(node: Node) -> dict[str, Any]:
    server, memory, counts, clients = (info(node.client, each) for each in ("server", "memory", "stats", "clients"))
    hits, misses = counts.get("keyspace_hits"), counts.get("keyspace_misses")
    asked = (hits or 0) + (misses or 0)
    return {
        "server": node.name,
        "version": server.get("valkey_version") or server.get("redis_version"),
        "keyspace_hits": hits,
        "keyspace_misses": misses,
        "hit_rate": round((hits or 0) / asked, 4) if asked else None,
        "used_memory": memory.get("used_memory"),
        "maxmemory": memory.get("maxmemory"),
        "maxmemory_policy": memory.get("maxmemory_policy"),
        "evicted_keys": counts.get("evicted_keys"),
        "expired_keys": counts.get("expired_keys"),
        "commands_per_second": counts.get("instantaneous_ops_per_sec"),
        "connected_clients": clients.get("connected_clients"),
    }


def _print_server(server: dict[str, Any]) -> None:
    if server["used_memory"] is None:
        out.print(f"{server['server']}: the user may not ask for INFO", markup=False)
        return
    bound = size(server["maxmemory"]) if server["maxmemory"] else "no bound"
    rate = "none yet" if server["hit_rate"] is None else f"{server['hit_rate']:.1%}"
    out.print(
        f"{server['server']} (version {server['version']})\n"
        f"  memory     {size(server['used_memory'])} of {bound}, {server['maxmemory_policy']}\n"
        f"  hit rate   {rate} of all keys that anybody has read since it started\n"
        f"  evicted    {server['evicted_keys']} keys; expired {server['expired_keys']}\n"
        f"  load       {server['commands_per_second']} commands a second, {server['connected_clients']} clients",
        markup=False,
    )


def _print_tables(tables: list[TableStats], extent: Extent) -> None:
    shown = Table("table", "database", "rows", "unique keys", "memory", box=None, pad_edge=False)
    for column in shown.columns[2:]:
        column.justify = "right"
    about = "" if extent.complete else "~"
    for each in tables:
        counts = (f"{about}{each.rows}", f"{about}{each.unique_keys}", f"{about}{size(each.bytes)}")
        shown.add_row(Text(each.table), Text(each.namespace), *counts)
    out.print(
        shown if tables else "no key of the library is in it: are the key prefix and the database the right ones?"
    )
    if not extent.complete:
        out.print(f"estimated from {extent.examined} of {extent.keys} keys; --sample looks at more", style="dim")
