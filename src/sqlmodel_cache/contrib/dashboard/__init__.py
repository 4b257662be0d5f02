"""A page that shows what the cache does, to mount in any ASGI application: one file, which fetches nothing elsewhere.

Here is what HTTP has to say in it: paths, headers, and whom a request may come from. What is shown is in `_views.py`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from importlib.resources import files
from typing import Any, TypeAlias
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from ...configure import SQLModelCache
from ...errors import CacheError, ConfigurationError
from ._history import STEP, History
from ._views import Keys, invalidate, overview

__all__ = ["cache_dashboard"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ACTION_HEADER = b"x-sqlmodel-cache"  # no form and no other site's script can send it
MAX_BODY = 65_536  # bytes

_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def cache_dashboard(*, actions: bool = False, title: str = "Cache") -> ASGIApp:
    """Return an ASGI application that shows what the cache of this process does: `app.mount("/cache", ...)`.

    It only looks, and it knows no users: who may see it is for the application to say, around it. Names of models and
    primary keys are shown.

    Args:
        actions: whether the page may invalidate rows and tables, for every user that the application lets through.
        title: of the page.

    Raises:
        ConfigurationError: an argument is of another type.
    """
    if not isinstance(actions, bool):
        raise ConfigurationError("actions", actions, "give True or False")
    if not isinstance(title, str):
        raise ConfigurationError("title", title, "give a text")
    return _Dashboard(actions, title)


class _Dashboard:
    """The application."""

    def __init__(self, actions: bool, title: str) -> None:
        self._actions = actions
        self._page, self._policy = _page(title)
        self._history = History()
        self._keys = Keys()
        self._loop: asyncio.AbstractEventLoop | None = None  # in which a timer looks at the counters

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self._watch()
        method, path = scope["method"], _path(scope)
        if method == "HEAD":
            send = _without_body(send)
        if path == "/invalidate":
            if method != "POST":
                return await _send(send, 405, b"", {"allow": "POST"})
            return await self._invalidate(scope, receive, send)
        if method not in ("GET", "HEAD"):
            return await _send(send, 405, b"", {"allow": "GET, HEAD"})
        if path == "":  # relative addresses would be those of the folder above
            return await _send(send, 307, b"", {"location": f"{quote(scope['path'].rpartition('/')[2])}/"})
        if path == "/":
            kind = {"content-type": "text/html; charset=utf-8", "content-security-policy": self._policy}
            return await _send(send, 200, self._page, {**kind, "x-frame-options": "DENY"})
        if path == "/data":
            return await _send_json(send, 200, overview(self._history, _asked(scope), actions=self._actions))
        if path == "/keys":
            return await _send_json(send, 200, await self._keys.view())
        return await _send_json(send, 404, {"error": "there is no such page"})

    async def _invalidate(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if not self._actions:
            return await _send_json(send, 403, {"error": "it only looks: cache_dashboard(actions=True) lets it act"})
        if not _is_own(dict(scope["headers"])):
            return await _send_json(send, 403, {"error": "the request does not come from this page"})
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > MAX_BODY:
                return await _send_json(send, 413, {"error": "the request is too long"})
            if not message.get("more_body"):
                break
        try:
            done = await invalidate(json.loads(body))
        except (CacheError, ValueError, RecursionError) as error:
            return await _send_json(send, 400, {"error": str(error)})
        return await _send_json(send, 200, {"invalidated": done})

    # A timer of the event loop: no thread, and no task that somebody would have to end. It ends with the loop.

    def _watch(self) -> None:
        if self._history.is_due:
            self._history.look(SQLModelCache.stats())
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.get_running_loop()
            self._loop.call_later(STEP, self._tick, self._loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._history.is_due:
            self._history.look(SQLModelCache.stats())
        loop.call_later(STEP, self._tick, loop)


def _page(title: str) -> tuple[bytes, str]:
    """Return the page, and the policy that lets it run what is in it and nothing else."""
    folder = files(__name__)
    parts = {name: folder.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in parts.items()}
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    for name, text in {**parts, "title": html.escape(title)}.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['js']}'; style-src 'sha256-{hashes['css']}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return page.encode(), policy


def _path(scope: Mapping[str, Any]) -> str:
    """Return the path below where the application is mounted.

    By the ASGI specification `path` begins with `root_path`. It does not where FastAPI was told a prefix that a proxy
    takes away: then only what Starlette has added for its own mounts is in it.
    """
    path: str = scope["path"]
    root = str(scope.get("root_path", "")).rstrip("/")
    for prefix in (root, root.removeprefix(str(scope.get("app_root_path", "")))):
        if prefix and (path == prefix or path.startswith(f"{prefix}/")):
            return path[len(prefix) :]
    return path


def _asked(scope: Mapping[str, Any]) -> tuple[str, int]:
    """Return the process, and the number of the last of its points, that the page knows of already."""
    given = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    process, since = (given.get(name, [""])[0] for name in ("process", "since"))
    return process, int(since) if since.isascii() and since.isdigit() and len(since) < 10 else 0


def _is_own(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request comes from the page itself, as the browser says, and not from another site's.

    1 the user is logged in   2 looks at another site   3 that sends a form here: with the user's cookies
    """
    if headers.get(ACTION_HEADER) != b"invalidate" or not headers.get(b"content-type", b"").startswith(
        b"application/json"
    ):
        return False
    site = headers.get(b"sec-fetch-site")
    if site is not None:  # also right behind a proxy that changes the host; browsers send it over TLS only
        return site == b"same-origin"
    origin, host = headers.get(b"origin", b"").decode("latin-1"), headers.get(b"host", b"").decode("latin-1")
    return bool(host) and urlsplit(origin).netloc.lower() == host.lower()


async def _send_json(send: Send, status: int, value: Any) -> None:
    await _send(send, status, msgspec.json.encode(value), {"content-type": "application/json"})


async def _send(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    lines = {**_SECURITY, **headers, "content-length": str(len(body))}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _without_body(send: Send) -> Send:
    """Return what sends an answer's headers only."""

    async def headers_only(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return headers_only


async def _live(receive: Receive, send: Send) -> None:
    """Start and stop, where a server runs nothing but the dashboard."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
