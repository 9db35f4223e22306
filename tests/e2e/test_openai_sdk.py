"""The official OpenAI SDK against a real network of processes."""

from __future__ import annotations

import openai
import pytest

from tests.e2e.network import MODEL, Network, wait_for

pytestmark = pytest.mark.slow
QUESTION = [{"role": "user", "content": "Name the capital of France."}]


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids[0] == MODEL
    assert "llama-3-8b-instruct" in ids, "an alias that programs send"
    assert client.models.retrieve(MODEL).owned_by == "token.place"


def test_chat_is_answered_by_a_donor(client: openai.OpenAI, network: Network) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=40
    )
    answer = raw.parse()
    assert (answer.choices[0].message.content or "").strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10
    assert 0 < answer.usage.completion_tokens <= 40
    donor = network.donor_of(raw.headers["x-tokenplace-accepted-by"])
    assert donor in network.donors


def test_a_stream_says_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    # Two keys are two cache scopes: the second prompt is computed as the first was.
    one, two = client.with_options(api_key="one"), client.with_options(api_key="two")
    whole = one.chat.completions.create(**asked)
    chunks = list(
        two.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_an_alias_is_answered_under_its_own_name(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-3.5-turbo", messages=QUESTION, max_tokens=3)
    assert answer.model == "gpt-3.5-turbo"


def test_completions_continue_a_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=8
    )
    assert answer.object == "text_completion"
    assert "Paris" in answer.choices[0].text
    streamed = client.completions.create(
        model=MODEL,
        prompt="The capital of France is",
        temperature=0,
        max_tokens=8,
        stream=True,
    )
    assert "".join(c.choices[0].text for c in streamed if c.choices) == answer.choices[0].text


def test_stop_strings_end_the_answer(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4, 5,", temperature=0, max_tokens=40, stop=[" 8"]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "7" in answer.choices[0].text
    assert "8" not in answer.choices[0].text


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert caught.value.code == "model_not_found"


def test_a_pin_that_nobody_offers_is_unavailable(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=f"{MODEL}@sha256:{'0' * 64}", messages=QUESTION)
    assert caught.value.status_code == 503
    assert caught.value.code in ("no_donor_for_model", "search_incomplete")
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_a_prompt_beyond_the_context_is_refused_with_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="word " * 20_000, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"


def test_cancelling_a_stream_frees_the_donor(client: openai.OpenAI, network: Network) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=2000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)

    def n_running() -> int:
        return sum(m["n_running"] for d in network.donors for m in network.status(d)["models"])

    assert n_running() == 1
    stream.close()
    wait_for(lambda: n_running() == 0, "the donor's slot is free", within_s=10)
