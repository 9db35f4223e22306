"""What each client got. The model is tiny, so forms and calls are such as a grammar forces."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conftest import MODEL, Program, Shim

pytestmark = pytest.mark.slow


def is_city(value: Any) -> bool:
    return value["country"] in ("France", "Spain") and isinstance(value["is_capital"], bool)


def is_weather(value: Any) -> bool:
    return value["city"] in ("Paris", "Madrid") and value["unit"] in ("celsius", "fahrenheit")


def test_openai(run_program: Program, shim: Shim) -> None:
    got = run_program("openai-3", "openai_sync")

    assert {MODEL, shim.embedder} <= set(got["models"])
    assert got["retrieved"] == MODEL
    assert got["text"].strip()
    assert got["streamed"] == got["helper_text"] == got["text"]
    assert got["n_tokens"] == got["streamed_usage"] == got["n_logprobs"]
    assert got["finish_reason"] in ("stop", "length")
    assert got["served"][0] == "self"
    assert got["served"][1].startswith(f"{MODEL}@sha256:")
    assert got["n_choices"] == 2
    assert "Paris" in got["completions"][0]
    assert "4" in got["completions"][1]
    assert got["errors"] == {
        "unknown_model": [404, "model_not_found", None],
        "bad_parameter": [400, "decimal_above_max_value", "temperature"],
        "vision": [400, "unsupported_parameter", "messages[0].content[0]"],
    }

    assert {"chunk", "content.delta", "content.done"} <= set(got["kinds"])
    assert is_city(got["parsed"])
    assert got["streamed_parsed"] == got["parsed"]

    assert got["tool"][0] == "get_weather"
    assert is_weather(got["tool"][1])
    assert (got["tool_finish_reason"], got["tool_content"]) == ("tool_calls", None)
    assert is_weather(got["parsed_tool"])
    assert got["streamed_tool"] == got["parsed_tool"]
    assert got["after_tool"] is not None

    assert (got["dimensions"], got["few_dimensions"]) == (384, 8)
    assert got["length"] == pytest.approx(1, abs=1e-5)
    assert got["base64_is_float"] == pytest.approx(1, abs=1e-5)
    assert got["is_closer"]
    assert got["embedding_tokens"] > 15


def test_openai_on_asyncio_and_trio(run_program: Program) -> None:
    got = run_program("openai-3", "openai_async")
    assert got["trio"] == got["asyncio"]
    assert len(set(got["trio"].values())) == 1
    assert got["trio"]["text"].strip()


def test_llm(run_program: Program) -> None:
    got = run_program("openai-3", "llm_cli")
    assert "donated" in got["models"]
    assert got["streamed"].strip()
    assert got["streamed"] == got["whole"]
    assert '"country"' in got["form"]


def test_pydantic_ai(run_program: Program) -> None:
    got = run_program("openai-3", "pydantic_ai_agent")
    assert got["text"].strip()
    assert got["streamed"] == got["text"]
    assert 0 < got["n_tokens"] <= 12
    assert is_city(got["form"])
    assert is_city(got["streamed_form"])


def test_instructor(run_program: Program) -> None:
    got = run_program("openai-2", "instructor_forms")
    assert sorted(got) == ["JSON_SCHEMA", "JSON_SCHEMA streamed", "TOOLS", "TOOLS streamed"]
    assert all(map(is_city, got.values()))


def test_llama_index(run_program: Program) -> None:
    got = run_program("openai-2", "llama_index_like")
    assert got["chat"].strip()
    assert got["achat"] == got["streamed"] == got["chat"]
    assert "Paris" in got["completed"]
    assert got["completed_streamed"] == got["completed"]
    ((name, arguments),) = got["calls"]
    assert name == "get_weather"
    assert isinstance(arguments["is_celsius"], bool)
