"""Bodies that must be taken, for hypothesis. Start at `CHATS` and `COMPLETIONS`."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import strategies as st

from tests.api_shim.serving import TINY_MODEL

Body = dict[str, Any]


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


NAMES = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64)
IDS = st.text(min_size=1, max_size=60)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)

PARTS = st.lists(st.text().map(lambda text: {"type": "text", "text": text}), max_size=3)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": IDS,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": NAMES, "arguments": st.text()}),
        }
    ),
    min_size=1,
    max_size=3,
)
MESSAGES = st.one_of(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant"]),
            "content": st.text() | PARTS,
        },
        optional={"name": st.text(), "reasoning_content": optional(st.text())},
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "tool_calls": CALLS},
        optional={"content": optional(st.text() | PARTS)},
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant")},
        optional={"content": st.none(), "tool_calls": st.sampled_from([None, []])},
    ),
    st.fixed_dictionaries(
        {"role": st.just("tool"), "content": st.text() | PARTS, "tool_call_id": IDS},
        optional={"name": NAMES},
    ),
)


def _tool(name: str) -> st.SearchStrategy[Body]:
    function = st.fixed_dictionaries(
        {"name": st.just(name)},
        optional={
            "description": optional(st.text()),
            "parameters": optional(OBJECTS),
            "strict": optional(st.booleans()),
        },
    )
    return st.fixed_dictionaries({"type": st.just("function"), "function": function})


@st.composite
def tools_and_choice(draw: st.DrawFn) -> Body:
    """Fields of a body that fit together."""
    names: list[str] = draw(st.lists(NAMES, max_size=3, unique=True))
    choices: list[Any] = [None, "auto", "none"]
    if names:
        named = {"type": "function", "function": {"name": draw(st.sampled_from(names))}}
        choices += ["required", named]
    body: Body = {}
    if len(names) > 0 or draw(st.booleans()):
        body["tools"] = [draw(_tool(name)) for name in names]
    if draw(st.booleans()):
        body["tool_choice"] = draw(st.sampled_from(choices))
    if draw(st.booleans()):
        body["parallel_tool_calls"] = draw(optional(st.booleans()))
    return body


LOGPROBS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"logprobs": optional(st.booleans())}),
    st.fixed_dictionaries(
        {"logprobs": st.just(True), "top_logprobs": optional(st.integers(0, 20))}
    ),
)
FORMS = st.sampled_from([{"type": "text"}, {"type": "json_object"}]) | OBJECTS.map(
    lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
)
LIMITS = st.just(-1) | st.integers(1, 131_072)
WISHES = st.lists(st.text(min_size=1, max_size=20), max_size=3)
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "temperature": optional(st.floats(0, 2)),
    "top_p": optional(st.floats(0, 1)),
    "min_p": optional(st.floats(0, 1)),
    "typical_p": optional(st.floats(0, 1, exclude_min=True)),
    "top_k": optional(st.integers(-1, 1 << 20)),
    "repeat_penalty": optional(st.floats(0, 10, exclude_min=True)),
    "repeat_last_n": optional(st.integers(0, 65_536)),
    "presence_penalty": optional(st.floats(-2, 2)),
    "frequency_penalty": optional(st.floats(-2, 2)),
    "logit_bias": optional(
        st.dictionaries(st.integers(0, 999_999_999).map(str), st.floats(-100, 100), max_size=3)
    ),
    "max_tokens": optional(LIMITS),
    "stop": optional(st.text(min_size=1, max_size=64) | st.lists(IDS, max_size=4)),
    "seed": optional(st.integers(-(2**63), 2**63 - 1)),
    "n": optional(st.integers(1, 16)),
    "stream": optional(st.booleans()),
    "stream_options": optional(st.fixed_dictionaries({"include_usage": optional(st.booleans())})),
    "ignore_eos": optional(st.booleans()),
    "user": st.text(),
    "provider": optional(
        st.fixed_dictionaries(
            {},
            optional={
                "order": optional(WISHES),
                "only": optional(WISHES),
                "ignore": optional(WISHES),
                "quantizations": optional(WISHES),
                "allow_fallbacks": optional(st.booleans()),
                "max_latency": optional(st.floats(0, 1e6, exclude_min=True)),
            },
        )
    ),
}

CHATS: st.SearchStrategy[Body] = st.builds(
    lambda *parts: {name: value for part in parts for name, value in part.items()},
    st.fixed_dictionaries(
        {
            "model": st.text(min_size=1, max_size=256),
            "messages": st.lists(MESSAGES, min_size=1, max_size=4),
        },
        optional={
            **SHARED,
            "max_completion_tokens": optional(LIMITS),
            "response_format": optional(FORMS),
            "metadata": optional(OBJECTS),
            "reasoning_effort": st.sampled_from([None, "none", "minimal", "low", "high", "xhigh"]),
            "store": optional(st.booleans()),
        },
    ),
    tools_and_choice(),
    LOGPROBS,
)

TOKEN_IDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4)
PROMPTS = st.text(min_size=1) | TOKEN_IDS
COMPLETIONS: st.SearchStrategy[Body] = st.fixed_dictionaries(
    {"model": st.just(TINY_MODEL), "prompt": PROMPTS | st.lists(PROMPTS, min_size=1, max_size=8)},
    optional={**SHARED, "logprobs": optional(st.integers(0, 5))},
)
