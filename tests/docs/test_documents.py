"""Documents that can fail: every Python block of README and docs/, and the demo, run for real.

The Python blocks of one section are one program, run in a process of its own with every warning an error. What stands
in its `text` blocks is what it prints. An application is served to an HTTP client, lifespan included; tests are run by
pytest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CLOSE = """
import sqlalchemy, sqlmodel_cache

sqlmodel_cache.SQLModelCache.reset()
if isinstance(globals().get("engine"), sqlalchemy.Engine):
    engine.dispose()
"""

SERVE = """
import asyncio, httpx
from sqlmodel_cache import SQLModelCache

async def drive():
    async with app.router.lifespan_context(app):
        async with engine.begin() as connection:
            await connection.run_sync(SQLModel.metadata.create_all)
        async with AsyncSession(engine) as session:
            session.add(Hero(name="Rusty"))
            await session.commit()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            answers = [await client.get("/heroes/1") for _ in range(3)]
        loaded, _, hit = [answer.json() for answer in answers]
        print([answer.status_code for answer in answers], loaded["name"], loaded == hit)
        print(SQLModelCache.stats().misses, SQLModelCache.stats().hits)

asyncio.run(drive())
"""
SERVED = "[200, 200, 200] Rusty True\n1 2\n"


def programs(document: str) -> dict[str, tuple[str, str]]:
    """Return each section's program and what it prints, by the section's title."""
    found = {}
    for section in re.split(r"^## ", (ROOT / document).read_text(), flags=re.MULTILINE):
        blocks = FENCE.findall(section)
        source, printed = ("".join(text for kind, text in blocks if kind == wanted) for wanted in ("python", "text"))
        if source:
            found[f"{document}: {section.partition(chr(10))[0]}"] = (source, printed)
    return found


DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
PROGRAMS = {title: program for document in DOCUMENTS for title, program in programs(document).items()}


def run(source: str | Path, folder: Path, **environment: str) -> str:
    """Return what a program prints; it may write no word to stderr, which is where leaks are reported."""
    script = source if isinstance(source, Path) else folder / "program.py"
    if isinstance(source, str):
        script.write_text(source)
    tested = "\ndef test_" in script.read_text()
    runner = ["pytest", "-p", "patient", "-q", "-p", "no:cacheprovider"] if tested else ["patient"]
    path = [environment.get("PYTHONPATH", ""), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL")}
    done = subprocess.run(
        # Starlette's TestClient announces that it will leave httpx.
        [sys.executable, "-W", "error", "-W", "ignore:Using `httpx`", "-m", *runner, script],
        cwd=folder,
        env={**kept, **environment, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("title", PROGRAMS)
def test_section_prints_what_it_says(title: str, tmp_path: Path, redis_url: str, redis_client: redis.Redis) -> None:
    """A reader who pastes a section gets what stands below it."""
    source, printed = PROGRAMS[title]
    source = source.replace("redis://localhost:6379", redis_url)
    if "\ndef test_" in source:
        assert f"{source.count(f'{chr(10)}def test_')} passed" in run(source, tmp_path)
        return
    if "/heroes/{hero_id}" in source:
        source, printed = source + SERVE, printed + SERVED
    else:
        assert printed, "a program that prints nothing shows nothing"
        source += CLOSE
    assert run(source, tmp_path) == printed


def test_documents_have_programs() -> None:
    """The blocks are found: none drops out unseen."""
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        assert len(re.findall(r"^```python", text, flags=re.MULTILINE)) == text.count("```py")
        assert len([kind for kind, _ in FENCE.findall(text) if kind == "python"]) == text.count("```py")
    assert len({title.partition(":")[0] for title in PROGRAMS}) > 7


STEPS = """
insert Rusty, commit                           | INSERT, COMMIT          | invalidated 1 key
get, the first                                 | Rusty SELECT            | miss, fill
get, in a new session                          | Rusty no connection     | hit
get and rename in a transaction, no commit yet | UPDATE                  | hit
get, in another session meanwhile              | Rusty no connection     | hit
commit                                         | COMMIT                  | invalidated 1 key
get, in a new session                          | Rusty-Man SELECT        | miss, fill
get, in a new session                          | Rusty-Man no connection | hit
get and rename in a transaction                | UPDATE                  | hit
roll back                                      | ROLLBACK                | -
get, in a new session                          | Rusty-Man no connection | hit
update(Hero), all rows, commit                 | UPDATE, COMMIT          | invalidated 16 keys
get, in a new session                          | Everybody SELECT        | miss, fill
get, in a new session                          | Everybody no connection | hit
get, execution_options={"cache": False}        | Everybody SELECT        | bypass
select(Hero), never cached                     | Everybody SELECT        | -
"""


def steps(printed: str) -> list[str]:
    """Return the lines of the demo's tables without their times, one space between words."""
    rows = re.findall(r"^  (\S.*?) +\d+\.\d\d$", printed, flags=re.MULTILINE)
    return [" ".join(row.split()) for row in rows]


EXPECTED_STEPS = [" ".join(line.replace("|", " ").split()) for line in STEPS.strip().splitlines()]


def test_demo_shows_each_step(tmp_path: Path) -> None:
    """`make demo` without a server: hits send nothing, commits invalidate, rollbacks do not."""
    printed = run(ROOT / "examples/demo.py", tmp_path)
    assert steps(printed) == EXPECTED_STEPS
    assert "REDIS_URL=" in printed


def test_demo_shows_the_same_over_redis(tmp_path: Path, redis_url: str, redis_client: redis.Redis) -> None:
    """With REDIS_URL the same steps run over Redis, and leave no key behind."""
    printed = run(ROOT / "examples/demo.py", tmp_path, REDIS_URL=redis_url)
    assert steps(printed) == EXPECTED_STEPS * 2
    assert "TTL" in printed
    assert redis_client.keys() == []


def test_demo_says_when_redis_is_down(tmp_path: Path) -> None:
    """A REDIS_URL that does not answer is an error of one line, not a demo that pretends."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples/demo.py"],
        env={**os.environ, "REDIS_URL": "redis://127.0.0.1:1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("Redis at REDIS_URL: ")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_links_exist(document: str) -> None:
    """A link inside the repository leads to a file."""
    path = ROOT / document
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []
