"""`verify`: finds what was changed behind the application, and says it with an exit code."""

from __future__ import annotations

import re
from pathlib import Path

import redis
from cli.commands import get, run, sqlite
from cli.test_page import documented
from models import Hero
from session.test_verify import behind
from sqlalchemy import create_engine


def test_verify(redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    """Right, then wrong; for people and for scripts; in a process that has not seen the server before."""
    database = sqlite(tmp_path, heroes=5)
    get(database, redis_url, Hero, 1, 2, 3)
    words = ("verify", "models:Hero", "--sample", 100, "--database", database)
    right = run(*words, REDIS_URL=redis_url)
    assert right.code == 0
    assert right.stdout.startswith(
        "models.Hero: 0 of 3 cached rows differ from the database; at most 63.160% do (95 %)"
    )

    engine = create_engine(database)
    behind(engine, "UPDATE hero SET name = 'Rusty-Man' WHERE id = 2")
    engine.dispose()
    wrong = run(*words, REDIS_URL=redis_url)
    assert wrong.code == 1
    assert re.search(r"row 2 +changed: name; stored at most \d+ s ago", wrong.stdout)
    found = run(*words, "--json", REDIS_URL=redis_url)
    assert (found.code, found.json["checked"], found.json["cached"], found.json["discrepancies"]) == (1, 5, 3, 1)
    assert (found.json["examples"][0]["pk"], found.json["examples"][0]["columns"]) == (["2"], ["name"])
    assert {*found.json, *found.json["examples"][0]} <= documented("verify")


def test_verify_without_redis(tmp_path: Path) -> None:
    """A cache that does not answer is neither right nor wrong."""
    done = run("verify", "models:Hero", "--database", sqlite(tmp_path), REDIS_URL="redis://127.0.0.1:1")
    assert done.code == 3
