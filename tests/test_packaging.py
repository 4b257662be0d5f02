"""What `pip install` gets: both archives are built, read, checked, and one is installed and used."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sqlmodel_cache"


def call(*command: object, cwd: Path = ROOT) -> str:
    """Return what a Python program prints; its failure is the test's, with its words."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that is built from it; made with what is installed, so without a network."""
    folder = tmp_path_factory.mktemp("dist")
    call("-m", "build", "--no-isolation", "--outdir", folder)
    return {path.suffix: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def wheel_names(archives: dict[str, Path]) -> set[str]:
    """The names of the files in the wheel."""
    with zipfile.ZipFile(archives[".whl"]) as wheel:
        return set(wheel.namelist())


@pytest.fixture(scope="module")
def metadata(archives: dict[str, Path], wheel_names: set[str]) -> Message:
    """The wheel's METADATA."""
    name = next(name for name in wheel_names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(archives[".whl"]) as wheel, wheel.open(name) as file:
        return BytesParser().parse(file)


def test_wheel_has_the_package_and_nothing_else(wheel_names: set[str]) -> None:
    """Every module, `py.typed` and every Lua script; no test, no example."""
    wanted = {
        f"sqlmodel_cache/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    wanted.add("_sqlmodel_cache_pytest.py")
    assert {name for name in wheel_names if ".dist-info/" not in name} == wanted
    assert "sqlmodel_cache/py.typed" in wheel_names
    assert len([name for name in wheel_names if name.startswith("sqlmodel_cache/transport/lua/")]) == 6
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)


def test_sdist_has_what_building_and_testing_needs(archives: dict[str, Path]) -> None:
    """The sources, the tests, the documents that the tests read, and no environment."""
    with tarfile.open(archives[".gz"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for name in (
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "src/sqlmodel_cache/py.typed",
        "src/sqlmodel_cache/transport/lua/lease.lua",
        "tests/conftest.py",
        "tests/test_packaging.py",
        "examples/demo.py",
        "docs/quickstart.md",
        "docs_site/hooks.py",
        "mkdocs.yml",
        ".github/workflows/ci.yml",
    ):
        assert name in names
    assert [name for name in names if "__pycache__" in name or name.startswith(".venv")] == []


def test_archives_pass_twine(archives: dict[str, Path]) -> None:
    """A package index would take both, README included."""
    printed = call("-m", "twine", "--no-color", "check", "--strict", *archives.values())
    assert printed.count("PASSED") == 2


def test_metadata_says_what_is_needed(metadata: Message) -> None:
    """Python 3.11+, four dependencies, and the extra for asyncio."""
    needed = metadata.get_all("Requires-Dist") or []
    always = {requirement for requirement in needed if "extra ==" not in requirement}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(always) == len(project["dependencies"]) == 4
    assert [name.split(">")[0] for name in sorted(always)] == ["msgspec", "redis", "sqlalchemy<2.2,", "sqlmodel"]
    assert any(name.startswith("sqlalchemy[asyncio]") and "extra == 'async'" in name for name in needed)
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"


USE = """
import sys
from importlib.metadata import distribution
from pathlib import Path
import sqlmodel_cache
from sqlmodel import Field, Session, SQLModel, create_engine
from sqlmodel_cache import CacheConfig, SQLModelCache

class Hero(SQLModel, table=True):
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)

assert Path(sqlmodel_cache.__file__).is_relative_to(sys.argv[1]), sqlmodel_cache.__file__
engine = create_engine("sqlite:///used.db")
SQLModel.metadata.create_all(engine)
SQLModelCache.configure()
for _ in range(2):
    with Session(engine) as session:
        if session.get(Hero, 1) is None:
            session.add(Hero())
            session.commit()
for _ in range(2):
    with Session(engine) as session:
        session.get(Hero, 1)
print(sqlmodel_cache.__version__, SQLModelCache.stats().hits)
"""


def test_installed_wheel_works(archives: dict[str, Path], tmp_path: Path) -> None:
    """The wheel alone, installed where the source tree is not on the path, caches a row."""
    target = tmp_path / "installed"
    call("-m", "pip", "--quiet", "install", "--no-deps", "--no-index", "--target", target, archives[".whl"])
    script = tmp_path / "use.py"
    script.write_text(f"import sys\nsys.path.insert(0, sys.argv[1])\n{USE}")
    printed = call("-I", "-W", "error", script, target, cwd=tmp_path)
    assert printed == f"{archives['.whl'].name.split('-')[1]} 2\n"


WITHOUT_GREENLET = """
import sys

class Hide:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("greenlet", "_greenlet"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hide())
from sqlmodel import Field, Session, SQLModel, create_engine
from sqlmodel_cache import CacheConfig, SQLModelCache

class Hero(SQLModel, table=True):
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)

engine = create_engine("sqlite:///" + sys.argv[1])
SQLModel.metadata.create_all(engine)
SQLModelCache.configure()
with Session(engine) as session:
    session.add(Hero(id=1))
    session.commit()
for _ in range(2):
    with Session(engine) as session:
        session.get(Hero, 1)
print(SQLModelCache.stats().hits)
SQLModelCache.reset()
engine.dispose()
"""


def test_sessions_need_no_greenlet(tmp_path: Path) -> None:
    """Without the async extra, SQLAlchemy 2.1 brings no greenlet: sync sessions work all the same."""
    command = [sys.executable, "-c", WITHOUT_GREENLET, str(tmp_path / "test.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")
