"""The dialect over real HTTP: tools, log-probabilities, several prompts, headers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import trio

from tests.api_shim.serving import (
    CHAT,
    TINY_MODEL,
    ScriptedGenerator,
    http_client,
    port_of,
    post,
    serving,
    wait_until,
)
from tests.fakes import EchoEngine
from tokenplace.errors import ContextLengthExceeded
from tokenplace.generation import (
    Accepted,
    ChatInput,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    LengthStop,
    Stop,
    TextInput,
    Timings,
    Tokens,
    Usage,
)

ALICE = "12D3KooWAlice"
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
SERVED = "tiny@sha256:b179c9523d0e"
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
CALL_TEXT = b'<tool_call>\n{"name": "look_up", "arguments": {"word": "Spende"}}\n</tool_call>'


def script(*pieces: bytes, stop: Stop | None = None, begun: str = "") -> ScriptedGenerator:
    """A donor that says these tokens."""
    return ScriptedGenerator(
        [
            Accepted(bytes(32), 7, 3, 4096, 100, "tp/1", 1, 0, begun, donor=ALICE, served=SERVED),
            *(Tokens(0, index, (index,), (piece,)) for index, piece in enumerate(pieces)),
            Finished(
                (ChoiceEnd(0, stop or EogStop(2)),), Usage(7, 3, len(pieces)), Timings(0, 1, 2)
            ),
        ]
    )


def events_of(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if "data: {" in line]
    return [json.loads(line) for line in lines]


async def ask(generator: Any, body: dict[str, Any], path: str = CHAT_PATH) -> httpx.Response:
    async with serving(generator) as address, http_client(address) as client:
        return await client.post(path, json=body)


async def test_a_call_is_answered_plain_and_streamed_with_one_id_each() -> None:
    pieces = [CALL_TEXT[i : i + 5] for i in range(0, len(CALL_TEXT), 5)]
    body = {**CHAT, "tools": TOOLS}
    (choice,) = (await ask(script(*pieces), body)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "look_up")
    assert json.loads(call["function"]["arguments"]) == {"word": "Spende"}
    events = events_of(await ask(script(*pieces), {**body, "stream": True}))
    deltas = [event["choices"][0]["delta"] for event in events]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["id"] for call in calls if "id" in call] == [calls[0]["id"]]
    streamed = "".join(call["function"]["arguments"] for call in calls)
    assert streamed == call["function"]["arguments"]
    assert len(calls) > 3  # in pieces, as they came
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_without_tools_or_with_none_wanted_nothing_is_a_call() -> None:
    for body in (CHAT, {**CHAT, "tools": TOOLS, "tool_choice": "none"}):
        (choice,) = (await ask(script(CALL_TEXT), body)).json()["choices"]
        assert choice["message"]["content"] == CALL_TEXT.decode()
        assert choice["finish_reason"] == "stop"


async def test_a_call_cut_at_its_length_says_so() -> None:
    generator = script(CALL_TEXT[:-20], stop=LengthStop())
    (choice,) = (await ask(generator, {**CHAT, "tools": TOOLS})).json()["choices"]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("begun", "pieces"),
    [("", [b"<think>Hm", b".</think>\n\nYes"]), ("<think>", [b"Hm.</think>Yes"])],
)
async def test_thoughts_stand_beside_the_text(begun: str, pieces: Sequence[bytes]) -> None:
    plain = await ask(script(*pieces, begun=begun), CHAT)
    message = plain.json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes")
    streamed = await ask(script(*pieces, begun=begun), {**CHAT, "stream": True})
    deltas = [event["choices"][0]["delta"] for event in events_of(streamed)]
    thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert thoughts == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes"


async def test_an_answer_with_a_form_has_no_thoughts_before_it() -> None:
    form = {"response_format": {"type": "json_object"}}
    answer = await ask(script(b'{"a": 1}', begun="<think>"), {**CHAT, **form})
    message = answer.json()["choices"][0]["message"]
    assert message["content"] == '{"a": 1}'
    assert "reasoning_content" not in message


async def test_logprobs_plain_and_streamed() -> None:
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    plain = (await ask(EchoEngine(), body)).json()["choices"][0]
    streamed = events_of(await ask(EchoEngine(), {**body, "stream": True}))
    tokens = plain["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == plain["message"]["content"]
    assert {len(token["top_logprobs"]) for token in tokens} == {2}
    parts = [event["choices"][0]["logprobs"] for event in streamed]
    assert [token for part in parts if part for token in part["content"]] == tokens


async def test_old_logprobs_plain_and_streamed() -> None:
    body = {"model": TINY_MODEL, "prompt": "Grüße", "logprobs": 1}
    plain = (await ask(EchoEngine(), body, TEXT_PATH)).json()["choices"][0]["logprobs"]
    streamed = events_of(await ask(EchoEngine(), {**body, "stream": True}, TEXT_PATH))
    assert plain["text_offset"] == [0, 2, 4]
    assert plain["tokens"] == ["bytes:\\x47\\x72\\xc3", "bytes:\\xbc\\xc3\\x9f", "e"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        parts = [event["choices"][0]["logprobs"] for event in streamed]
        assert [item for part in parts if part for item in part[name]] == plain[name]


async def test_prompts_times_n_are_choices_in_openais_order() -> None:
    engine = EchoEngine()
    prompts = ["Once", [7, 8], "there"]
    body = {"model": TINY_MODEL, "prompt": prompts, "n": 2, "max_tokens": 99}
    answer = (await ask(engine, body, TEXT_PATH)).json()
    texts = ["Once", "Once", "7 8", "7 8", "there", "there"]
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(
        enumerate(texts)
    )
    assert answer["usage"]["prompt_tokens"] == 2 + 1 + 2
    assert answer["usage"]["completion_tokens"] == 2 * (2 + 1 + 2)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *events, usage = events_of(await ask(engine, {**body, **options}, TEXT_PATH))
    for index, text in enumerate(texts):
        own = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert [choice["finish_reason"] for choice in own][-1] == "stop"
    assert usage["usage"] == answer["usage"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_echo_comes_first(is_streamed: bool) -> None:
    body = {"model": TINY_MODEL, "prompt": ["One", "Two"], "echo": True, "stream": is_streamed}
    answer = await ask(EchoEngine(), body, TEXT_PATH)
    objects = events_of(answer) if is_streamed else [answer.json()]
    texts = ["", ""]
    for choice in (choice for each in objects for choice in each["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == ["OneOne", "TwoTwo"]


@dataclass
class OneTooLong:
    """Refuses the prompt "long"."""

    engine: EchoEngine

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        if request.input == TextInput("long"):
            raise ContextLengthExceeded
        async with self.engine.generate(request) as events:
            async for event in events:
                yield event


async def test_one_prompt_that_fails_is_the_answers_error() -> None:
    engine = EchoEngine(token_interval_s=3600)
    body = {"model": TINY_MODEL, "prompt": ["One", "long"]}
    answer = await ask(OneTooLong(engine), body, TEXT_PATH)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert engine.n_running == 0


@pytest.mark.parametrize("body", [CHAT, {**CHAT, "stream": True}])
async def test_headers_say_who_served_what(body: dict[str, Any]) -> None:
    answer = await ask(script(b"Hi"), body)
    assert answer.headers["x-tokenplace-accepted-by"] == ALICE
    assert answer.headers["x-tokenplace-model"] == SERVED


async def test_every_answer_has_an_id_of_its_own() -> None:
    async with serving() as address, http_client(address) as client:
        answers = [
            await client.get("/v1/models"),
            await client.get("/v1/models/nothing"),
            await client.get("/nowhere"),
            await client.post(CHAT_PATH, json=CHAT),
            await client.post(CHAT_PATH, json={**CHAT, "stream": True}),
            await client.post(CHAT_PATH, content=b"{}"),
        ]
    assert [answer.status_code for answer in answers] == [200, 404, 404, 200, 200, 415]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)


async def test_metadata_comes_back_and_the_answers_model_is_what_was_asked() -> None:
    metadata = {"trace": "ALICE", "deep": [1, {"a": None}]}
    answer = await ask(script(b"Hi"), {**CHAT, "model": "an-alias", "metadata": metadata})
    assert answer.json()["metadata"] == metadata
    assert answer.json()["model"] == "an-alias"


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1", "/api/v2"])
async def test_chat_and_models_are_under_every_prefix(prefix: str) -> None:
    async with serving() as address, http_client(address) as client:
        chat = await client.post(f"{prefix}/chat/completions", json=CHAT)
        models = await client.get(f"{prefix}/models")
        text = await client.post(f"{prefix}/completions", json={"model": "m", "prompt": "One"})
        wrong = await client.get(f"{prefix}/chat/completions")
    assert (chat.status_code, models.status_code) == (200, 200)
    assert text.status_code == (404 if prefix == "/api/v2" else 200)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT_PATH, CHAT), (TEXT_PATH, {"model": TINY_MODEL, "prompt": ["One", "Two", "Three"]})],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_app_that_hangs_up_stops_its_donors(
    path: str, body: dict[str, Any], is_streamed: bool
) -> None:
    engine = EchoEngine(token_interval_s=3600)
    n_requests = 1 if path == CHAT_PATH else 3
    async with serving(engine) as address:
        data = json.dumps({**body, "stream": is_streamed}).encode()
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
        await stream.send_all(post(path, data, port_of(address)))
        await wait_until(lambda: engine.n_running == n_requests)
        await stream.aclose()
        await wait_until(lambda: engine.n_running == 0)
    assert engine.n_cancelled == n_requests


async def test_a_forced_call_begins_without_thoughts() -> None:
    engine = EchoEngine()
    body = {**CHAT, "tools": TOOLS, "tool_choice": "required"}
    await ask(engine, body)
    (request,) = engine.requests
    assert isinstance(request.input, ChatInput)
    answer = await ask(script(CALL_TEXT, begun="<think>"), body)
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
