"""The dashboard in a real browser: what a user sees, at two widths, and what nobody must be able to do to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from chromium import Page
from fastapi import FastAPI
from sqlalchemy import Engine
from sqlmodel import Field, Session, SQLModel, create_engine

from sqlmodel_cache import CacheConfig, SQLModelCache
from sqlmodel_cache.contrib.dashboard import cache_dashboard

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


class Hero(SQLModel, table=True):
    """A model with a primary key of text."""

    __cache_config__ = CacheConfig()

    name: str = Field(primary_key=True)
    age: int = 0


Hero.__qualname__ = f"Hero{HOSTILE}"


class Seat(SQLModel, table=True):
    """A model with a primary key of two columns."""

    __cache_config__ = CacheConfig()

    room: str = Field(primary_key=True)
    number: int = Field(primary_key=True)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of a browser. Where there is no browser, that is an error."""
    page = Page()
    yield page
    page.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    """An SQLite file that is cached in memory."""
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(engine)
    SQLModelCache.configure()
    yield engine
    SQLModelCache.reset()
    engine.dispose()


@pytest.fixture
def url(database: Engine) -> Iterator[str]:
    """A server with the dashboard below a prefix."""
    app = FastAPI()
    app.mount("/deep/cache", cache_dashboard(actions=True, title=f"Mine {HOSTILE}"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    ready = threading.Event()
    started: Any = server.startup

    async def startup(*args: Any, **options: Any) -> None:
        await started(*args, **options)
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(60)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/deep/cache/"
    server.should_exit = True
    thread.join(60)


def read(database: Engine, name: str) -> None:
    """Get a hero in a session of its own."""
    with Session(database) as session:
        session.get(Hero, name)


@pytest.fixture
def used(database: Engine) -> Engine:
    """A database that was written and read."""
    with Session(database) as session:
        session.add_all([Hero(name="Rusty"), Hero(name=HOSTILE)])
        session.commit()
        session.get_one(Hero, HOSTILE).age = 1
        session.commit()
    for name in ("Rusty", "Rusty", HOSTILE, HOSTILE, HOSTILE):
        read(database, name)
    return database


def text(page: Page, selector: str) -> str:
    """Return what a part of the page says."""
    found = page.value(f"document.querySelector({selector!r}).innerText")
    return str(found)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_shows_what_was_read(used: Engine, url: str, page: Page, width: int, dark: bool, tmp_path: Path) -> None:
    """Numbers, models, invalidations and keys; no wider than the window, and without a complaint of the browser."""
    page.console.clear()
    page.show(url, width=width, dark=dark)
    page.wait("document.querySelector('#models tbody tr')")
    page.wait("document.querySelector('#largest tbody tr')")
    assert text(page, "#state") == "the cache answers"
    assert "50 % since configured" in text(page, "#cards")
    assert "50 %" in text(page, "#models")
    assert "commit" in text(page, "#invalidations")
    assert "Rusty" in text(page, "#hottest")
    assert page.value("document.documentElement.scrollWidth") == width
    assert page.value("document.querySelectorAll('#rate svg, #latency svg').length") == 2
    shown = page.value("getComputedStyle(document.body).backgroundColor")
    assert (shown == "rgb(17, 20, 24)") is dark
    picture = tmp_path / "dashboard.png"
    page.screenshot(picture)
    assert picture.stat().st_size > 20_000
    assert page.console == []


def test_nothing_in_the_data_becomes_html(used: Engine, url: str, page: Page) -> None:
    """Names of models, primary keys and the title are shown as they are; a script of a stranger does not run."""
    page.console.clear()
    page.show(url)
    page.wait("document.querySelector('#largest tbody tr')")
    for selector in ("#models", "#hottest", "#invalidations"):
        assert "onerror" in text(page, selector)
    assert "<img src=x" in text(page, "#models")
    assert "<img src=x" in text(page, "h1")
    assert page.value("document.querySelectorAll('img, script, [onerror]').length") == 1  # its own script
    assert page.value("document.title").startswith("Mine <img")
    assert page.console == []
    # And if the page itself were to make HTML of it, the browser would not let it.
    refused = "(() => { try { document.body.innerHTML = '<p>'; return ''; } catch (error) { return error.name; } })()"
    assert page.value(refused) == "TypeError"


def test_an_action_needs_a_second_press_for_all_rows(used: Engine, url: str, page: Page) -> None:
    """A row at once, a table after the button has asked; what was done is said, and shown below Invalidated."""
    page.show(url)
    page.wait("document.querySelector('form')")
    before = SQLModelCache.stats().invalidated
    page.value("document.querySelector('form input').value = 'Rusty'")
    page.value("document.querySelector('form button[type=submit]').click()")
    page.wait("document.querySelector('output').textContent.includes('Rusty')")
    assert SQLModelCache.stats().invalidated == before + 1
    press = "document.querySelector('form button[type=button]').click()"
    page.value(press)
    assert "press again" in text(page, "form button[type=button]")
    assert SQLModelCache.stats().invalidated == before + 1
    page.value(press)
    page.wait("document.querySelector('output').textContent.includes('all rows')")
    assert SQLModelCache.stats().invalidated > before + 1
    page.wait("document.querySelector('#invalidations').innerText.includes('invalidate()')")


def choose(page: Page, model: str, pk: str) -> None:
    """Fill in the form for a row, and send it."""
    chosen = f"[...document.querySelectorAll('form option')].find((each) => each.value.includes('{model}'))"
    page.value(f"{chosen}.selected = true")
    page.value(f"document.querySelector('form input').value = {pk!r}")
    page.value("document.querySelector('form button[type=submit]').click()")


def test_a_key_is_sent_as_it_is(used: Engine, url: str, page: Page) -> None:
    """Of one column with its commas and spaces, of several with a comma between; what is wrong is said there."""
    page.show(url)
    page.wait("document.querySelector('form')")
    choose(page, ":Hero", " Rusty, the first")
    page.wait("document.querySelector('output').textContent.endsWith('  Rusty, the first')")
    choose(page, ":Seat", "a, 1")
    page.wait("document.querySelector('output').textContent.endsWith('Seat a, 1')")
    choose(page, ":Seat", "a")
    page.wait("document.querySelector('output').textContent.includes('give 2 texts')")


def test_other_sites_cannot_act(used: Engine, url: str, page: Page) -> None:
    """A page of another origin that a logged-in user looks at: neither a script's request nor a form's is taken."""
    before = SQLModelCache.stats().invalidated
    page.show("about:blank")
    body = "body: JSON.stringify({model: 'x', pk: null})"
    for headers in ("{}", "{'content-type': 'application/json', 'x-sqlmodel-cache': 'invalidate'}"):
        sent = f"fetch('{url}invalidate', {{method: 'POST', headers: {headers}, {body}}})"
        status = page.value(f"{sent}.then((answer) => answer.status, (error) => error.name)")
        assert status == "TypeError"  # there is no answer that it may read
    assert SQLModelCache.stats().invalidated == before


def test_page_says_when_the_cache_or_the_application_is_gone(
    used: Engine, database: Engine, url: str, page: Page
) -> None:
    """The breaker, what is owed, and a server that does not answer."""
    page.show(url)
    page.wait("document.querySelector('#models tbody tr')")
    SQLModelCache.configure("redis://127.0.0.1:1")
    for age in range(3):
        with Session(database) as session:
            session.get_one(Hero, "Rusty").age = age + 10
            session.commit()
    page.wait("document.querySelector('#state').innerText === 'the cache does not answer'")
    page.wait("!document.querySelector('#notice').hidden")
    assert "Rusty" in text(page, "#owed")
    SQLModelCache.reset()
    page.wait("document.querySelector('#state').innerText === 'not configured'")
    page.call("Network.enable")
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", **offline)
    page.wait("document.querySelector('#state').innerText.includes('does not answer (')")
    page.call("Network.emulateNetworkConditions", **{**offline, "offline": False})
    page.wait("document.querySelector('#state').innerText === 'not configured'")


def test_charts_can_be_chosen(used: Engine, url: str, page: Page) -> None:
    """A range and a model; the pointer tells the values."""
    page.show(url)
    page.wait("document.querySelector('#models tbody tr')")
    read(used, "Rusty")
    page.wait("document.querySelectorAll('#chips button').length === 2")  # after the next look at the counters
    page.value("document.querySelectorAll('#chips button')[1].click()")
    assert "Hero" in text(page, "#latency-of")
    page.value("document.querySelectorAll('#range button')[2].click()")
    assert page.value("document.querySelectorAll('#range button')[2].getAttribute('aria-pressed')") == "true"
    assert "in 1 h" in text(page, "#cards")
    box = page.value("document.querySelector('#rate svg').getBoundingClientRect().toJSON()")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["right"] - 2, y=box["top"] + 50)
    page.wait("document.querySelector('#rate .aim').getAttribute('visibility') === 'visible'")
