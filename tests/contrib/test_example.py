"""The example application, for real: a server, requests, a load, and a Redis that is stopped and goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import servers
from waiting import until

ROOT = Path(__file__).parents[2]


class Example:
    """A running example application."""

    def __init__(self, **environment: str) -> None:
        port = servers.free_port()
        self.url = f"http://127.0.0.1:{port}"
        kept = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL")}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "examples.fastapi_app", "--port", str(port)],
            cwd=ROOT,
            env={**kept, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.told = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told += line
            if line.startswith("stop"):
                break
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        try:
            return self.http.get("/cache/data").is_success
        except httpx.TransportError:
            return False

    def data(self) -> Any:
        """Return what the dashboard shows."""
        return self.http.get("/cache/data").raise_for_status().json()

    def send(self, method: str, path: str, **options: Any) -> list[Any]:
        """Return the status and the name in an answer, and the misses and hits that have been counted."""
        answer = self.http.request(method, path, **options)
        body = answer.json() if answer.content else None
        stats = self.data()["stats"]
        return [answer.status_code, body and body.get("name"), stats["misses"], stats["hits"]]

    def stop(self) -> str:
        """Stop it, as Ctrl-C or as a supervisor does, and return what it has said of trouble."""
        self.http.close()
        self.process.send_signal(signal.SIGTERM if "break Redis" in self.told else signal.SIGINT)
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode in (0, 1, -signal.SIGINT)
        return errors


@contextmanager
def running(**environment: str) -> Iterator[Example]:
    """Run the example for as long as the block; it must say nothing of trouble at its end."""
    example = Example(**environment)
    try:
        yield example
    except BaseException:
        print(example.stop())
        raise
    assert "Error" not in example.stop().replace("KeyboardInterrupt", "")


@pytest.mark.parametrize(("database", "cache"), [("sqlite", "memory"), ("postgresql", "redis")])
def test_example_serves(database: str, cache: str, request: pytest.FixtureRequest, redis_client: redis.Redis) -> None:
    """Every endpoint, on each database and each cache: cached reads, and none of them stale."""
    environment = {"REDIS_URL": request.getfixturevalue("redis_url") if cache == "redis" else ""}
    if database == "postgresql":
        environment["DATABASE_URL"] = request.getfixturevalue("postgres_url")
        _drop_tables(environment["DATABASE_URL"])
    with running(**environment) as example:
        assert [
            example.send("POST", "/heroes", json={"name": "Rusty", "team_id": 1}),
            example.send("GET", "/heroes/1001"),
            example.send("GET", "/heroes/1001"),
            example.send("PUT", "/heroes/1001", json={"name": "Rusty-Man", "team_id": 2}),
            example.send("GET", "/heroes/1001"),
            example.send("GET", "/heroes/1001"),
            example.send("GET", "/heroes/1001", params={"cache": "false"}),
            example.send("DELETE", "/heroes/1001"),
            example.send("GET", "/heroes/1001"),
            example.send("GET", "/teams/2"),
            example.send("GET", "/heroes/1/team"),
            example.send("PUT", "/teams/2", params={"name": "Preventers"}),
            example.send("GET", "/heroes/1/team"),
            example.send("GET", "/teams/77"),
        ] == [
            [201, "Rusty", 0, 0],
            [200, "Rusty", 1, 0],
            [200, "Rusty", 1, 1],
            [200, "Rusty-Man", 1, 2],
            [200, "Rusty-Man", 2, 2],
            [200, "Rusty-Man", 2, 3],
            [200, "Rusty-Man", 2, 3],
            [204, None, 2, 4],
            [404, None, 3, 4],
            [200, "Team 2", 4, 4],
            [200, "Team 2", 5, 5],
            [200, "Preventers", 5, 6],
            [200, "Preventers", 6, 7],
            [404, None, 7, 7],
        ]
        assert "Server-Timing" in example.http.get("/teams/2").headers
        assert "Heroes: cache" in example.http.get("/cache/").text
        assert example.data()["on"] == ("Redis" if cache == "redis" else "memory of this process")
        assert ("break Redis" in example.told) is False  # it is somebody else's


def _drop_tables(url: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS hero, team CASCADE")


def load(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the load."""
    command = [sys.executable, "-W", "error", "-m", "examples.fastapi_app.load", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_example_shows_what_happens_when_redis_breaks() -> None:
    """As README says: run it, send requests, see the hit rate, stop Redis, see reads go on, let it go on."""
    with running() as example:
        done = load("--url", example.url, "--seconds", "2")
        assert (done.returncode, done.stderr) == (0, "")
        lines = {line[:24].strip(): line[24:].split() for line in done.stdout.splitlines()}
        assert lines["errors"] == ["0", "0"]
        assert lines["reads of the database"][:1] == ["100.0%"]
        assert 0 < float(lines["reads of the database"][1].rstrip("%")) < 100
        assert {"hit rate", "session.get(), median", "whole request, 99 %"} <= set(lines)
        data = example.data()
        names = {model["name"]: model for model in data["models"]}
        assert names["examples.fastapi_app.models:Hero"]["hits"] > 0
        assert example.http.get("/cache/keys").json()["count"] > 0

        pid = int(re.findall(r"^break Redis +kill -STOP (\d+)$", example.told, flags=re.MULTILINE)[0])
        assert f"kill -CONT {pid}" in example.told
        assert "docs/operations.md" in example.told
        os.kill(pid, signal.SIGSTOP)
        try:
            for pk in range(1, 8):
                assert example.http.get(f"/heroes/{pk}").json()["id"] == pk
            renamed = example.http.put("/heroes/1", json={"name": "Rusty"}).json()
            assert (renamed["name"], example.http.get("/heroes/1").json()["name"]) == ("Rusty", "Rusty")
            broken = example.data()
            assert broken["stats"]["unreachable"]
            assert broken["stats"]["owed"] > 0
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: not example.data()["stats"]["unreachable"])
        assert example.data()["stats"]["owed"] == 0
        hits = example.data()["stats"]["hits"]
        until(lambda: example.http.get("/heroes/9").is_success and example.data()["stats"]["hits"] > hits)
    until(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_load_says_where_the_application_is_not() -> None:
    """One line, and what to do."""
    done = load("--url", f"http://127.0.0.1:{servers.free_port()}", "--seconds", "1")
    assert done.returncode == 1
    assert "make example" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
