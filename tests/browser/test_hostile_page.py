"""A hostile page in a real browser reaches inference 0 times, and reads nothing.

It is served from another port, under another name, by the API's own port under a name of its own
(what DNS rebinding comes to), and from a frame without an origin. `hostile.js` has the ways.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.api_shim.serving import FakeCatalog
from tests.browser.chromium import Browser
from tests.fakes import EchoEngine
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.guard import Guard
from tokenplace.api_shim.server import serve_api

SCRIPT = Path(__file__).with_name("hostile.js").read_text("utf-8")
# Enough of the ways into a naive server must work, or the test would prove nothing.
N_NAIVE_HITS = 15


@dataclass
class NaiveServer:
    """Does what anybody asks: an ASGI app that notes each request, and allows reading to all."""

    requests: list[tuple[str, bytes]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        self.requests.append((scope["method"], body))
        allowed = {"access-control-allow-origin": "*", "access-control-allow-headers": "*"}
        await JSONResponse({"secret": "name of a model"}, headers=allowed)(scope, receive, send)

    @property
    def n_prompts(self) -> int:
        return sum(b"stolen" in body for _, body in self.requests)


async def hostile_server(scope: Scope, receive: Receive, send: Send) -> None:
    await HTMLResponse(f"<!doctype html><body><script>{SCRIPT}</script>")(scope, receive, send)


@asynccontextmanager
async def served(*apps: ASGIApp) -> AsyncIterator[list[int]]:
    """The apps' ports."""
    async with trio.open_nursery() as nursery:
        yield [await nursery.start(partial(serve_api, app, port=0)) for app in apps]
        nursery.cancel_scope.cancel()


async def attack(browser: Browser, page_url: str, *bases: str) -> dict[str, object]:
    """What the page at `page_url` got out of each of `bases`. A page that does not bring the script
    along, because the API has answered instead of it, is given it: so it is with DNS rebinding.
    """
    page = await browser.open_page(page_url)
    if not await page.evaluate("typeof attack === 'function'"):
        await page.evaluate(f"{SCRIPT}\nglobalThis.attack = attack; 1")
    outcome: dict[str, object] = await page.evaluate(f"attack(...{json.dumps(bases)})")
    assert outcome["tried"] >= 30 * len(bases)  # type: ignore[operator]
    return outcome


async def test_a_naive_server_is_at_everybodys_service(browser: Browser) -> None:
    naive = NaiveServer()
    async with served(naive, hostile_server) as (port, hostile_port):
        page = f"http://evil.test:{hostile_port}/"
        outcome = await attack(browser, page, f"http://127.0.0.1:{port}")
    assert naive.n_prompts >= 5
    assert len(naive.requests) >= N_NAIVE_HITS
    assert "fetch of the models" in outcome["read"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("page", "base"),
    [
        ("http://evil.test:{hostile_port}/", "http://127.0.0.1:{port}"),
        ("http://evil.test:{hostile_port}/", "http://localhost:{port}"),
        ("http://127.0.0.1:{hostile_port}/", "http://127.0.0.1:{port}"),
        ("http://evil.test:{hostile_port}/", "http://rebound.test:{port}"),
        ("http://rebound.test:{port}/", "http://rebound.test:{port}"),
        ("http://rebound.test:{port}/", "http://127.0.0.1:{port}"),
        ("data:text/html,<body>", "http://127.0.0.1:{port}"),
    ],
)
async def test_a_hostile_page_reaches_nothing(browser: Browser, page: str, base: str) -> None:
    engine, behind = EchoEngine(), NaiveServer()
    app = create_app(engine, FakeCatalog())
    async with served(app, Guard(behind), hostile_server) as (api_port, bare_port, hostile_port):
        page_url = page.format(port=api_port, hostile_port=hostile_port)
        # The whole API, and whatever passes its guard.
        bases = [base.format(port=port) for port in (api_port, bare_port)]
        outcome = await attack(browser, page_url, *bases)
    assert outcome["read"] == []
    assert engine.requests == []
    assert behind.requests == []
