"""The official OpenAI SDK against the served app: what most apps are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pydantic
import pytest
import trio

from tests.api_shim.serving import (
    CREATED,
    PINNED_MODEL,
    TINY_MODEL,
    RefusingGenerator,
    serving,
    wait_until,
)
from tests.fakes import EchoEngine
from tokenplace.errors import ConnectionLost, ModelNotFound, NoDonorForModel
from tokenplace.generation import ChatInput, Generator, JsonSchema, ToolCall

# The SDK and its HTTP library leave their generators to the garbage collector when a stream ends.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Async generator '(openai|httpx2|httpcore2)\.:ResourceWarning"
)

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": "Grüße an die 😀 Spender"},
]
TEXT = "Grüße an die 😀 Spender"


@asynccontextmanager
async def openai_client(generator: Generator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(generator) as address,
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="anything", max_retries=0) as client,
    ):
        yield client


async def test_models_are_listed_and_retrieved() -> None:
    async with openai_client(EchoEngine()) as client:
        models = [model async for model in client.models.list()]
        assert [model.id for model in models] == [TINY_MODEL, PINNED_MODEL]
        pinned = await client.models.retrieve(PINNED_MODEL)
    assert (pinned.id, pinned.created, pinned.owned_by) == (PINNED_MODEL, CREATED, "token.place")


async def test_chat_is_answered_with_usage() -> None:
    engine = EchoEngine(piece_bytes=1)
    async with openai_client(engine) as client:
        answer = await client.chat.completions.create(
            model="an-alias", messages=HELLO, seed=7, max_tokens=100, temperature=0, top_p=0.5
        )
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "an-alias"
    assert answer.usage is not None
    n_bytes = len(TEXT.encode())
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (n_bytes, n_bytes)
    assert answer.usage.total_tokens == 2 * n_bytes
    assert engine.requests[0].seed == (7).to_bytes(8, "big")


async def test_stream_carries_role_text_end_and_usage() -> None:
    async with openai_client(EchoEngine(piece_bytes=1)) as client:
        stream = await client.chat.completions.create(
            model=TINY_MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == TEXT
    assert "\ufffd" not in "".join(texts)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(TEXT.encode())
    assert len({chunk.id for chunk in chunks}) == 1


async def test_several_choices_plain_and_streamed() -> None:
    engine = EchoEngine(piece_bytes=1)
    async with openai_client(engine) as client:
        answer = await client.chat.completions.create(model=TINY_MODEL, messages=HELLO, n=3)
        stream = await client.chat.completions.create(
            model=TINY_MODEL, messages=HELLO, n=3, stream=True
        )
        chunks = [chunk.choices[0] async for chunk in stream]
        text = await client.completions.create(model=TINY_MODEL, prompt=TEXT, n=2, max_tokens=999)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [TEXT] * 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * len(TEXT.encode())
    for index in range(3):
        own = [chunk for chunk in chunks if chunk.index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(chunk.delta.content or "" for chunk in own) == TEXT
        assert [chunk.finish_reason for chunk in own if chunk.finish_reason] == ["stop"]
    assert [choice.text for choice in text.choices] == [TEXT] * 2
    assert {request.n for request in engine.requests} == {2, 3}


async def test_every_choice_is_cut_at_its_stop_string() -> None:
    async with openai_client(EchoEngine(piece_bytes=1)) as client:
        answer = await client.chat.completions.create(
            model=TINY_MODEL, messages=HELLO, n=2, stop=TEXT[4:6]
        )
    assert [choice.message.content for choice in answer.choices] == [TEXT[:4]] * 2
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


async def test_a_form_of_the_sdk_reaches_the_donor() -> None:
    class Word(pydantic.BaseModel):
        word: str

    text = '{"word":"x"}'
    engine = EchoEngine()
    async with openai_client(engine) as client:
        answer = await client.chat.completions.parse(
            model=TINY_MODEL, messages=[{"role": "user", "content": text}], response_format=Word
        )
    assert answer.choices[0].message.parsed == Word(word="x")
    (asked,) = engine.requests
    assert isinstance(asked.output, JsonSchema)
    assert json.loads(asked.output.schema)["required"] == ["word"]


async def test_the_streaming_helper_puts_calls_together() -> None:
    tool: openai.types.chat.ChatCompletionFunctionToolParam = {
        "type": "function",
        "function": {"name": "look_up", "parameters": {"type": "object"}, "strict": True},
    }
    text = '<tool_call>{"name": "look_up", "arguments": {"word": "Spende"}}</tool_call>'
    async with openai_client(EchoEngine()) as client:
        asked: list[openai.types.chat.ChatCompletionMessageParam] = [
            {"role": "user", "content": text}
        ]
        streaming = client.chat.completions.stream(model=TINY_MODEL, messages=asked, tools=[tool])
        async with streaming as stream:
            kinds = [event.type async for event in stream]
            answer = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.parsed_arguments for call in calls] == [{"word": "Spende"}]


async def test_what_the_sdk_has_parsed_can_be_sent_back() -> None:
    class Word(pydantic.BaseModel):
        word: str

    tool = openai.pydantic_function_tool(Word, name="look_up")
    text = '<tool_call>{"name": "look_up", "arguments": {"word": "Spende"}}</tool_call>'
    asked: list[Any] = [{"role": "user", "content": text}]
    engine = EchoEngine()
    async with openai_client(engine) as client:
        answer = await client.chat.completions.parse(model=TINY_MODEL, messages=asked, tools=[tool])
        message = answer.choices[0].message
        (call,) = message.tool_calls or ()
        assert call.function.parsed_arguments == Word(word="Spende")
        result = {"role": "tool", "tool_call_id": call.id, "content": "donation"}
        await client.chat.completions.create(
            model=TINY_MODEL, messages=[*asked, message, result], tools=[tool]
        )
    chat = engine.requests[1].input
    assert isinstance(chat, ChatInput)
    assert chat.messages[1].tool_calls == (ToolCall(call.id, "look_up", '{"word": "Spende"}'),)


async def test_max_tokens_ends_with_length() -> None:
    async with openai_client(EchoEngine(piece_bytes=5)) as client:
        answer = await client.chat.completions.create(
            model=TINY_MODEL, messages=HELLO, max_completion_tokens=1
        )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


async def test_text_completion_plain_and_streamed() -> None:
    async with openai_client(EchoEngine()) as client:
        answer = await client.completions.create(model=TINY_MODEL, prompt=TEXT)
        stream = await client.completions.create(model=TINY_MODEL, prompt=TEXT, stream=True)
        texts = [chunk.choices[0].text async for chunk in stream]
    assert answer.choices[0].text == "".join(texts) == TEXT
    assert answer.object == "text_completion"


async def test_sync_client_in_a_thread() -> None:
    def ask(address: str) -> str:
        with openai.OpenAI(base_url=f"{address}/api/v1", api_key="anything") as client:
            stream = client.chat.completions.create(model=TINY_MODEL, messages=HELLO, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    async with serving() as address:
        assert await trio.to_thread.run_sync(ask, address) == TEXT


async def test_unknown_model_is_not_found() -> None:
    async with openai_client(RefusingGenerator(ModelNotFound())) as client:
        with pytest.raises(openai.NotFoundError) as failure:
            await client.models.retrieve("no/such-model")
        assert failure.value.code == "model_not_found"
        for is_stream in (False, True):
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="nope", messages=HELLO, stream=is_stream)


async def test_error_before_the_first_token_is_an_http_error() -> None:
    async with openai_client(RefusingGenerator(NoDonorForModel(retry_after_s=2.5))) as client:
        for is_stream in (False, True):
            with pytest.raises(openai.InternalServerError) as failure:
                await client.chat.completions.create(
                    model=TINY_MODEL, messages=HELLO, stream=is_stream
                )
            assert failure.value.status_code == 503
            assert failure.value.response.headers["retry-after"] == "3"
            assert failure.value.code == "no_donor_for_model"


async def test_error_in_mid_stream_raises_after_the_text_so_far() -> None:
    engine = EchoEngine(fail_after=2, error=ConnectionLost())
    texts = []
    async with openai_client(engine) as client:
        stream = await client.chat.completions.create(model=TINY_MODEL, messages=HELLO, stream=True)

        async def read() -> None:
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content or "")  # noqa: PERF401  # what came

        with pytest.raises(openai.APIError) as failure:
            await read()
    assert "".join(texts) == "Grüß"
    assert failure.value.code == "connection_lost"


async def test_error_in_mid_answer_without_streaming_is_an_http_error() -> None:
    async with openai_client(EchoEngine(fail_after=2, error=ConnectionLost())) as client:
        with pytest.raises(openai.InternalServerError) as failure:
            await client.chat.completions.create(model=TINY_MODEL, messages=HELLO)
    assert failure.value.status_code == 502


async def test_leaving_a_stream_frees_the_engine() -> None:
    engine = EchoEngine(token_interval_s=0.01)
    async with openai_client(engine) as client:
        stream = await client.chat.completions.create(
            model=TINY_MODEL, messages=[{"role": "user", "content": "x" * 30_000}], stream=True
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert engine.n_running == 1
        await stream.close()
        await wait_until(lambda: engine.n_running == 0)
    assert engine.n_cancelled == 1


async def test_leaving_a_plain_request_frees_the_engine() -> None:
    engine = EchoEngine(token_interval_s=3600)
    async with openai_client(engine) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            await client.chat.completions.create(model=TINY_MODEL, messages=HELLO)

        nursery.start_soon(ask)
        await wait_until(lambda: engine.n_running == 1)
        nursery.cancel_scope.cancel()
    await wait_until(lambda: engine.n_running == 0)
    assert engine.n_cancelled == 1


async def test_invalid_parameter_is_named() -> None:
    async with openai_client(EchoEngine()) as client:
        with pytest.raises(openai.BadRequestError) as failure:
            await client.chat.completions.create(
                model=TINY_MODEL, messages=HELLO, functions=[{"name": "f"}]
            )
    assert (failure.value.param, failure.value.code) == ("functions", "unsupported_parameter")
