"""Objects of chats: what OpenAI's SDK declares, and what its users expect."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.api_shim.serving import TINY_MODEL
from tokenplace.api_shim.form import FinishReason, Json, Part, WholeChoice
from tokenplace.api_shim.logprobs import TokenLogprob
from tokenplace.api_shim.openai.chat_form import ChatForm
from tokenplace.api_shim.refusal import Refusal
from tokenplace.generation import TopToken, Usage
from tokenplace.text.deltas import CallArguments, CallBegin, Content, Delta, Reasoning

USAGE = Usage(5, 2, 3)
CALL = (CallBegin(0, "look_up"), CallArguments(0, '{"a":'), CallArguments(0, "1}"))
HALF = TokenLogprob(b"\xc3", -0.5, (TopToken(7, b"\xc3", -0.5), TopToken(8, b"no", float("-inf"))))


def form_of(n_choices: int = 1, **fields: object) -> ChatForm:
    return ChatForm("chatcmpl-1", 1, TINY_MODEL, n_choices, **fields)  # type: ignore[arg-type]


def chunks_of(
    form: ChatForm, parts: Sequence[Part], reasons: Sequence[FinishReason] = ("stop",)
) -> list[Json]:
    deltas = [chunk for part in parts for chunk in form.deltas(part)]
    return [*form.begin(), *deltas, *form.end(reasons, USAGE)]


def whole_of(form: ChatForm, *deltas: Delta, why: FinishReason = "stop") -> Json:
    message: Json = form.whole([WholeChoice(deltas, (), why)], USAGE)["choices"][0]["message"]
    return message


DELTAS = st.lists(
    st.one_of(
        st.builds(Content, st.text(min_size=1)),
        st.builds(Reasoning, st.text(min_size=1)),
        st.just(CALL),
    ),
    max_size=5,
)


def numbered(items: list[Delta | tuple[Delta, ...]]) -> list[Delta]:
    """With the indices that calls would have."""
    deltas: list[Delta] = []
    n_calls = 0
    for item in items:
        if isinstance(item, tuple):
            deltas += [CallBegin(n_calls, "look_up"), CallArguments(n_calls, '{"a":1}')]
            n_calls += 1
        else:
            deltas.append(item)
    return deltas


@given(DELTAS, st.sampled_from(["stop", "length", "tool_calls"]), st.booleans())
def test_every_object_is_what_the_sdk_declares_and_streams_say_the_same(
    items: list[Delta | tuple[Delta, ...]], why: FinishReason, includes_usage: bool
) -> None:
    deltas = numbered(items)
    form = form_of(includes_usage=includes_usage, has_logprobs=True)
    whole = form.whole([WholeChoice(deltas, [HALF], why)], USAGE)
    ChatCompletion.model_validate(whole, strict=True)
    message = whole["choices"][0]["message"]
    chunks = chunks_of(form, [Part(0, [delta], ()) for delta in deltas], [why])
    calls: list[Json] = []
    texts = {"content": "", "reasoning_content": ""}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
        for name in texts:
            texts[name] += delta.get(name) or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls)
                calls.append({name: call[name] for name in ("id", "type", "function")})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    assert calls == message.get("tool_calls", [])
    assert texts["content"] == (message["content"] or "")
    assert texts["reasoning_content"] == message.get("reasoning_content", "")
    assert len({call["id"] for call in calls}) == len(calls)


def test_the_role_comes_first_and_the_reason_last_for_every_choice() -> None:
    chunks = chunks_of(form_of(2), [Part(1, [Content("Hi")], ())], ["stop", "length"])
    seen = [(c["choices"][0]["index"], c["choices"][0]["delta"]) for c in chunks]
    begin = {"role": "assistant", "content": "", "refusal": None}
    assert seen == [(0, begin), (1, begin), (1, {"content": "Hi"}), (0, {}), (1, {})]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None, None, None, "stop", "length"]


def test_content_is_null_beside_calls_alone() -> None:
    assert whole_of(form_of(), *CALL)["content"] is None
    assert whole_of(form_of(), Content("So:"), *CALL)["content"] == "So:"
    assert whole_of(form_of())["content"] == ""
    assert whole_of(form_of(), Reasoning("Hm.")) == {
        "role": "assistant",
        "content": "",
        "refusal": None,
        "reasoning_content": "Hm.",
    }


def test_a_call_is_streamed_as_openai_does() -> None:
    form = form_of()
    begin, *arguments = form.deltas(Part(0, CALL, ()))
    (call,) = begin["choices"][0]["delta"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {
        "index": 0,
        "type": "function",
        "function": {"name": "look_up", "arguments": ""},
    }
    assert [chunk["choices"][0]["delta"]["tool_calls"] for chunk in arguments] == [
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
    ]


def test_ids_of_calls_differ_by_answer_choice_and_place() -> None:
    ids = []
    for form in (form_of(), ChatForm("chatcmpl-2", 1, TINY_MODEL)):
        choice = WholeChoice((*CALL, CallBegin(1, "look_up")), (), "tool_calls")
        whole = form.whole([choice, choice], USAGE)
        ids += [call["id"] for c in whole["choices"] for call in c["message"]["tool_calls"]]
    assert len(set(ids)) == len(ids) == 8


def test_logprobs_have_openais_form_even_for_half_a_character() -> None:
    form = form_of(has_logprobs=True)
    expected = {
        "content": [
            {
                "token": "\ufffd",
                "logprob": -0.5,
                "bytes": [0xC3],
                "top_logprobs": [
                    {"token": "\ufffd", "logprob": -0.5, "bytes": [0xC3]},
                    {"token": "no", "logprob": -9999.0, "bytes": [110, 111]},
                ],
            }
        ],
        "refusal": None,
    }
    whole = form.whole([WholeChoice((), [HALF], "stop")], USAGE)
    assert whole["choices"][0]["logprobs"] == expected
    json.dumps(whole, allow_nan=False)
    first, second = form.deltas(Part(0, [Content("a"), Content("b")], [HALF]))
    assert first["choices"][0]["logprobs"] == expected
    assert second["choices"][0]["logprobs"] is None
    (alone,) = form.deltas(Part(0, (), [HALF]))
    assert alone["choices"][0]["delta"] == {"content": ""}
    assert form.whole([WholeChoice((), (), "stop")], USAGE)["choices"][0]["logprobs"] == {
        "content": [],
        "refusal": None,
    }


def test_usage_comes_last_and_only_when_asked_for() -> None:
    form = form_of(includes_usage=True)
    assert form.deltas(Part(0, [Content("Hi")], ()))[0]["usage"] is None
    end, usage = form.end(["stop"], USAGE)
    assert end["usage"] is None
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    (end,) = form_of().end(["stop"], USAGE)
    assert "usage" not in end


@pytest.mark.parametrize("metadata", [{}, {"trace": "ALICE"}])
def test_metadata_comes_back_once(metadata: Json) -> None:
    form = form_of(2, metadata=metadata)
    assert form.whole([], USAGE)["metadata"] == metadata
    chunks = chunks_of(form, [Part(0, [Content("Hi")], ())])
    assert [chunk.get("metadata") for chunk in chunks] == [metadata, None, None, None]
    assert "metadata" not in form_of().whole([], USAGE)


def test_a_failure_is_the_body_of_its_refusal() -> None:
    refusal = Refusal(502, "The connection broke.", "connection_lost")
    assert form_of().error(refusal) == refusal.body
