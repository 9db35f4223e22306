"""Writes tests/vectors/gen1.json: `python -m tests.peer.write_gen1_vectors`.

Bodies and what they mean are written by hand below, from docs/protocol.md, section 7. The file is
part of the specification: run it only when the wire changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent.parent / "vectors" / "gen1.json"

ABSENT: dict[str, Any] = {
    "max_tokens": None,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": [],
    "stop": [],
    "ignore_eog": False,
    "n": 1,
    "top_logprobs": None,
    "response_format": None,
}
CHAT: dict[str, Any] = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
USER: dict[str, Any] = {"role": "user", "content": "x"}
CALL: dict[str, Any] = {"id": "call_1", "name": "look_up", "arguments": '{"word":"x"}'}
SCHEMA = '{"type":"object"}'
TOOL: dict[str, Any] = {"name": "look_up", "description": "Finds a word.", "parameters": SCHEMA}
DEEP = '{"a":' * 64 + "1" + "}" * 64


def x(fields: str) -> str:
    return '{"prompt":"x",' + fields + "}"


def chat(messages: str) -> str:
    return '{"messages":[' + messages + "]}"


def body(**fields: Any) -> str:
    """As JSON; a chat of one message unless there is a prompt."""
    whole = fields if fields.keys() & {"prompt", "prompt_ids"} else {"messages": [USER], **fields}
    return json.dumps(whole, separators=(",", ":"))


def calling(**changes: Any) -> str:
    return body(messages=[{"role": "assistant", "content": "", "tool_calls": [CALL | changes]}])


def answering(**fields: Any) -> str:
    return body(messages=[{"role": "tool", "content": "x", **fields}])


def with_tool(**changes: Any) -> str:
    return body(tools=[TOOL | changes])


def wants(**fields: Any) -> str:
    return body(prompt="x", response_format=fields)


def bias(**biases: Any) -> str:
    return body(prompt="x", logit_bias=biases)


EVERYTHING = (
    r'{"role":"system","content":""},{"role":"user","content":"gr\u00fc\u00dfe \ud83d\ude00"},'
    '{"role":"assistant","content":"a"}],"max_tokens":131072,"temperature":2,"top_k":1048576,'
    '"top_p":1,"min_p":1,"stop":["a","b","c","d"],"ignore_eog":true'
)
# A message means [role, content] and, if it has more, an object of that.
RIGHT: list[tuple[str, str, dict[str, Any]]] = [
    ("smallest prompt", '{"prompt":"x"}', {}),
    (
        "everything of the first version",
        '{"messages":[' + EVERYTHING + "}",
        {
            "messages": [["system", ""], ["user", "grüße 😀"], ["assistant", "a"]],
            "max_tokens": 131072,
            "temperature": 2.0,
            "top_k": 1048576,
            "top_p": 1.0,
            "min_p": 1.0,
            "stop": ["a", "b", "c", "d"],
            "ignore_eog": True,
        },
    ),
    (
        "lowest values",
        x('"max_tokens":1,"temperature":0,"top_k":0,"top_p":0.001,"min_p":0'),
        {"max_tokens": 1, "temperature": 0.0, "top_k": 0, "top_p": 0.001, "min_p": 0.0},
    ),
    ("a prompt of ids", body(prompt_ids="AQAAAHARAQA="), {"prompt_ids": [1, 70000]}),
    ("the highest id", body(prompt_ids="/////w=="), {"prompt_ids": [4294967295]}),
    ("unknown fields are ignored", x('"new":{"a":[1,null,true]},"messages_":1'), {}),
    ("unknown field 16 deep", x('"deep":[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]'), {}),
    (
        "brackets in text are no depth",
        r'{"prompt":"\"[[[[[[[[[[[[[[[[[[[[[[[[[[\\"}',
        {"prompt": '"[[[[[[[[[[[[[[[[[[[[[[[[[[\\'},
    ),
    (
        "the most of what shapes the draw",
        x(
            '"typical_p":1,"repeat_penalty":10,"repeat_last_n":65536,"presence_penalty":2,'
            '"frequency_penalty":2,"n":16,"top_logprobs":20'
        ),
        {
            "repeat_penalty": 10.0,
            "repeat_last_n": 65536,
            "presence_penalty": 2.0,
            "frequency_penalty": 2.0,
            "n": 16,
            "top_logprobs": 20,
        },
    ),
    (
        "the least of it",
        x(
            '"typical_p":0.001,"repeat_penalty":0.001,"repeat_last_n":0,"presence_penalty":-2,'
            '"frequency_penalty":-2,"n":1,"top_logprobs":0'
        ),
        {
            "typical_p": 0.001,
            "repeat_penalty": 0.001,
            "repeat_last_n": 0,
            "presence_penalty": -2.0,
            "frequency_penalty": -2.0,
            "top_logprobs": 0,
        },
    ),
    (
        "biases by id, in any order",
        x('"logit_bias":{"70000":-100,"9":100,"4294967295":0.5,"0":0}'),
        {"logit_bias": [[0, 0.0], [9, 100.0], [70000, -100.0], [4294967295, 0.5]]},
    ),
    ("no bias", x('"logit_bias":{}'), {}),
    ("a JSON object", wants(type="json_object"), {"response_format": {"type": "json_object"}}),
    (
        "a schema as text",
        wants(type="json_schema", schema=SCHEMA),
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
    ),
    (
        "a schema 64 deep, as it came",
        wants(type="json_schema", schema=" " + DEEP),
        {"response_format": {"type": "json_schema", "schema": " " + DEEP}},
    ),
    (
        "calls and their results",
        body(
            messages=[
                USER,
                {"role": "assistant", "content": "", "tool_calls": [CALL, CALL | {"id": ""}]},
                {"role": "tool", "content": "1", "tool_call_id": "call_1", "name": "look_up"},
                {"role": "tool", "content": "2"},
            ]
        ),
        {
            "messages": [
                ["user", "x"],
                ["assistant", "", {"tool_calls": [CALL, CALL | {"id": ""}]}],
                ["tool", "1", {"tool_call_id": "call_1", "name": "look_up"}],
                ["tool", "2"],
            ]
        },
    ),
    (
        "arguments are text, whatever it says",
        calling(arguments="{"),
        {"messages": [["assistant", "", {"tool_calls": [CALL | {"arguments": "{"}]}]]},
    ),
    ("a tool", with_tool(), {"messages": [["user", "x"]], "tools": [TOOL]}),
    (
        "a tool of which only the name is known, and one call at a time",
        body(tools=[{"name": "a-1_B"}], parallel_tool_calls=False),
        {
            "messages": [["user", "x"]],
            "tools": [{"name": "a-1_B", "description": "", "parameters": ""}],
            "parallel_tool_calls": False,
        },
    ),
    *(
        (
            f"a choice of tools: {name}",
            body(tools=[TOOL], tool_choice=choice),
            {"messages": [["user", "x"]], "tools": [TOOL], "tool_choice": choice},
        )
        for name, choice in (
            *((word, word) for word in ("auto", "none", "required")),
            ("one of them", {"name": "look_up"}),
        )
    ),
    (
        "no tools to choose from",
        body(tools=[], tool_choice="none"),
        {"messages": [["user", "x"]], "tool_choice": "none"},
    ),
]
WRONG: list[tuple[str, str | bytes, str | None]] = [
    ("17 deep", x('"deep":[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]'), None),
    ("empty", "", None),
    ("not an object", "[]", None),
    ("text after the object", '{"prompt":"x"}{}', None),
    ("not UTF-8", bytes.fromhex("7b2270726f6d7074223a22ff227d"), None),
    ("UTF-16", bytes.fromhex("7b002200700022003a003100"), None),
    ("NaN", x('"new":NaN'), None),
    ("Infinity", x('"temperature":Infinity'), None),
    ("a field twice", x('"prompt":"x"'), None),
    ("a field twice, spelled differently", x(r'"\u0070rompt":"x"'), None),
    ("a field of a message twice", chat('{"role":"user","role":"user","content":"x"}'), None),
    ("neither prompt nor messages", "{}", "messages"),
    ("both", x('"messages":[{"role":"user","content":"x"}]'), "messages"),
    ("empty prompt", '{"prompt":""}', "prompt"),
    ("null prompt", '{"prompt":null}', "prompt"),
    ("lone surrogate in prompt", r'{"prompt":"\ud800"}', "prompt"),
    ("no messages", chat(""), "messages"),
    ("messages no list", '{"messages":{"role":"user","content":"x"}}', "messages"),
    ("a message no object", chat('"x"'), "messages[0]"),
    (
        "unknown role",
        chat('{"role":"user","content":"x"},{"role":"developer","content":"x"}'),
        "messages[1].role",
    ),
    ("no role", chat('{"content":"x"}'), "messages[0].role"),
    ("role a list", chat('{"role":[],"content":"x"}'), "messages[0].role"),
    ("no content", chat('{"role":"user"}'), "messages[0].content"),
    (
        "content parts",
        chat('{"role":"user","content":[{"type":"text","text":"x"}]}'),
        "messages[0].content",
    ),
    (
        "lone surrogate in content",
        chat(r'{"role":"user","content":"\udc00"}'),
        "messages[0].content",
    ),
    ("max_tokens 0", x('"max_tokens":0'), "max_tokens"),
    ("max_tokens too large", x('"max_tokens":131073'), "max_tokens"),
    ("max_tokens null", x('"max_tokens":null'), "max_tokens"),
    ("max_tokens no integer", x('"max_tokens":5.0'), "max_tokens"),
    ("max_tokens boolean", x('"max_tokens":true'), "max_tokens"),
    ("temperature below 0", x('"temperature":-0.1'), "temperature"),
    ("temperature over 2", x('"temperature":2.1'), "temperature"),
    ("temperature over everything", x('"temperature":1e999'), "temperature"),
    ("temperature text", x('"temperature":"1"'), "temperature"),
    ("temperature boolean", x('"temperature":true'), "temperature"),
    ("top_k below 0", x('"top_k":-1'), "top_k"),
    ("top_k too large", x('"top_k":1048577'), "top_k"),
    ("top_p 0", x('"top_p":0'), "top_p"),
    ("top_p over 1", x('"top_p":1.01'), "top_p"),
    ("min_p below 0", x('"min_p":-1'), "min_p"),
    ("min_p over 1", x('"min_p":1.5'), "min_p"),
    ("five stop strings", x('"stop":["a","b","c","d","e"]'), "stop"),
    ("stop no list", x('"stop":"a"'), "stop"),
    ("empty stop string", x('"stop":[""]'), "stop"),
    ("stop of a number", x('"stop":[1]'), "stop"),
    ("ignore_eog a number", x('"ignore_eog":1'), "ignore_eog"),
    ("typical_p 0", x('"typical_p":0'), "typical_p"),
    ("typical_p over 1", x('"typical_p":1.5'), "typical_p"),
    ("repeat_penalty 0", x('"repeat_penalty":0'), "repeat_penalty"),
    ("repeat_penalty over 10", x('"repeat_penalty":10.1'), "repeat_penalty"),
    ("repeat_last_n below 0", x('"repeat_last_n":-1'), "repeat_last_n"),
    ("repeat_last_n too large", x('"repeat_last_n":65537'), "repeat_last_n"),
    ("repeat_last_n no integer", x('"repeat_last_n":64.0'), "repeat_last_n"),
    ("presence_penalty below -2", x('"presence_penalty":-2.1'), "presence_penalty"),
    ("presence_penalty text", x('"presence_penalty":"0"'), "presence_penalty"),
    ("frequency_penalty over 2", x('"frequency_penalty":2.1'), "frequency_penalty"),
    ("frequency_penalty null", x('"frequency_penalty":null'), "frequency_penalty"),
    ("biases as a list", x('"logit_bias":[[1,2]]'), "logit_bias"),
    ("301 biases", bias(**{str(n): 1 for n in range(301)}), "logit_bias"),
    ("a bias over 100", bias(**{"1": 100.5}), "logit_bias"),
    ("a bias as a boolean", bias(**{"1": True}), "logit_bias"),
    ("a bias of a word", bias(the=1), "logit_bias"),
    ("a bias of an id below 0", bias(**{"-1": 1}), "logit_bias"),
    ("a bias of an id of 2^32", bias(**{"4294967296": 1}), "logit_bias"),
    ("a bias of an id with a zero before it", bias(**{"01": 1}), "logit_bias"),
    ("a bias of an id in other digits", bias(**{"\N{ARABIC-INDIC DIGIT ONE}": 1}), "logit_bias"),
    ("the same id twice", x('"logit_bias":{"1":1,"1":1}'), None),
    ("n 0", x('"n":0'), "n"),
    ("17 choices", x('"n":17'), "n"),
    ("top_logprobs below 0", x('"top_logprobs":-1'), "top_logprobs"),
    ("21 top_logprobs", x('"top_logprobs":21'), "top_logprobs"),
    ("top_logprobs a boolean", x('"top_logprobs":true'), "top_logprobs"),
    ("response_format text", x('"response_format":"json_object"'), "response_format"),
    ("response_format null", x('"response_format":null'), "response_format"),
    ("an unknown response_format", wants(type="grammar"), "response_format"),
    ("a response_format without a type", wants(schema=SCHEMA), "response_format"),
    ("no schema", wants(type="json_schema"), "response_format.schema"),
    ("a schema that is no text", wants(type="json_schema", schema={}), "response_format.schema"),
    *(
        (f"a schema: {name}", wants(type="json_schema", schema=schema), "response_format.schema")
        for name, schema in (
            ("no JSON", "{"),
            ("no object", "true"),
            ("a key twice", '{"a":1,"a":1}'),
            ("with NaN", '{"a":NaN}'),
            ("with a lone surrogate", r'{"const":"\ud800"}'),
            ("65 deep", '{"a":' + DEEP + "}"),
            ("65,537 bytes", SCHEMA + " " * (65_537 - len(SCHEMA))),
        )
    ),
    ("calls of a user", body(messages=[USER | {"tool_calls": []}]), "messages[0].tool_calls"),
    (
        "a call's id of a user",
        body(messages=[USER | {"tool_call_id": "a"}]),
        "messages[0].tool_call_id",
    ),
    ("a name of a user", body(messages=[USER | {"name": "bob"}]), "messages[0].name"),
    ("a call's id as a number", answering(tool_call_id=1), "messages[0].tool_call_id"),
    ("a call's id of 257 bytes", answering(tool_call_id="i" * 257), "messages[0].tool_call_id"),
    ("a result's name with a space", answering(name="look up"), "messages[0].name"),
    (
        "calls as an object",
        body(messages=[{"role": "assistant", "content": "", "tool_calls": {}}]),
        "messages[0].tool_calls",
    ),
    (
        "65 calls",
        body(messages=[{"role": "assistant", "content": "", "tool_calls": [CALL] * 65}]),
        "messages[0].tool_calls",
    ),
    (
        "a call no object",
        body(messages=[{"role": "assistant", "content": "", "tool_calls": ["look_up"]}]),
        "messages[0].tool_calls[0]",
    ),
    ("a call with an empty name", calling(name=""), "messages[0].tool_calls[0].name"),
    ("a call without an id", calling(id=None), "messages[0].tool_calls[0].id"),
    ("arguments as an object", calling(arguments={}), "messages[0].tool_calls[0].arguments"),
    ("tools as an object", body(tools={}), "tools"),
    ("129 tools", body(tools=[TOOL | {"name": f"t{n}"} for n in range(129)]), "tools"),
    ("two tools of one name", body(tools=[TOOL, TOOL]), "tools"),
    ("a tool no object", body(tools=["look_up"]), "tools[0]"),
    ("a tool's name with a dot", with_tool(name="look.up"), "tools[0].name"),
    ("a tool's name and a line break", with_tool(name="look_up\n"), "tools[0].name"),
    ("a tool's name of 65 characters", with_tool(name="a" * 65), "tools[0].name"),
    ("a tool's description null", with_tool(description=None), "tools[0].description"),
    ("a description of 8,193 bytes", with_tool(description="d" * 8193), "tools[0].description"),
    ("parameters as an object", with_tool(parameters={}), "tools[0].parameters"),
    ("parameters that are no JSON", with_tool(parameters="{"), "tools[0].parameters"),
    ("parameters that are empty text", with_tool(parameters=""), "tools[0].parameters"),
    ("an unknown choice of tools", body(tools=[TOOL], tool_choice="any"), "tool_choice"),
    ("a tool required, and none there", body(tool_choice="required"), "tool_choice"),
    ("another tool required", body(tools=[TOOL], tool_choice={"name": "other"}), "tool_choice"),
    (
        "a choice of tools as OpenAI writes it",
        body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look_up"}}),
        "tool_choice",
    ),
    (
        "parallel_tool_calls a number",
        body(tools=[TOOL], parallel_tool_calls=1),
        "parallel_tool_calls",
    ),
    ("tools with a prompt", body(prompt="x", tools=[TOOL]), "tools"),
    ("ids and a prompt", body(prompt="x", prompt_ids="AQAAAA=="), "messages"),
    *(
        (f"ids: {given!r}", body(prompt_ids=given), "prompt_ids")
        for given in ("", [1], None, "AQAAAA=!", "AQAAAA", "AQAAAA==\n", "_____w==", "AQA=")
    ),
    ("ids spelled another way", body(prompt_ids="AQAAAB=="), "prompt_ids"),
    ("tools with ids", body(prompt_ids="AQAAAA==", tools=[TOOL]), "tools"),
    ("a choice of tools with a prompt", body(prompt="x", tool_choice="none"), "tool_choice"),
]


def meaning(changes: dict[str, Any]) -> dict[str, Any]:
    if "messages" in changes:
        return ABSENT | CHAT | changes
    return ABSENT | ({} if "prompt_ids" in changes else {"prompt": "x"}) | changes


def main() -> None:
    bodies: list[dict[str, Any]] = [
        {"name": name, "body": sent, "expect": "success", "means": meaning(changes)}
        for name, sent, changes in RIGHT
    ]
    for name, sent, param in WRONG:
        data = {"body": sent} if isinstance(sent, str) else {"body_hex": sent.hex()}
        bodies.append({"name": name, **data, "expect": "invalid_request", "param": param})
    about = (
        "docs/protocol.md, section 7: bodies of gen/1 as text. `expect` is success with what they "
        "mean, or a code with the `param` it names. Bytes that are no text are in hex under "
        "`body_hex`."
    )
    PATH.write_text(json.dumps({"about": about, "bodies": bodies}, indent=1) + "\n")


if __name__ == "__main__":
    main()
