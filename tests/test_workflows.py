"""The workflows and templates in .github: they parse, and what they name exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
TARGETS = set(re.findall(r"^([a-z]\w*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def load(path: Path) -> dict[Any, Any]:
    """Return a YAML file's mapping."""
    loaded = yaml.safe_load(path.read_text())
    assert isinstance(loaded, dict)
    return loaded


def jobs(name: str) -> dict[str, Any]:
    """Return a workflow's jobs."""
    found: dict[str, Any] = load(ROOT / ".github/workflows" / name)["jobs"]
    return found


def commands(job: dict[str, Any]) -> list[str]:
    """Return what a job runs."""
    return [step["run"] for step in job.get("steps", ()) if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_complete(path: Path) -> None:
    """It says when it runs, may only read unless a job says more, and no job hangs for hours."""
    workflow = load(path)
    assert workflow[True]  # `on`, which is a boolean in YAML 1.1
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "uses" in job or ("timeout-minutes" in job and job["steps"] and "runs-on" in job)
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= set(workflow["jobs"])
        if job.get("uses", "").startswith("./"):
            assert (ROOT / job["uses"]).is_file()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_names_existing_make_targets(path: Path) -> None:
    """What it makes can be made."""
    made: set[str] = set()
    for job in load(path)["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for command in commands(job):
            if command.startswith("make "):
                names = command.removeprefix("make ").replace("${{ matrix.target }}", "matrix.target").split()
                made |= set(names) - {"matrix.target"}
                if "matrix.target" in names:
                    made |= {row["target"] for row in matrix["include"]}
    assert made <= TARGETS
    assert made or path.name == "release.yml"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_pins_its_actions(path: Path) -> None:
    """Each action has a major version, or the branch that its authors release a major version on."""
    used = [step["uses"] for job in load(path)["jobs"].values() for step in job.get("steps", ()) if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w./-]+@(v\d+|release/v\d+)", name)] == []


def test_matrix_agrees_with_the_metadata() -> None:
    """Every Python version that the package names, on both SQLAlchemy lines that it takes, and no other."""
    matrix = jobs("ci.yml")["tests"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: 3."
    named = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if name.startswith(prefix)]
    assert matrix["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert {row["sqlalchemy"]: row["target"] for row in matrix["include"]} == {"2.0": "test20", "2.1": "test"}
    assert matrix["sqlalchemy"] == ["2.0", "2.1"]
    assert next(name for name in PROJECT["dependencies"] if name.startswith("sqlalchemy")).endswith("<2.2")


def test_ci_runs_all_that_a_merge_needs() -> None:
    """What `make check` makes is made by some job, and so are the site and the archives."""
    checked = re.findall(r"^check: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[0].split()
    runs = " ".join(command for job in jobs("ci.yml").values() for command in commands(job))
    assert [target for target in (*checked, "docs", "build") if target != "test" and target not in runs.split()] == []
    assert "${{ matrix.target }}" in runs


def test_release_is_published_by_trust_alone() -> None:
    """On a version's tag; the one job that may ask for an identity builds nothing, and there is no password."""
    release = load(ROOT / ".github/workflows/release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}
    publish = release["jobs"]["publish"]
    assert publish["environment"]["name"] == "pypi"
    assert publish["permissions"] == {"id-token": "write"}
    assert commands(publish) == []
    assert publish["steps"][-1] == {"uses": "pypa/gh-action-pypi-publish@release/v1"}
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()
    assert [name for name, job in release["jobs"].items() if "permissions" in job] == ["publish"]


def test_release_finds_the_version() -> None:
    """The line that the workflow looks for is how the version is written."""
    wanted = next(command for command in commands(jobs("release.yml")["tag"]) if "__version__" in command)
    assert wanted.endswith("src/sqlmodel_cache/__init__.py")
    assert re.search(r'^__version__ = "\d+\.\d+\.\d+"$', (ROOT / "src/sqlmodel_cache/__init__.py").read_text(), re.M)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_form_is_valid(path: Path) -> None:
    """It has what GitHub asks of a form; each question has a name of its own."""
    form = load(path)
    assert form["name"]
    assert form["description"]
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 2
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"].get("value" if part["type"] == "markdown" else "label")
        if part["type"] in ("dropdown", "checkboxes"):
            options = part["attributes"]["options"]
            assert all(isinstance(option, str if part["type"] == "dropdown" else dict) for option in options)


def test_issue_form_for_a_bug_starts_with_a_program(tmp_path: Path) -> None:
    """What it offers as a beginning is a program that compiles."""
    program = next(
        part for part in load(ROOT / ".github/ISSUE_TEMPLATE/bug.yml")["body"] if part.get("id") == "program"
    )
    compile(program["attributes"]["value"], "program.py", "exec")
    assert program["validations"]["required"]


def test_issue_form_for_a_stale_row_asks_for_every_exception() -> None:
    """Each row of the guarantees' table of exceptions has its question."""
    form = (ROOT / ".github/ISSUE_TEMPLATE/stale-row.yml").read_text()
    questions = {
        '`on_unreachable="serve"`': "Could Redis be reached during that commit",
        '`on_unreachable="refuse"`': "no, and on_unreachable is refuse",
        "name rows otherwise": "different key_prefix, namespace",
        "somebody who writes to Redis": "somebody else writes to this Redis",
        "a writer outside the library": "Who wrote the row?",
        "the database itself loses commits": "a standby of the database that was promoted",
        "`MemoryTransport` in several processes": "MemoryTransport in more than one process",
        "two servers take themselves for the master": "two Redis servers that take themselves for the master",
        "Redis loses a fence": "Redis evicted or lost keys",
        "Redis does not tell its name": "a user without INFO",
        "demoted by hand": "demoted by hand",
        "keys are written back": "keys were written back",
        "the near cache": "CacheConfig(near=True)",
        "longer than `fence_ttl`": "longer than fence_ttl",
        "connection breaks during COMMIT": "whose connection broke",
    }
    assert [question for question in questions.values() if question not in form] == []
    section = (
        (ROOT / "docs/guarantees.md").read_text().partition("## Exceptions and their bounds")[2].partition("\n## ")[0]
    )
    exceptions = re.findall(r"^\| (?!exception|---)(.*?) \|", section, flags=re.MULTILINE)
    unasked = [row for row in exceptions if not any(word in row for word in questions)]
    assert unasked == [], "a new exception needs a question in stale-row.yml"
