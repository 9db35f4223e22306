"""A peer's API with the page, and what a user does on it. Start at `serve_page` and `Chatting`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.api_shim.serving import CREATED, TINY_MODEL
from tests.browser.chromium import Browser, Page
from tests.fakes import EchoEngine
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.catalog import ModelCard
from tokenplace.api_shim.server import serve_api
from tokenplace.errors import ModelNotFound
from tokenplace.generation import Generator

ALIAS = "llama-3-8b-instruct"


@dataclass
class Offers:
    """A catalog whose models a test may change."""

    models: list[str] = field(default_factory=lambda: [TINY_MODEL])

    async def list_models(self) -> Sequence[ModelCard]:
        own = [ModelCard(name, CREATED) for name in self.models]
        return own + [ModelCard("auto", CREATED), ModelCard(ALIAS, CREATED, TINY_MODEL)] * bool(own)

    async def get_model(self, name: str) -> ModelCard:
        for card in await self.list_models():
            if card.id == name:
                return card
        raise ModelNotFound


@dataclass
class PagePeer:
    """The API at `address`. `restart` puts a new one, with new keys, in its place."""

    generator: Generator
    offers: Offers
    options: dict[str, Any]
    address: str = ""

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._app: ASGIApp = create_app(self.generator, self.offers, **self.options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


@asynccontextmanager
async def serve_page(
    generator: Generator | None = None, offers: Offers | None = None, **options: Any
) -> AsyncIterator[PagePeer]:
    """Serve until the block exits."""
    peer = PagePeer(generator or EchoEngine(), offers or Offers(), options)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_api, peer, port=0))
        peer.address = f"http://127.0.0.1:{port}"
        yield peer
        nursery.cancel_scope.cancel()


@dataclass
class Chatting:
    """The page in a tab, as its user sees it."""

    page: Page

    @classmethod
    async def open(cls, browser: Browser, peer: PagePeer, before: str = "") -> Chatting:
        """Load the page and wait until it is ready. before: a script that runs before its own."""
        page = await browser.open_page()
        if before:
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        await page.go(f"{peer.address}/")
        await page.wait_for(f"{shown('#network')} || !{one('#nobody')}.hidden")
        return cls(page)

    async def write(self, text: str) -> None:
        await self.page.click("#prompt")
        await self.page.write(text)

    async def ask(self, text: str) -> None:
        """Write a message and send it, as a keyboard does."""
        await self.write(text)
        await self.page.press("Enter")

    async def answer(self) -> str:
        """Wait until the latest answer has ended; its text."""
        await self.page.wait_for(f"{one('#stop')}.hidden && {one('.turn')} !== null")
        return await self.latest(".answer")

    async def wait_in_answer(self, text: str) -> None:
        await self.page.wait_for(f"{shown('.turn:last-of-type .answer')}.includes({quoted(text)})")

    async def latest(self, selector: str) -> str:
        """The text of a part of the latest turn."""
        return str(await self.page.evaluate(shown(f".turn:last-of-type {selector}")))


def one(selector: str) -> str:
    """JavaScript for one element."""
    return f"document.querySelector({quoted(selector)})"


def shown(selector: str) -> str:
    """JavaScript for the text that an element shows; empty if there is none or it is hidden."""
    found = one(selector)  # innerText of a hidden element is not empty
    return f"({found}?.checkVisibility() ? {found}.innerText : '')"


def quoted(text: str) -> str:
    return json.dumps(text)
