"""The dashboard over HTTP: what it shows, to whom, and what it may do. In a browser it is looked at in `browser/`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI
from models import Gadget, Hero, Sample
from sqlalchemy import Engine, event, text, update
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import ConfigurationError, MemoryTransport, RedisSyncTransport, SQLModelCache
from sqlmodel_cache._effects import Keys
from sqlmodel_cache.contrib import dashboard
from sqlmodel_cache.contrib.dashboard import cache_dashboard
from sqlmodel_cache.contrib.dashboard._history import MODELS, POINTS, STEP, History
from sqlmodel_cache.metrics import BOUNDS, Histogram, ModelStats, Stats

ACTION = {
    "x-sqlmodel-cache": "invalidate",
    "content-type": "application/json",
    "origin": "http://test",
    "host": "test",
}


@contextlib.asynccontextmanager
async def browsing(app: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an ASGI application."""
    transport = httpx.ASGITransport(app, **options)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def get(path: str, **options: Any) -> Any:
    """Return the JSON that a new dashboard gives."""
    async with browsing(cache_dashboard(**options)) as client:
        answer = await client.get(path)
        assert answer.headers["content-type"] == "application/json"
        return answer.raise_for_status().json()


async def post(wanted: Any, *, headers: dict[str, str] = ACTION, **options: Any) -> httpx.Response:
    """Return the answer to an action."""
    async with browsing(cache_dashboard(**options)) as client:
        content = wanted if isinstance(wanted, bytes) else json.dumps(wanted).encode()
        return await client.post("/invalidate", content=content, headers=headers)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    """An SQLite file with empty tables."""
    made = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture
def heroes(database: Engine) -> Engine:
    """A database with five heroes, which a MemoryTransport serves."""
    SQLModelCache.configure()
    with Session(database) as session:
        session.add_all(Hero(id=pk, name=f"Hero {pk}") for pk in range(1, 6))
        session.commit()
    return database


def read(database: Engine, *pks: int) -> None:
    """Get heroes, each in a session of its own."""
    for pk in pks:
        with Session(database) as session:
            session.get(Hero, pk)


# The page


async def test_page_runs_what_is_in_it_and_nothing_else() -> None:
    """Its policy names its own script and style by their hashes, and lets it ask nobody but its own server."""
    async with browsing(cache_dashboard()) as client:
        answer = await client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        [source] = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert (policy["frame-ancestors"], policy["base-uri"], policy["form-action"]) == ("'none'",) * 3
    assert policy["require-trusted-types-for"] == "'script'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    others = set(re.findall(r"https?://[^\s\"'`]*", answer.text)) - {"http://www.w3.org/2000/svg"}
    assert others == set()
    assert re.findall(r"\b(?:src|href|srcset|style|on\w+)=", answer.text.partition("<script>")[0]) == []
    assert "innerHTML" not in answer.text


async def test_page_escapes_its_title() -> None:
    """It is the application's, and may be a user's."""
    async with browsing(cache_dashboard(title="</title><script>alert(1)</script>{{js}}")) as client:
        answer = await client.get("/")
    assert answer.text.count("<script>") == 1
    assert answer.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


@pytest.mark.parametrize("argument", ["actions", "title"])
def test_arguments_of_other_types_are_refused(argument: str) -> None:
    """`actions="no"` must not be true."""
    wrong: Any = {argument: 1}
    with pytest.raises(ConfigurationError, match=argument):
        cache_dashboard(**wrong)


@pytest.mark.parametrize(
    ("root_path", "prefix"), [("", ""), ("", "/cache"), ("/api", "/cache"), ("/api", "/api/cache")], ids=str
)
async def test_page_works_below_any_prefix(root_path: str, prefix: str) -> None:
    """Mounted, behind a proxy that takes a prefix away, and behind one that leaves it."""
    app: Any = cache_dashboard()
    if prefix:
        app = FastAPI()
        app.mount("/cache", cache_dashboard())
    async with browsing(app, root_path=root_path) as client:
        assert "<title>Cache</title>" in (await client.get(f"{prefix}/")).text
        for path in ("data", "keys"):
            assert (await client.get(f"{prefix}/{path}")).status_code == 200
        assert (await client.get(f"{prefix}/other")).status_code == 404


async def test_address_without_a_slash_is_redirected() -> None:
    """Its relative addresses would be those of the folder above; nothing else can be put into the header."""
    async with browsing(cache_dashboard(), root_path="/a/cache%0d%0ax: y") as client:
        answer = await client.get("/a/cache%250d%250ax:%20y")
    assert (answer.status_code, answer.headers["location"]) == (307, "cache%250d%250ax%3A%20y/")


async def test_other_methods_and_protocols() -> None:
    """HEAD is GET without a body; a websocket is closed; where it runs alone, a server can start and stop it."""
    app = cache_dashboard()
    async with browsing(app) as client:
        head = await client.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 1000
        refused = await client.delete("/")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert (await client.get("/invalidate")).status_code == 405
        assert (await client.options("/")).status_code == 405

    for path in ("/", "/data", "/keys", "/nowhere"):  # without a client, which drops the body itself
        sent: list[Any] = []

        async def keep(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await app({"type": "http", "method": "HEAD", "path": path, "headers": []}, keep, keep)
        assert [message.get("body") for message in sent] == [None, b""]

    async def converse(kind: str, *messages: str) -> list[str]:
        said: list[str] = []
        left = [{"type": message} for message in messages]

        async def receive() -> Any:
            return left.pop(0)

        async def send(message: Any) -> None:
            said.append(message["type"])

        await app({"type": kind}, receive, send)
        return said

    assert await converse("websocket", "websocket.connect") == ["websocket.close"]
    started = await converse("lifespan", "lifespan.startup", "lifespan.shutdown")
    assert started == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# What it shows


async def test_data_without_a_cache() -> None:
    """It says so, before `configure()` and after `reset()`."""
    view = await get("/data")
    assert (view["configured"], view["models"], view["stats"]["hits"]) == (False, [], 0)
    assert await get("/keys") == {"error": "nothing is configured"}


async def test_data_has_what_the_page_reads(heroes: Engine) -> None:
    """The script finds each name that it asks for, in the whole and in its parts."""
    read(heroes, 1, 1)
    cache = SQLModelCache._cache
    assert cache is not None
    keys = Keys(("p:{n/hero:1}:1",), ())
    cache.writer.journal.began(keys)
    data, sample = await get("/data"), await get("/keys")
    cache.writer.journal.ended(keys)
    script = files(dashboard.__name__).joinpath("page.js").read_text()
    assert set(re.findall(r"\bdata\.(\w+)", script)) == set(data)
    assert set(re.findall(r"\bview\.(\w+)", script)) == set(sample) | {"error"}
    parts = [data["models"][0], data["invalidations"][0], data["in_flight"][0], sample["largest"][0]]
    assert set(re.findall(r"\beach\.(\w+)", script)) <= {name for part in parts for name in part}
    assert set(re.findall(r"\btouched\.(\w+)", script)) - {"slice"} == set(data["invalidations"][0]["touched"][0])
    assert data["models"][0]["parts"] == 1


async def test_data_counts_by_model(heroes: Engine) -> None:
    """Every cached model is there, the most read first."""
    read(heroes, 1, 1, 1)
    view = await get("/data")
    assert (view["on"], view["actions"], view["stats"]["hits"]) == ("memory of this process", False, 2)
    names = [model["name"] for model in view["models"]]
    assert {"models:Hero", "models:Team", "models:Gadget"} <= set(names)
    assert "models:Plain" not in names
    counted, hero = SQLModelCache.stats().models["models:Hero"], view["models"][0]
    assert hero["hit_median"] == round(counted.hit_seconds.quantile(0.5) * 1000, 4) > 0  # milliseconds
    assert hero["hit_p99"] == round(counted.hit_seconds.quantile(0.99) * 1000, 4)
    assert hero["miss_median"] == round(counted.miss_seconds.quantile(0.5) * 1000, 4) > 0
    assert hero["miss_p99"] == round(counted.miss_seconds.quantile(0.99) * 1000, 4)
    assert hero["reasons"] == {"miss": {"absent": 1}, "bypass": {}, "refused": {}}


async def test_data_says_what_was_invalidated_and_why(heroes: Engine) -> None:
    """Commits of rows and of whole tables, calls by hand, statements that commit by themselves, and failed COMMITs."""
    with Session(heroes) as session:
        session.get_one(Hero, 1).name = "Rusty"
        session.get_one(Hero, 2).name = "Sven"
        session.commit()
        session.exec(update(Hero).values(name="Everybody"))
        session.commit()
    SQLModelCache.invalidate(Hero, 3)
    with heroes.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("UPDATE hero SET name = 'Nobody' WHERE id = 4"))
    with Session(heroes) as session:
        session.connection().connection.driver_connection.execute("PRAGMA foreign_keys = ON")  # type: ignore[union-attr]
    with heroes.connect() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        connection.execute(text("UPDATE hero SET team_id = 77 WHERE id = 5"))
        with pytest.raises(Exception, match="FOREIGN KEY"):
            connection.commit()
    view = await get("/data")
    seen = [(each["why"], each["touched"]) for each in view["invalidations"]]
    assert seen.pop() == ("commit", [{"table": "hero", "rows": ["1", "2", "3", "4", "5"], "whole": False}])  # INSERTs
    rows = {"table": "hero", "rows": ["1", "2"], "whole": False}
    whole = {"table": "hero", "rows": [], "whole": True}
    assert [why for why, _ in seen[:5]] == [
        "a COMMIT that failed",
        "a statement that commits by itself",
        "invalidate()",
        "commit",
        "commit",
    ]
    assert [touched for _, touched in seen[2:5]] == [[{**rows, "rows": ["3"]}], [whole], [rows]]


async def test_data_shows_commits_in_flight(heroes: Engine) -> None:
    """From before the COMMIT until the cache has been told of its end."""
    seen: list[Any] = []
    dashboard = cache_dashboard()
    loop = asyncio.get_running_loop()

    async def look() -> Any:
        async with browsing(dashboard) as client:
            return (await client.get("/data")).json()["in_flight"]

    @event.listens_for(heroes, "commit")
    def committing(connection: Any) -> None:
        seen.append(asyncio.run_coroutine_threadsafe(look(), loop).result(30))

    def rename() -> None:
        with Session(heroes) as session:
            session.get_one(Hero, 1).name = "Rusty"
            session.commit()

    await asyncio.to_thread(rename)
    [[flight]] = seen
    assert flight["count"] == 1
    assert flight["keys"][0].endswith("}:1")
    assert await look() == []


async def test_data_shows_what_is_owed(database: Engine) -> None:
    """With a Redis that is gone: what it has not been told, and that it is not asked any more."""
    with Session(database) as session:
        session.add(Hero(id=1, name="Rusty"))
        session.commit()
    SQLModelCache.configure("redis://127.0.0.1:1")
    for number in range(3):
        with Session(database) as session:
            session.get_one(Hero, 1).name = f"Rusty {number}"
            session.commit()
    view = await get("/data")
    assert (view["on"], view["stats"]["unreachable"], view["stats"]["owed"]) == ("Redis", True, 1)
    assert view["owed"][0].endswith("}:1")
    assert "does not answer" in (await get("/keys"))["error"]


async def test_data_is_json_whatever_is_in_it(database: Engine) -> None:
    """Primary keys are anybody's text; a browser must not take it for a page."""
    SQLModelCache.configure()
    owner = "</script><img src=x onerror=alert(1)>"
    with Session(database) as session:
        session.add(Gadget(owner=owner, number=1))
        session.commit()
        session.get_one(Gadget, (owner, 1)).label = "new"
        session.commit()
    async with browsing(cache_dashboard()) as client:
        answer = await client.get("/data")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "img src=x" in answer.json()["invalidations"][0]["touched"][0]["rows"][0].replace("%20", " ")


# Keys


async def test_keys_are_the_largest_and_the_hottest(heroes: Engine) -> None:
    """Of rows; in this process by the order of their use."""
    with Session(heroes) as session:
        session.get_one(Hero, 2).name = "x" * 500
        session.commit()
    read(heroes, 1, 2, 3, 4, 5, 3)
    view = await get("/keys")
    assert (view["count"], view["complete"], view["heat"]) == (5, True, "order")
    assert view["largest"][0]["key"].endswith("}:2")
    assert view["hottest"][0]["key"].endswith("}:3")
    assert view["hottest"][0]["bytes"] > 0


def test_a_sample_that_is_slow_keeps_one_thread(heroes: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks meanwhile has the last one, and does not wait."""
    now, begun, goes_on = 100.0, threading.Event(), threading.Event()
    monkeypatch.setattr(dashboard._views.time, "monotonic", lambda: now)
    keys = dashboard._views.Keys()
    first = keys._look()

    def slow() -> dict[str, Any]:
        begun.set()
        assert goes_on.wait(20)
        return {"count": 7}

    monkeypatch.setattr(dashboard._views, "_sampled", slow)
    now += dashboard._views.KEYS_EVERY
    thread = threading.Thread(target=keys._look)
    thread.start()
    assert begun.wait(20)
    assert keys._look() is first
    goes_on.set()
    thread.join()
    assert keys._look() == {"count": 7}


async def test_keys_of_redis(database: Engine, redis_client: redis.Redis) -> None:
    """The same, by Redis's own counters; one sample serves all who look."""
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=30, commit_timeout=30))
    with Session(database) as session:
        session.add_all(Hero(id=pk, name="Rusty") for pk in range(1, 4))
        session.commit()
    read(database, 1, 2, 3)
    async with browsing(cache_dashboard()) as client:
        views = [(await client.get("/keys")).json() for _ in range(2)]
        scans = redis_client.info("commandstats")["cmdstat_scan"]["calls"]
        assert views[0] == views[1] == (await client.get("/keys")).json()
        assert redis_client.info("commandstats")["cmdstat_scan"]["calls"] == scans
    assert (views[0]["count"], views[0]["complete"]) == (3, True)
    assert {each["key"][-2:] for each in views[0]["largest"]} == {":1", ":2", ":3"}


async def test_keys_of_a_transport_that_tells_none() -> None:
    """Somebody's own transport: it says so."""

    class Own:
        blocking = True

        def execute(self, effect: Any) -> Any:
            raise NotImplementedError

        def close(self) -> None:
            pass

    SQLModelCache.configure(Own())
    assert await get("/keys") == {"error": "this transport does not tell its keys"}
    assert (await get("/data"))["on"] == "Own"


# What it may do


async def test_it_only_looks_by_default(heroes: Engine) -> None:
    """An action is refused, and nothing was done."""
    read(heroes, 1)
    answer = await post({"model": "models:Hero", "pk": ["1"]})
    assert (answer.status_code, "actions=True" in answer.json()["error"]) == (403, True)
    read(heroes, 1)
    assert SQLModelCache.stats().hits == 1


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://proxied.example"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": None}, 403),
        ({"origin": None, "host": ""}, 403),
        ({"sec-fetch-site": "none", "origin": None}, 403),
        ({"x-sqlmodel-cache": None}, 403),
        ({"content-type": "text/plain"}, 403),
        ({"content-type": "application/x-www-form-urlencoded"}, 403),
    ],
    ids=str,
)
async def test_only_its_own_page_may_act(heroes: Engine, changed: dict[str, str | None], status: int) -> None:
    """Another site's page would send the user's cookies: it cannot send the header, nor say that it is this one."""
    headers = {name: value for name, value in {**ACTION, **changed}.items() if value is not None}
    before = SQLModelCache.stats().invalidated
    answer = await post({"model": "models:Hero", "pk": ["1"]}, headers=headers, actions=True)
    assert answer.status_code == status
    assert SQLModelCache.stats().invalidated == before + (status == 200)


@pytest.mark.parametrize("transport", ["memory", "redis"])
async def test_a_row_and_a_table_are_invalidated(database: Engine, transport: str, redis_client: redis.Redis) -> None:
    """By the texts of a primary key, or all of it; gets that follow read the database."""
    SQLModelCache.configure(MemoryTransport() if transport == "memory" else RedisSyncTransport(redis_client))
    sample = Sample.model_validate(
        {"amount": 1, "day": "2020-01-01", "at": "2020-01-01T00:00:00Z", "naive": "2020-01-01T00:00:00", "spent": 1,
         "color": "r", "ratio": 1, "raw": b"", "active": True, "tags": {}}
    )  # fmt: skip
    with Session(database) as session:
        session.add_all([Hero(id=1, name="Rusty"), Hero(id=2, name="Sven"), Gadget(owner="a", number=1), sample])
        session.commit()
        pk = str(sample.id)
    read(database, 1, 2)
    answer = await post({"model": "models:Hero", "pk": ["1"]}, actions=True)
    assert answer.json() == {"invalidated": "models:Hero 1"}
    read(database, 1, 2)
    assert (SQLModelCache.stats().hits, SQLModelCache.stats().misses) == (1, 3)
    answer = await post({"model": "models:Hero", "pk": None}, actions=True)
    assert answer.json() == {"invalidated": "models:Hero, all rows"}
    read(database, 1, 2)
    assert (SQLModelCache.stats().hits, SQLModelCache.stats().misses) == (1, 5)
    assert (await post({"model": "models:Gadget", "pk": ["a", "1"]}, actions=True)).status_code == 200
    assert (await post({"model": "models:Sample", "pk": [pk]}, actions=True)).status_code == 200


async def test_an_async_transport_alone_is_enough(redis_url: str, database: Engine) -> None:
    """Where `configure()` was given no transport for sync sessions."""

    class Own:
        async def aexecute(self, effect: Any) -> Any:
            return None

        async def aclose(self) -> None:
            pass

    SQLModelCache.configure(async_transport=Own(), namespace="one")
    answer = await post({"model": "models:Hero", "pk": ["1"]}, actions=True)
    assert answer.json() == {"invalidated": "models:Hero 1"}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"model": "models:Plain", "pk": None}, "give the name of a cached model"),
        ({"model": "os:system", "pk": None}, "give the name of a cached model"),
        ({"model": ["models:Hero"], "pk": None}, "give the name of a cached model"),
        ({"model": "models:Hero", "pk": ["x"]}, "pk"),
        ({"model": "models:Hero", "pk": ["1", "2"]}, "give 1 texts"),
        ({"model": "models:Hero", "pk": [1]}, "give 1 texts"),
        ({"model": "models:Hero", "pk": "1"}, "pk"),
        ({"model": "models:Gadget", "pk": ["a"]}, "give 2 texts"),
        ({"model": "models:Sample", "pk": ["not-a-uuid"]}, "pk"),
        ([], "request"),
        (b"{", "Expecting"),
        (b"\xff", "utf-8"),
        (b"[" * 50_000, "recursion"),
    ],
    ids=str,
)
async def test_what_cannot_be_invalidated_is_an_error(heroes: Engine, wanted: Any, words: str) -> None:
    """With words that say why; nothing was done."""
    before = SQLModelCache.stats().invalidated
    answer = await post(wanted, actions=True)
    assert (answer.status_code, words in answer.json()["error"]) == (400, True)
    assert SQLModelCache.stats().invalidated == before


async def test_what_the_cache_has_not_been_told_is_said(database: Engine) -> None:
    """With a Redis that is gone nobody else hears of it: it is owed, and not done."""
    SQLModelCache.configure("redis://127.0.0.1:1")
    with Session(database) as session:
        session.add(Hero(id=1, name="Rusty"))
        session.commit()
    answer = await post({"model": "models:Hero", "pk": ["1"]}, actions=True)
    assert answer.json() == {"invalidated": "models:Hero 1, but the cache has not been told yet"}


async def test_requests_are_bounded(heroes: Engine) -> None:
    """A body that is too long is not read to its end."""
    answer = await post(b'"' + b"x" * 70_000, actions=True)
    assert answer.status_code == 413


async def test_an_action_without_a_cache_is_an_error() -> None:
    """After a reset, there is nothing to invalidate."""
    answer = await post({"model": "models:Hero", "pk": ["1"]}, actions=True)
    assert (answer.status_code, "configure()" in answer.json()["error"]) == (400, True)


# Time


def hits(number: int, *, fast: int = 0) -> ModelStats:
    """Return the counts of so many hits of a millisecond, and so many of ten microseconds."""
    at = [0] * len(BOUNDS)
    at[BOUNDS.index(0.001)], at[BOUNDS.index(1e-5)] = number, fast
    return ModelStats(hits=number + fast, hit_seconds=Histogram(counts=tuple(at)))


def test_history_is_of_differences() -> None:
    """What was counted between two looks, for each model and for all; times of that only."""
    now = 100.0
    history = History(lambda: now)
    history.look(Stats(hits=10, models={"a": hits(10)}))
    assert history.since(0) == []
    now = 105.0
    history.look(Stats(hits=30, misses=5, models={"a": hits(10, fast=10), "b": ModelStats(hits=10, misses=5)}))
    [point] = history.since(0)
    assert (point.number, point.at, point.seconds) == (1, 105.0, 5.0)
    assert {name: reads[:2] for name, reads in point.reads.items()} == {"": (20, 5), "a": (10, 0), "b": (10, 5)}
    assert 0.005 < point.reads["a"][2] <= point.reads["a"][3] <= 0.01  # ms: the slow ones were before
    now = 110.0
    history.look(Stats(hits=30, misses=5, models={"a": hits(10, fast=10), "b": ModelStats(hits=10, misses=5)}))
    assert [dict(point.reads) for point in history.since(1)] == [{"": (0, 0, 0, 0, 0, 0)}]


def test_history_begins_anew_with_the_counters() -> None:
    """`configure()` counts from zero: what it has counted since is shown, and nothing negative."""
    now = 0.0
    history = History(lambda: now)
    history.look(Stats(hits=100, models={"a": hits(100)}))
    now = 5.0
    history.look(Stats(hits=3, models={"a": hits(3)}))
    assert {name: reads[:2] for name, reads in history.since(0)[0].reads.items()} == {"": (3, 0), "a": (3, 0)}


def test_history_is_bounded() -> None:
    """An hour, and of many models those that are read most."""
    now = 0.0
    history = History(lambda: now)
    for step in range(POINTS + 10):
        now = step * STEP
        many = MODELS + 2 if step > POINTS else 1
        models = {f"m{number}": ModelStats(hits=step * (number + 1)) for number in range(many)}
        history.look(Stats(hits=step, models=models))
    points = history.since(0)
    assert len(points) == POINTS
    assert len(points[-1].reads) == MODELS + 1
    assert {f"m{MODELS + 1}", "m2"} <= set(points[-1].reads)
    assert history.since(points[-1].number - 1) == points[-1:]


def test_history_looks_when_it_is_due() -> None:
    """Once in a step, however many ask; a clock that goes back stops nothing."""
    now = 1000.0
    history = History(lambda: now)
    assert history.is_due
    history.look(Stats())
    assert not history.is_due
    now += STEP
    assert history.is_due
    now = 10.0
    assert history.is_due
    history.look(Stats())
    assert history.since(0) == []


@pytest.mark.parametrize("before", [(9, 1), (1, 9)], ids=str)
def test_history_begins_anew_with_one_count(before: tuple[int, int]) -> None:
    """Of a model, or of all, whichever count is less than before: the whole is new."""
    now = 0.0
    history, whole = History(lambda: now), History(lambda: now)
    counted = [ModelStats(hits=number, misses=misses) for number, misses in (before, (3, 2))]
    history.look(Stats(hits=1, misses=1, models={"a": counted[0]}))
    whole.look(Stats(hits=before[0], misses=before[1]))
    now = STEP
    history.look(Stats(hits=10, misses=10, models={"a": counted[1]}))
    whole.look(Stats(hits=3, misses=2))
    assert history.since(0)[0].reads["a"][:2] == (3, 2)
    assert whole.since(0)[0].reads[""][:2] == (3, 2)
    whole.look(Stats(hits=3, misses=2))
    assert len(whole.since(0)) == 1  # no time has gone by


def test_history_prefers_what_is_read_most() -> None:
    """Misses are reads, too."""
    now = 0.0
    history = History(lambda: now)
    history.look(Stats())
    now = STEP
    models = {f"m{number}": ModelStats(hits=2) for number in range(MODELS)}
    history.look(Stats(models={**models, "missing": ModelStats(misses=3), "idle": ModelStats(bypasses=9)}))
    reads = history.since(0)[0].reads
    assert "missing" in reads
    assert "idle" not in reads


async def test_history_goes_on_while_nobody_looks(heroes: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer of the event loop counts on."""
    for module in (dashboard, dashboard._history):
        monkeypatch.setattr(module, "STEP", 0.001)
    app: Any = cache_dashboard()
    async with browsing(app) as client:
        await client.get("/data")
    async with asyncio.timeout(20):
        while len(app._history.since(0)) < 3:
            await asyncio.sleep(0)


async def test_points_are_sent_once(heroes: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says which ones it has; of another process, it has none."""
    now = 0.0
    monkeypatch.setattr(History.__init__, "__defaults__", (lambda: now,))
    async with browsing(cache_dashboard()) as client:
        await client.get("/data")
        read(heroes, 1, 1)
        now = STEP
        view = (await client.get("/data")).json()
        [point] = view["points"]
        assert point["reads"][""][:2] == [1, 1]
        known = {"since": point["number"], "process": view["process"]}
        assert (await client.get("/data", params=known)).json()["points"] == []
        assert (await client.get("/data", params={**known, "process": "other"})).json()["points"] == [point]
        for wrong in ("x", "-1", "9" * 30, "²"):
            assert (await client.get("/data", params={**known, "since": wrong})).json()["points"] == [point]


def test_nothing_is_left_behind(heroes: Engine) -> None:
    """No thread and no task: its timer ends with the event loop, and begins again in another."""
    before = threading.active_count()
    dashboard = cache_dashboard()
    timers = []

    async def look() -> int:
        loop = asyncio.get_running_loop()
        original = loop.call_later
        loop.call_later = lambda delay, *args, **kwargs: timers.append(delay) or original(delay, *args, **kwargs)  # type: ignore[method-assign, func-returns-value]
        async with browsing(dashboard) as client:
            for _ in range(3):
                await client.get("/data")
        return len(asyncio.all_tasks())

    assert asyncio.run(look()) == 1
    assert asyncio.run(look()) == 1
    assert timers.count(STEP) == 2
    assert threading.active_count() == before


def test_models_have_names_that_stats_uses(heroes: Engine) -> None:
    """One row for each model, not one for its name and one for its counts."""
    read(heroes, 1)
    view = asyncio.run(get("/data"))
    names = [model["name"] for model in view["models"]]
    assert len(names) == len(set(names))
    busiest = f"{Hero.__module__}:{Hero.__qualname__}"  # of the many that other tests have mapped, few are shown
    assert names[0] == busiest
    assert busiest in SQLModelCache.stats().models
