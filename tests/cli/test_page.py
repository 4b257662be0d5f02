"""docs/command-line.md says what scripts may rely on: exit codes, and the fields of every document."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import redis
from cli.commands import run, sqlite

from sqlmodel_cache.cli._app import ExitCode
from sqlmodel_cache.cli._checks import Check
from sqlmodel_cache.cli._commands import app
from sqlmodel_cache.cli._inspect import Inspected, Shape
from sqlmodel_cache.cli._sampling import PERMISSIONS
from sqlmodel_cache.cli._stats import TableStats
from sqlmodel_cache.cli._target import Options
from sqlmodel_cache.cli._top import Row
from sqlmodel_cache.cli._warm import Warmed

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()


def section(title: str) -> str:
    """Return the text of a section."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def documented(command: str) -> set[str]:
    """Return the fields that the page lists for a command's JSON."""
    text = section(f"`{command}`")
    return set(re.findall(r"`(\w+)`", text[text.index("\nJSON: ") :]))


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("doctor", [Check]),
        ("stats", [TableStats]),
        ("top", [Row]),
        ("inspect", [Inspected, Shape]),
        ("warm", [Warmed]),
    ],
)
def test_every_field_is_documented(command: str, kinds: list[type]) -> None:
    """A field that is renamed is a change of what scripts rely on."""
    assert {field.name for kind in kinds for field in fields(kind)} <= documented(command)


def test_fields_that_have_no_class(redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    """Of `stats`, `top` and `invalidate`."""
    stats = run("stats", "--json", REDIS_URL=redis_url).json
    names = {*stats, *stats["servers"][0], *stats["sample"]}
    assert names <= documented("stats")
    assert set(run("top", "--json", REDIS_URL=redis_url).json) <= documented("top")
    words = ("models:Hero", 1, "--json", "--database", sqlite(tmp_path))
    assert set(run("invalidate", *words, REDIS_URL=redis_url).json) <= documented("invalidate")
    assert {"status", "checks"} <= documented("doctor")


def test_exit_codes_commands_and_options() -> None:
    """The page has a row for each."""
    assert re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE) == [str(code.value) for code in ExitCode]
    listed = re.findall(r"^\| \[`(\w+)`\]", PAGE, re.MULTILINE)
    assert listed == [str(command.callback and command.callback.__name__) for command in app.registered_commands]
    options = section("Which cache, which models, which database")
    assert [field.name for field in fields(Options) if f"--{field.name.replace('_', '-')}" not in options] == []
    assert set(PERMISSIONS.split()) <= set(section("`stats`").split())
