"""Answers as streams of events. Start at `EventStream`.

Differs from Starlette's StreamingResponse, which never closes the connection afterwards on
Hypercorn and leaves its generator to the garbage collector when the app is gone: here the answer
is opened, read and closed inside one block, which a hang-up cancels (`connection`). Until a donor
has accepted, or `hold_s` has passed, nothing is sent, so that a failure is a plain HTTP error.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from typing import Final

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokenplace.api_shim.answer import Answers
from tokenplace.api_shim.envelope import Envelope
from tokenplace.api_shim.form import AnswerForm, Json, Part
from tokenplace.api_shim.history import History
from tokenplace.api_shim.refusal import refusal_of
from tokenplace.api_shim.together import open_parts
from tokenplace.defaults import API_ABORT_AFTER_S
from tokenplace.generation import Generator

ACCEPTED_BY: Final = "x-tokenplace-accepted-by"
SERVED_MODEL: Final = "x-tokenplace-model"
SSE_TYPE: Final = "text/event-stream"
DONE: Final = b"data: [DONE]\n\n"
# Line ends to many clients' line splitters, though not to the standard: escaped, as JSON allows.
LINE_ENDS: Final = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}
_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encode_event(data: Json) -> bytes:
    """One event. No byte of `data` can end it early: JSON escapes line breaks."""
    text = _encoder.encode(data)
    if not text.isascii():
        text = text.translate(LINE_ENDS)
    return f"data: {text}\n\n".encode()


def encode_comment(text: str) -> bytes:
    """A line that every client skips. `text` is ours, never an app's or a donor's."""
    return f": {text}\n\n".encode()


def served_headers(accepted_by: str, served: str) -> dict[str, str]:
    """Who answers, and with what, as far as it is known."""
    headers = {ACCEPTED_BY: accepted_by, SERVED_MODEL: served}
    return {name: value for name, value in headers.items() if value}


class EventStream(Response):
    """A response that runs the requests of `answers` and streams the answer in `form`.

    hold_s: seconds that status and headers wait for a donor's yes or no. keepalive_s: seconds of
    silence after which a comment is sent. Errors before the headers are raised; later ones become
    an event, after which the connection is aborted: no [DONE], no orderly end of the body.
    """

    def __init__(
        self,
        generator: Generator,
        answers: Answers,
        form: AnswerForm,
        envelope: Envelope,
        history: History,
        hold_s: float,
        keepalive_s: float,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = form.media_type
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._generator = generator
        self._answers = answers
        self._form = form
        self._envelope = envelope
        self._history = history
        self._hold_s = hold_s
        self._keepalive_s = keepalive_s
        self._begin = form.begin()  # what goes out with the first text
        self._started = False
        self._n_told = 0  # of `Answers.n_continued`

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = await self._stream(send)
        # Without a last message Hypercorn drops the connection, which is what an abort is.
        if last is not None:
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _stream(self, send: Send) -> bytes | None:
        """Send all but the end, and return that; None when the stream is to be aborted."""
        answers = self._answers
        try:
            async with open_parts(self._generator, answers.each) as parts:
                if await self._wait_accepted(parts):
                    await self._start(send)
                    await self._send_text(parts, send)
            finish_reasons = answers.require_end()
        except Exception as error:  # a generator is a seam: whatever breaks, no quiet end
            if not self._started:
                raise
            refusal = self._history.told_in(refusal_of(error))
            failure = self._form.encode(self._envelope.error(self._form.error(refusal)))
            await self._send(self._tell_route() + failure, send)
            await trio.sleep(API_ABORT_AFTER_S)
            return None
        end = [*self._take_begin(), *self._form.end(finish_reasons, answers.usage)]
        served_by = self._form.comment(f"served by {answers.accepted_by}")
        how = self._how_often_continued() + self._tell_route() + served_by
        return self._encode(end) + how + self._form.last

    async def _wait_accepted(self, parts: AsyncIterator[list[Part]]) -> bool:
        """Has a donor accepted, or was the time up? False if the answer ended: an error follows."""
        with trio.move_on_after(self._hold_s):
            while not self._answers.accepted_by:
                if await anext(parts, None) is None:
                    return False
        return True

    async def _start(self, send: Send) -> None:
        # Set before sending: from here on an error can no longer change the status.
        self._started = True
        served = served_headers(self._answers.accepted_by, self._answers.served)
        told = {**served, **self._history.headers(is_over=False)}
        headers = [*self.raw_headers, *((n.encode(), value.encode()) for n, value in told.items())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_text(self, all_parts: AsyncIterator[list[Part]], send: Send) -> None:
        silent_since = trio.current_time()
        while True:
            parts = None
            with trio.move_on_at(silent_since + self._keepalive_s) as waiting:
                parts = await anext(all_parts, None)
            if waiting.cancelled_caught:
                data = self._form.comment(self._answers.wait)
            elif parts is None:
                break
            else:
                data = self._tell_continued() + self._encode_parts(parts)
            if not data:
                continue
            await self._send(data, send)
            silent_since = trio.current_time()

    def _tell_continued(self) -> bytes:
        """A comment, if somebody else has gone on with the answer since the last one."""
        if self._answers.n_continued == self._n_told:
            return b""
        self._n_told = self._answers.n_continued
        return self._form.comment(f"continued on {self._answers.accepted_by}")

    def _how_often_continued(self) -> bytes:
        n = self._answers.n_continued
        return self._form.comment(f"continued, times: {n}") if n else b""

    def _tell_route(self) -> bytes:
        route = self._history.route
        return self._form.comment(f"route: {route}") if route else b""

    def _encode_parts(self, parts: list[Part]) -> bytes:
        deltas = [event for part in parts for event in self._form.deltas(part)]
        return self._encode([*self._take_begin(), *deltas]) if parts else b""

    def _take_begin(self) -> list[Json]:
        begin, self._begin = self._begin, []
        return begin

    def _encode(self, events: Iterable[Json]) -> bytes:
        """Several events, to be sent at once."""
        return b"".join(self._form.encode(self._envelope.event(event)) for event in events)

    async def _send(self, data: bytes, send: Send) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
