"""An app that asks one question of a peer's API. Start at `Question.ask`.

Raw HTTP, so that every byte of the answer is seen as it comes; `stream.py` judges them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from benchmarks.drills.stream import End, Stream

HANG_S: Final = 60.0  # far beyond every deadline that ends an answer in a drill
ACCEPTED_BY: Final = "x-tokenplace-accepted-by"
ROUTE: Final = "x-tokenplace-route"
ROUTE_COMMENT: Final = "route: "


@dataclass
class Question:
    """One request, and what has come of it.

    on_news: called after whatever comes, in the same instant: breaking something there breaks it
    at that very place of the answer. Times are trio's; donor is who accepted first. status: of
    HTTP; 0 while none came. told_route: who was asked, as a header says it.
    is_hanging: no end came in `HANG_S`.
    """

    body: Mapping[str, Any]
    on_news: Callable[[Question], None] = lambda question: None
    stream: Stream = field(init=False)
    whole: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    donor: str = ""
    told_route: str = ""
    error: str = ""
    is_hanging: bool = False
    sent_at: float = 0.0
    ended_at: float | None = None
    leaving: trio.CancelScope = field(default_factory=trio.CancelScope)
    _news: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.stream = Stream(n_choices=self.body.get("n", 1))

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def first_text_s(self) -> float | None:
        """Seconds until the first text came; of an answer that comes whole, until it did."""
        if self.is_streamed:
            moments = self.stream.moments
            return moments[0][0] - self.sent_at if moments else None
        return self.ended_at - self.sent_at if self.ended_at and self.whole else None

    @property
    def is_answered(self) -> bool:
        """Did a whole and valid answer come?"""
        if self.is_streamed:
            return self.stream.end is End.WHOLE and not self.stream.faults
        return self.status == httpx.codes.OK

    @property
    def route(self) -> list[str]:
        """Each attempt at it and what became of that, `DONOR=OUTCOME@PHASE`, as the app was told at
        the end.
        """
        told = [self.told_route] if self.told_route else []
        told += [
            comment.removeprefix(ROUTE_COMMENT)
            for comment in self.stream.comments
            if comment.startswith(ROUTE_COMMENT)
        ]
        return told[-1].split(", ") if told else []

    def with_route(self, problem: str) -> str:
        """The same, with who was asked: where to begin to look for the cause. Empty stays empty."""
        return f"{problem} [{', '.join(self.route)}]" if problem else ""

    @property
    def essence(self) -> tuple[Any, ...]:
        """See `Stream.essence`; the same for an answer that came whole."""
        if self.is_streamed:
            return self.stream.essence
        usage = self.whole.get("usage", {})
        choices = [
            (choice["index"], choice["message"]["content"], (), choice["finish_reason"])
            for choice in self.whole.get("choices", ())
        ]
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        return (*choices, *(usage.get(name) for name in names))

    @property
    def problem(self) -> str:
        """What an app would tell its user, and which rules the answer broke; empty if nothing."""
        parts = [*self.stream.faults, self.error, self.stream.error]
        if self.is_hanging:
            parts.append(f"no end after {HANG_S:.0f} s")
        return ", ".join(part for part in parts if part)

    async def ask(self, api: str, api_socket: Path | None = None) -> None:
        """Ask, and take all that comes. Raises nothing for an answer that fails.

        api_socket: the peer's, if it is to be asked through that. Cancelling `leaving` hangs up in
        the middle.
        """
        self.sent_at = trio.current_time()
        # Without certificates, which take 60 ms to load.
        uds = str(api_socket) if api_socket else None
        transport = httpx.AsyncHTTPTransport(verify=False, uds=uds)
        try:
            with trio.move_on_after(HANG_S) as patience, self.leaving:
                async with httpx.AsyncClient(transport=transport, timeout=None) as client:
                    await self._exchange(client, f"{api}/chat/completions")
            self.is_hanging = patience.cancelled_caught
        except httpx.HTTPError as error:
            self.error = self.error or type(error).__name__
        finally:
            self.ended_at = trio.current_time()
            self._tell()

    async def _exchange(self, client: httpx.AsyncClient, url: str) -> None:
        async with client.stream("POST", url, json=dict(self.body)) as response:
            self.status, self.donor = response.status_code, response.headers.get(ACCEPTED_BY, "")
            self.told_route = response.headers.get(ROUTE, "")
            self._tell()
            if self.status != httpx.codes.OK or not self.is_streamed:
                self.whole = json.loads(await response.aread())
                if self.status != httpx.codes.OK:
                    self.error = str(self.whole["error"]["code"])
                return
            try:
                async for data in response.aiter_raw():
                    self.stream.take(data, trio.current_time())
                    self._tell()
            except httpx.RemoteProtocolError:
                self.stream.close(trio.current_time(), is_orderly=False)
            else:
                self.stream.close(trio.current_time(), is_orderly=True)

    async def wait(self, condition: Callable[[], object]) -> bool:
        """Return once it holds, or the answer has ended; whether it holds."""
        while not condition() and self.ended_at is None:
            await self._news.wait()
        return bool(condition())

    def _tell(self) -> None:
        self.on_news(self)
        self._news.set()
        self._news = trio.Event()


async def ask(api: str, body: Mapping[str, Any]) -> Question:
    """Ask and wait for the answer."""
    question = Question(body)
    await question.ask(api)
    return question


def chat(model: str, prompt: str, n_tokens: int, **more: Any) -> dict[str, Any]:
    """The body of a streamed chat whose answer has so many tokens, and is always the same."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": n_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


def whole(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same question, to be answered in one piece."""
    return {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
