"""Answers as server-sent events. Start at `EventStream`.

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

from tokenplace.api_shim.answer import Answer
from tokenplace.api_shim.refusal import refusal_of
from tokenplace.api_shim.translate import AnswerForm, Json
from tokenplace.generation import Event, GenerateRequest, Generator, Phase

ACCEPTED_BY: Final = "x-tokenplace-accepted-by"
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


def encode_events(events: Iterable[Json]) -> bytes:
    """Several events, to be sent at once."""
    return b"".join(map(encode_event, events))


def encode_comment(text: str) -> bytes:
    """A line that every client skips. `text` is ours, never an app's or a donor's."""
    return f": {text}\n\n".encode()


def accepted_by_headers(answer: Answer) -> dict[str, str]:
    """Who answers, once it is known."""
    return {ACCEPTED_BY: answer.accepted_by} if answer.accepted_by else {}


def describe_wait(answer: Answer) -> str:
    """Why there is no text yet."""
    if not answer.accepted_by:
        return "looking for a donor"
    if answer.phase is Phase.QUEUED and answer.position:
        return f"queued, {answer.position} ahead"
    return answer.phase.value


class EventStream(Response):
    """A response that runs `request` and streams its answer in `form`.

    hold_s: seconds that status and headers wait for a donor's yes or no. keepalive_s: seconds of
    silence after which a comment is sent. Errors before the headers are raised; later ones become
    an event, after which the connection is aborted: no [DONE], no orderly end of the body.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generator: Generator,
        request: GenerateRequest,
        form: AnswerForm,
        *,
        hold_s: float,
        keepalive_s: float,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._generator = generator
        self._request = request
        self._form = form
        self._hold_s = hold_s
        self._keepalive_s = keepalive_s
        self._begin = form.begin(request.n)  # what goes out with the first text
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = await self._stream(send)
        # Without a last message Hypercorn drops the connection, which is what an abort is.
        if last is not None:
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _stream(self, send: Send) -> bytes | None:
        """Send all but the end, and return that; None when the stream is to be aborted."""
        answer = Answer(self._request.stop, self._request.n)
        try:
            async with self._generator.generate(self._request) as events:
                if await self._wait_accepted(answer, events):
                    await self._start(answer, send)
                    await self._send_text(answer, events, send)
            finish_reasons = answer.require_end()
        except Exception as error:  # a generator is a seam: whatever breaks, no quiet end
            if not self._started:
                raise
            await self._send(encode_event(refusal_of(error).body), send)
            return None
        end = self._encode_begin() + encode_events(self._form.end(finish_reasons, answer.usage))
        return end + encode_comment(f"served by {answer.accepted_by}") + DONE

    async def _wait_accepted(self, answer: Answer, events: AsyncIterator[Event]) -> bool:
        """Has a donor accepted, or was the time up? False if the events ended: an error follows."""
        with trio.move_on_after(self._hold_s):
            while not answer.accepted_by:
                event = await anext(events, None)
                if event is None:
                    return False
                answer.receive(event)
        return True

    async def _start(self, answer: Answer, send: Send) -> None:
        # Set before sending: from here on an error can no longer change the status.
        self._started = True
        who = [(k.encode(), v.encode()) for k, v in accepted_by_headers(answer).items()]
        headers = [*self.raw_headers, *who]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_text(self, answer: Answer, events: AsyncIterator[Event], send: Send) -> None:
        silent_since = trio.current_time()
        while not answer.is_cut:
            event = None
            with trio.move_on_at(silent_since + self._keepalive_s) as waiting:
                event = await anext(events, None)
            if waiting.cancelled_caught:
                data = encode_comment(describe_wait(answer))
            elif event is None:
                break
            elif texts := answer.receive(event):
                deltas = (self._form.delta(choice, text) for choice, text in texts)
                data = self._encode_begin() + encode_events(deltas)
            else:
                continue
            await self._send(data, send)
            silent_since = trio.current_time()

    def _encode_begin(self) -> bytes:
        begin, self._begin = self._begin, []
        return encode_events(begin)

    async def _send(self, data: bytes, send: Send) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
