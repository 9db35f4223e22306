"""Server-sent events, byte by byte."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from tests.api_shim.serving import (
    CHAT,
    RefusingGenerator,
    ScriptedGenerator,
    http_client,
    port_of,
    post,
    raw_exchange,
    serving,
    wait_until,
)
from tests.fakes import EchoEngine
from tests.peer.exchange_lab import make_request
from tokenplace.api_shim.answer import Answers
from tokenplace.api_shim.sse import encode_event
from tokenplace.errors import ConnectionLost, DonorBusy
from tokenplace.generation import (
    Accepted,
    Alive,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    Phase,
    Timings,
    Tokens,
    Usage,
)

ALICE = "12D3KooWAlice"
PATH = "/v1/chat/completions"
STREAM = {**CHAT, "stream": True}
ACCEPTED = Accepted(bytes(32), 7, 3, 4096, 100, "tp/1", 10, 2, donor=ALICE)
FINISHED = Finished((ChoiceEnd(0, EogStop(2)),), Usage(7, 3, 2), Timings(0, 1, 2))


def tokens(index: int, *pieces: bytes) -> Tokens:
    return Tokens(0, index, tuple(range(len(pieces))), pieces)


WHOLE: list[Event] = [ACCEPTED, tokens(0, b"Hel", b"lo"), FINISHED]


class RawAnswer:
    """What came back so far."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.data = b""

    async def read_until(self, expected: bytes) -> None:
        with trio.fail_after(5):
            while expected not in self.data:
                received = await self._stream.receive_some()
                assert received, f"ended without {expected!r}: {self.data!r}"
                self.data += received

    async def has_silence(self, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            self.data += await self._stream.receive_some()
            return False
        return True


@asynccontextmanager
async def asking(address: str, body: dict[str, Any] = STREAM) -> AsyncIterator[RawAnswer]:
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
    async with stream:
        await stream.send_all(post(PATH, json.dumps(body).encode(), port_of(address)))
        yield RawAnswer(stream)


async def ask_raw(address: str, body: dict[str, Any] = STREAM) -> bytes:
    port = port_of(address)
    return await raw_exchange(
        address, post(PATH, json.dumps(body).encode(), port, "Connection: close")
    )


def events_of(data: bytes) -> list[dict[str, Any]]:
    lines = [line for line in data.decode().splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_whole_stream_says_who_served_and_ends_orderly() -> None:
    async with serving(ScriptedGenerator(WHOLE)) as address:
        data = await ask_raw(address)
    assert b"x-tokenplace-accepted-by: 12D3KooWAlice\r\n" in data
    assert b"content-type: text/event-stream" in data
    assert b": served by 12D3KooWAlice\n\ndata: [DONE]\n\n" in data
    assert data.endswith(b"0\r\n\r\n")
    texts = [event["choices"][0]["delta"].get("content", "") for event in events_of(data)]
    assert texts == ["", "Hello", ""]


async def test_failure_in_mid_stream_is_an_event_and_an_aborted_connection() -> None:
    generator = ScriptedGenerator(WHOLE[:2], error=ConnectionLost())
    async with serving(generator) as address:
        data = await ask_raw(address)
    assert data.startswith(b"HTTP/1.1 200")
    assert events_of(data)[-1]["error"]["code"] == "connection_lost"
    assert b"[DONE]" not in data
    assert b'"finish_reason":"stop"' not in data
    assert not data.endswith(b"0\r\n\r\n")


async def test_a_stream_that_another_donor_goes_on_with_says_so() -> None:
    bob = replace(ACCEPTED, donor="12D3KooWBob")
    script = [*WHOLE[:2], bob, bob, tokens(2, b"!"), WHOLE[-1]]
    async with serving(ScriptedGenerator(script)) as address:
        data = await ask_raw(address)
    assert b"x-tokenplace-accepted-by: 12D3KooWAlice\r\n" in data
    assert data.count(b": continued on 12D3KooWBob\n\n") == 2
    assert b": continued, times: 2\n\n: served by 12D3KooWBob\n\ndata: [DONE]\n\n" in data
    texts = [event["choices"][0]["delta"].get("content", "") for event in events_of(data)]
    assert texts == ["", "Hello", "!", ""]
    assert data.endswith(b"0\r\n\r\n")


async def test_answer_without_its_last_event_is_a_failure() -> None:
    async with serving(ScriptedGenerator(WHOLE[:2])) as address:
        streamed = await ask_raw(address)
        plain = await ask_raw(address, CHAT)
    assert events_of(streamed)[-1]["error"]["code"] == "protocol_error"
    assert not streamed.endswith(b"0\r\n\r\n")
    assert plain.startswith(b"HTTP/1.1 502")


async def test_headers_wait_until_a_donor_accepts() -> None:
    accept = trio.Event()
    async with (
        serving(ScriptedGenerator(WHOLE, {0: accept}), hold_s=60) as address,
        asking(address) as answer,
    ):
        assert await answer.has_silence(0.2)
        accept.set()
        await answer.read_until(b"x-tokenplace-accepted-by: 12D3KooWAlice\r\n")
        await answer.read_until(b"[DONE]")


async def test_headers_are_sent_when_nobody_has_accepted_in_time() -> None:
    accept = trio.Event()
    generator = ScriptedGenerator(WHOLE, {0: accept})
    async with (
        serving(generator, hold_s=0.05, keepalive_s=0.05) as address,
        asking(address) as answer,
    ):
        await answer.read_until(b": looking for a donor\n\n")
        assert answer.data.startswith(b"HTTP/1.1 200")
        assert b"x-tokenplace-accepted-by" not in answer.data
        accept.set()
        await answer.read_until(b": served by 12D3KooWAlice\n\ndata: [DONE]\n\n")


async def test_refusal_after_the_headers_is_an_event() -> None:
    generator = RefusingGenerator(DonorBusy(), delay_s=0.1)
    async with serving(generator, hold_s=0.01) as address:
        data = await ask_raw(address)
    assert data.startswith(b"HTTP/1.1 200")
    assert [event["error"]["code"] for event in events_of(data)] == ["busy"]
    assert not data.endswith(b"0\r\n\r\n")


async def test_queue_position_is_told_while_nothing_comes() -> None:
    token = trio.Event()
    events: list[Event] = [ACCEPTED, Alive(Phase.QUEUED, 0.0, 2, 8000), *WHOLE[1:]]
    async with (
        serving(ScriptedGenerator(events, {2: token}), keepalive_s=0.02) as address,
        asking(address) as answer,
    ):
        said = b"position 2 at 12D3KooWAlice, first token in about 8 s"
        await answer.read_until(b": waiting: " + said + b"\n\n")
        assert b"data:" not in answer.data  # the first chunk is the first token
        token.set()
        await answer.read_until(b"[DONE]")
        assert b'"role":"assistant"' in answer.data


async def test_stop_string_ends_the_answer_and_frees_the_generator() -> None:
    never = trio.Event()
    events: list[Event] = [ACCEPTED, tokens(0, b"one E"), tokens(1, b"N", b"D two"), FINISHED]
    generator = ScriptedGenerator(events, {3: never})
    body = {**STREAM, "stop": "END", "stream_options": {"include_usage": True}}
    async with serving(generator) as address:
        data = await ask_raw(address, body)
        await wait_until(lambda: generator.n_running == 0)
    *chunks, usage = events_of(data)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "one "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["prompt_tokens"] == 7
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


async def test_stop_string_ends_a_plain_answer_too() -> None:
    events: list[Event] = [ACCEPTED, tokens(0, b"one E"), tokens(1, b"N", b"D two"), FINISHED]
    generator = ScriptedGenerator(events, {3: trio.Event()})
    async with serving(generator) as address, http_client(address) as client:
        answer = (await client.post(PATH, json={**CHAT, "stop": ["END"]})).json()
    assert answer["choices"][0]["message"]["content"] == "one "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 3
    assert generator.n_running == 0


async def test_whole_answer_is_not_taken_for_cancelled() -> None:
    engine = EchoEngine()
    async with serving(engine) as address:
        await ask_raw(address)
        await ask_raw(address, CHAT)
    assert (len(engine.requests), engine.n_cancelled) == (2, 0)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], "looking for a donor"),
        ([ACCEPTED], "waiting: position 2 at 12D3KooWAlice, first token in about 1 s"),
        ([ACCEPTED, Alive(Phase.QUEUED, 0.0, 0)], "waiting: next at 12D3KooWAlice"),
        ([ACCEPTED, Alive(Phase.PREFILL, 0.4, 0, 2100)], "reading the prompt, 40 %, about 2 s"),
        ([ACCEPTED, tokens(0, b"one")], "writing the answer"),
    ],
)
def test_wait_is_described(events: list[Event], words: str) -> None:
    answers = Answers([make_request()])
    for event in events:
        answers.each[0].receive(event)
    assert answers.wait == words


async def test_empty_answer_still_has_its_role_and_end() -> None:
    async with serving(ScriptedGenerator([ACCEPTED, FINISHED])) as address:
        begin, end = events_of(await ask_raw(address))
    assert begin["choices"][0]["delta"]["role"] == "assistant"
    assert end["choices"][0]["finish_reason"] == "stop"


async def test_unexpected_fault_is_told_and_logged_without_any_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault = RuntimeError("CANARY of a prompt")
    with caplog.at_level(logging.DEBUG):
        async with serving(RefusingGenerator(fault)) as address:
            plain = await ask_raw(address, CHAT)
            streamed = await ask_raw(address)
        async with serving(RefusingGenerator(fault, delay_s=0.1), hold_s=0.01) as address:
            event = await ask_raw(address)
    for answer in (plain, streamed):
        assert answer.startswith(b"HTTP/1.1 500")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "internal"
    assert events_of(event)[-1]["error"]["code"] == "internal"
    assert b"CANARY" not in plain + streamed + event
    assert b"Traceback" not in plain + streamed + event
    assert "CANARY" not in caplog.text
    assert "unexpected RuntimeError" in caplog.text


async def test_apps_with_different_keys_get_different_cache_scopes() -> None:
    engine = EchoEngine()
    async with serving(engine) as address, http_client(address) as client:
        for key in ("one", "two", "one"):
            headers = {"authorization": f"Bearer {key}"}
            await client.post(PATH, json=CHAT, headers=headers)
    one, two, again = [request.cache_scope for request in engine.requests]
    assert one == again != two
    assert len({request.seed for request in engine.requests}) == 3


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\n", "\r", "\x0b", "\x1c"])
def test_no_character_breaks_a_line_of_an_event(char: str) -> None:
    data = encode_event({"text": f"a{char}b"})
    assert len(data.decode().splitlines()) == 2
    assert json.loads(data.decode().removeprefix("data: ")) == {"text": f"a{char}b"}
