"""The official SDK, as most apps use it."""

import json
import math
import os
from typing import Any, Literal

import openai
import pydantic

MODEL, EMBEDDER = os.environ["MODEL"], os.environ["EMBEDDER"]
QUESTION: Any = [{"role": "user", "content": "Name the capital of France."}]
SHORT: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 12}


class City(pydantic.BaseModel):
    country: Literal["France", "Spain"]
    is_capital: bool


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Madrid"]
    unit: Literal["celsius", "fahrenheit"]


TOOLS: Any = [openai.pydantic_function_tool(Weather, name="get_weather")]


def ask(client: openai.OpenAI) -> dict[str, Any]:
    raw = client.chat.completions.with_raw_response.create(**SHORT, logprobs=True, top_logprobs=2)
    answer = raw.parse()
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**SHORT, **options))
    several = client.chat.completions.create(**{**SHORT, "temperature": 1}, n=2, stop=["\n"])
    return {
        "text": answer.choices[0].message.content,
        "finish_reason": answer.choices[0].finish_reason,
        "n_logprobs": len(answer.choices[0].logprobs.content or ()),
        "n_tokens": answer.usage.completion_tokens,
        "served": [raw.headers["x-tokenplace-accepted-by"], raw.headers["x-tokenplace-model"]],
        "streamed": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        "streamed_usage": chunks[-1].usage.completion_tokens,
        "n_choices": len(several.choices),
    }


def use_helpers(client: openai.OpenAI) -> dict[str, Any]:
    with client.chat.completions.stream(**SHORT) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion()
    form: Any = {**SHORT, "max_tokens": 60, "response_format": City}
    parsed = client.chat.completions.parse(**form)
    with client.chat.completions.stream(**form) as stream:
        streamed_form = stream.get_final_completion()
    return {
        "kinds": sorted(kinds),
        "helper_text": streamed.choices[0].message.content,
        "parsed": parsed.choices[0].message.parsed.model_dump(),
        "streamed_parsed": streamed_form.choices[0].message.parsed.model_dump(),
    }


def call_tools(client: openai.OpenAI) -> dict[str, Any]:
    asked: Any = {**SHORT, "max_tokens": 100, "tools": TOOLS}
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(**asked, tool_choice="required")
    parsed = client.chat.completions.parse(**asked, tool_choice=named)
    with client.chat.completions.stream(**asked, tool_choice=named) as stream:
        streamed = stream.get_final_completion()
    turn = answer.choices[0].message
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
        for call in turn.tool_calls
    ]
    after = client.chat.completions.create(
        **{**asked, "messages": [*QUESTION, turn, *results]}, tool_choice="none"
    )
    call = turn.tool_calls[0]
    return {
        "tool": [call.function.name, json.loads(call.function.arguments)],
        "tool_finish_reason": answer.choices[0].finish_reason,
        "tool_content": turn.content,
        "parsed_tool": _arguments(parsed.choices[0].message),
        "streamed_tool": _arguments(streamed.choices[0].message),
        "after_tool": after.choices[0].message.content,
    }


def _arguments(message: Any) -> Any:
    return message.tool_calls[0].function.parsed_arguments.model_dump()


def embed(client: openai.OpenAI) -> dict[str, Any]:
    texts = ["A cat sat on the mat.", "A kitten lies on the rug.", "Interest rates rose."]
    answer = client.embeddings.create(model=EMBEDDER, input=texts)
    plain = client.embeddings.create(model=EMBEDDER, input=texts[0], encoding_format="float")
    ids = client.embeddings.create(model=EMBEDDER, input=[101, 4937, 102], dimensions=8)
    cat, kitten, rates = (each.embedding for each in answer.data)
    return {
        "dimensions": len(cat),
        "length": math.hypot(*cat),
        "is_closer": _product(cat, kitten) > _product(cat, rates),
        "base64_is_float": _product(cat, plain.data[0].embedding),
        "embedding_tokens": answer.usage.total_tokens,
        "few_dimensions": len(ids.data[0].embedding),
    }


def _product(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def err(client: openai.OpenAI) -> dict[str, Any]:
    said = {}
    for name, change in {
        "unknown_model": {"model": "no-such-model"},
        "bad_parameter": {"temperature": 9},
        "vision": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    }.items():
        try:
            client.chat.completions.create(**{**SHORT, **change})
        except openai.APIStatusError as error:
            said[name] = [error.status_code, error.code, error.param]
    return said


with openai.OpenAI(max_retries=0) as client:
    models = [model.id for model in client.models.list()]
    text = client.completions.create(
        model=MODEL, prompt=["The capital of France is", "1, 2, 3,"], max_tokens=4, temperature=0
    )
    print(
        json.dumps(
            {
                "models": models,
                "retrieved": client.models.retrieve(MODEL).id,
                "completions": [choice.text for choice in text.choices],
                "errors": err(client),
                **ask(client),
                **use_helpers(client),
                **call_tools(client),
                **embed(client),
            }
        )
    )
