"""Tool calls in every form, in any pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.splitting import CUTS, read
from tokenplace import defaults
from tokenplace.engine.tools import HERMES_CLOSE, HERMES_OPEN, MISTRAL_OPEN
from tokenplace.text import calls
from tokenplace.text.choice import Choice
from tokenplace.text.deltas import (
    Call,
    CallArguments,
    CallBegin,
    Content,
    Delta,
    Merged,
    merge,
)

TOOLS = ("look_up", "add")


def found_in(answer: str, cuts: Iterable[int] = ()) -> Merged:
    return read(answer, cuts, tools=TOOLS)


# ---------------------------------------------------------------- well-formed calls

# What may make a parser lose its way, above all.
TEXTS = st.one_of(
    st.sampled_from(["", '"', "\\", "}]", "</tool_call>", "[TOOL_CALLS]", "```", "a, b", "😀é\n"]),
    st.text(max_size=6),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(TEXTS, VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(TOOLS), ARGUMENTS), min_size=1, max_size=3)
STYLES = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 2])},
)


def call_object(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


Form = Callable[[list[str], list[tuple[str, str]]], str]
"""Calls as objects, and as names with the text of their arguments, to an answer."""
FORMS: dict[str, Form] = {
    "hermes": lambda objects, _: "\n".join(
        f"<tool_call>\n{an_object}\n</tool_call>" for an_object in objects
    ),
    "hermes, all in one": lambda objects, _: f"<tool_call>{' '.join(objects)}</tool_call>",
    "granite": lambda objects, _: f"<tool_call>[{', '.join(objects)}]",
    "phi": lambda objects, _: f"<|tool_call|>[{','.join(objects)}]<|/tool_call|>",
    "lfm": lambda objects, _: f"<|tool_call_start|>[{', '.join(objects)}]<|tool_call_end|>",
    "llama": lambda objects, _: "; ".join(objects),
    "llama, lines": lambda objects, _: "\n".join(objects),
    "llama, marked": lambda objects, _: f"<|python_tag|>{';'.join(objects)}",
    "mistral": lambda objects, _: f"[TOOL_CALLS] [{', '.join(objects)}]",
    "mistral 11": lambda _, named: "".join(
        f"[TOOL_CALLS]{name}[CALL_ID]a1B2c3D4e[ARGS]{arguments}" for name, arguments in named
    ),
    "mistral 13": lambda _, named: "".join(
        f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in named
    ),
    "mistral, marks lost": lambda _, named: "".join(
        f"[TOOL_CALLS]{name}{arguments}" for name, arguments in named
    ),
    "a list": lambda objects, _: f"\n[{','.join(objects)}]\n",
    "fenced": lambda objects, _: f"```json\n[{', '.join(objects)}]\n```\n",
    "fenced, no language": lambda objects, _: "```\n" + "\n".join(objects) + "\n```",
}


@pytest.mark.parametrize("form", FORMS)
@given(wanted=CALLS, style=STYLES, cuts=CUTS)
def test_calls_are_found_in_every_form(
    form: str, wanted: list[tuple[str, dict[str, Any]]], style: dict[str, Any], cuts: Iterable[int]
) -> None:
    named = [(name, json.dumps(arguments, **style)) for name, arguments in wanted]
    key = "parameters" if "llama" in form else "arguments"
    objects = [call_object(name, arguments, key) for name, arguments in named]
    answer = FORMS[form](objects, named)
    assert found_in(answer, cuts) == Merged("", "", tuple(Call(*call) for call in named))


@given(wanted=CALLS, cuts=CUTS)
def test_calls_written_as_python_become_json(
    wanted: list[tuple[str, dict[str, Any]]], cuts: Iterable[int]
) -> None:
    keyed = [
        (name, {f"key{index}": value for index, value in enumerate(arguments.values())})
        for name, arguments in wanted
    ]
    written = ", ".join(
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in keyed
    )
    for answer in (f"<|tool_call_start|>[{written}]<|tool_call_end|>", f"[{written}]"):
        found = found_in(answer, cuts)
        assert found.content == ""
        assert [(call.name, json.loads(call.arguments)) for call in found.calls] == [
            (name, json.loads(json.dumps(as_python_reads(arguments)))) for name, arguments in keyed
        ]


def as_python_reads(value: Any) -> Any:
    r"""`repr` writes control characters as \xNN, which is read as text."""
    if isinstance(value, str):
        return "".join(repr(c)[1:-1] if repr(c).startswith(("'\\x", "'\\U")) else c for c in value)
    if isinstance(value, list):
        return [as_python_reads(part) for part in value]
    if isinstance(value, dict):
        return {as_python_reads(key): as_python_reads(part) for key, part in value.items()}
    return value


# ---------------------------------------------------------------- what counts as a call


@pytest.mark.parametrize(
    ("answer", "content", "found"),
    [
        # Text around calls; white space next to a call is dropped behind it.
        (
            'Wait.\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\n\nDone.',
            "Wait.\nDone.",
            [("add", "{}")],
        ),
        ('{"name": "add", "parameters": {}} and so on', "and so on", [("add", "{}")]),
        ('{"name": "add", "parameters": {}}; and so on', "; and so on", [("add", "{}")]),
        # Keys in any order, others beside them.
        ('{"arguments": {"a": 1}, "name": "add"}', "", [("add", '{"a": 1}')]),
        ('{"type": "function", "name": "add", "parameters": {}}', "", [("add", "{}")]),
        ('{"name": "add", "arguments": {}, "id": "1", "x": [{}]}', "", [("add", "{}")]),
        ('{"name": "add", "arguments": {"a": 1}, "arguments": 2}', "", [("add", '{"a": 1}')]),
        # Arguments as a string; none.
        ('{"name": "add", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}', "", [("add", '{"a": "é"}')]),
        ('{"name": "add", "arguments": "\\ud83d\\ude00\\ud83d"}', "", [("add", "😀\ufffd")]),
        ('{"arguments": "{}", "name": "add"}', "", [("add", "{}")]),
        ('{"name": "add"}', "", [("add", "{}")]),
        ('{"name": "add", "arguments": null}', "", [("add", "{}")]),
        ('{"name": "add", "arguments": ""}', "", [("add", "{}")]),
        # Names that are no tools: a call only with a mark.
        ('{"name": "Ann", "arguments": {}}', '{"name": "Ann", "arguments": {}}', []),
        ('[{"name": "Ann", "arguments": {}}]', '[{"name": "Ann", "arguments": {}}]', []),
        ("[Ann(a=1)]", "[Ann(a=1)]", []),
        ('<tool_call>{"name": "Ann", "arguments": {}}</tool_call>', "", [("Ann", "{}")]),
        # It can be sent back: a name of characters that no tool has could not.
        ('<tool_call>{"name": "a.dd é\\n"}</tool_call>', "", [("a_dd___", "{}")]),
        ("[TOOL_CALLS]functions.add{}", "", [("functions_add", "{}")]),
        ("[TOOL_CALLS]Ann[ARGS]{}", "", [("Ann", "{}")]),
        (
            '[{"name": "add", "arguments": {}}, {"name": "Ann"}]',
            ', {"name": "Ann"}]',
            [("add", "{}")],
        ),
        # Nothing but text.
        ('{"answer": 42}', '{"answer": 42}', []),
        ('{"name": "add" "x"}x', '"x"}x', [("add", "")]),
        ("[1, 2]", "[1, 2]", []),
        ("[]", "[]", []),
        ("{}", "{}", []),
        ('Call {"name": "add", "arguments": {}}', 'Call {"name": "add", "arguments": {}}', []),
        ("```python\nadd()\n```", "```python\nadd()\n```", []),
        ('```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```', []),
        ("<tool_call> is a mark, [TOOL_CALLS] too", "<tool_call> is a mark, [TOOL_CALLS] too", []),
        ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
        ("a <tool_call", "a <tool_call", []),
        ("\n <tool_call", "\n <tool_call", []),
        # Malformed: before the name is known all is content, behind it the rest is.
        ('<tool_call>{"name": ""}</tool_call>', '<tool_call>{"name": ""}</tool_call>', []),
        ("<tool_call>{'name': 1}</tool_call>", "<tool_call>{'name': 1}</tool_call>", []),
        ('<tool_call>{"id": 1}</tool_call>', '<tool_call>{"id": 1}</tool_call>', []),
        ("[TOOL_CALLS]add(1)", "[TOOL_CALLS]add(1)", []),
        ('{"name": "add", "arguments": {"a" 1}}', "1}}", [("add", '{"a" ')]),
        ('{"name": "add", "arguments": [1]}', "[1]}", [("add", "")]),
        ('{"name": "add", "arguments": {"a": ?}}', "?}}", [("add", '{"a": ')]),
        ('{"name": "add", "arguments": {1: 2}}', "1: 2}}", [("add", "{")]),
        ('{"name": "add", "arguments": "\\u00g"}', 'g"}', [("add", "")]),
        (
            '{"name": "add", "arguments": "\\ud83d\\n\\ud83dA\\d"}',
            "",
            [("add", "\ufffd\n\ufffdA\\d")],
        ),
        (
            '{"name": "add", "arguments": "\\ud83d\\u0041\\ud83d\\ud83d"}',
            "",
            [("add", "\ufffdA\ufffd\ufffd")],
        ),
        ("[add(a={1: 2})]", "1: 2})]", [("add", '{"a": {')]),
        ("[add(a=[1, {'b': 2,},], )]", "", [("add", '{"a": [1, {"b": 2}]}')]),
        ('{"name": "add", "arguments": {"a": [1}}}', "}}}", [("add", '{"a": [1')]),
        ("[add(1)]", ")]", [("add", "{")]),
        ("[add(a=add)]", ")]", [("add", '{"a": ')]),
        (
            '<tool_call><tool_call>{"name": "add"}</tool_call>',
            "<tool_call>",
            [("add", "{}")],
        ),
        (f"[TOOL_CALLS]{'a' * 65}[ARGS]{{}}", f"[TOOL_CALLS]{'a' * 65}[ARGS]{{}}", []),
        # The answer was cut: a call that is not whole does not look as if it were.
        ('{"name": "ad', '{"name": "ad', []),
        ('{"name": "add", "argum', "", [("add", "")]),
        ('{"name": "add", "arguments": {"a": tr', "", [("add", '{"a": tr')]),
        ('{"name": "add", "arguments": "{\\"a\\": \\"\\u00', "", [("add", '{"a": "')]),
        ('[add(a="x', "", [("add", '{"a": "x')]),
        ("[TOOL_CALLS]add[ARGS]", "[TOOL_CALLS]add[ARGS]", []),
    ],
)
@given(cuts=CUTS)
@settings(max_examples=25)
def test_what_counts_as_a_call(
    answer: str, content: str, found: list[tuple[str, str]], cuts: Iterable[int]
) -> None:
    assert found_in(answer, cuts) == Merged(content, "", tuple(Call(*call) for call in found))


def test_without_tools_nothing_is_a_call() -> None:
    answer = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    assert read(answer) == Merged(answer, "", ())


def test_the_marks_are_those_that_donors_force() -> None:
    assert calls.CLOSE_OF[HERMES_OPEN] == HERMES_CLOSE
    assert calls.MISTRAL == MISTRAL_OPEN


# ---------------------------------------------------------------- as it comes


def pieces_of(*pieces: str) -> list[list[Delta]]:
    choice = Choice(tools=TOOLS)
    return [choice.feed(piece.encode()) for piece in pieces] + [choice.finish()]


def test_arguments_are_shown_as_they_come() -> None:
    assert pieces_of(
        *("Wait.", "<tool", '_call>{"na', 'me": "ad', 'd"', ', "arguments": {"a', '": tr', "ue"),
        *("}", "}", "\n</tool_call", ">\n", "Done."),
    ) == [
        [Content("Wait.")],
        [],
        [],
        [],
        [CallBegin(0, "add")],
        [CallArguments(0, '{"a')],
        [CallArguments(0, '": tr')],
        [CallArguments(0, "ue")],
        [CallArguments(0, "}")],
        [],
        [],
        [],
        [Content("Done.")],
        [],
    ]


def test_arguments_before_the_name_wait_for_it() -> None:
    assert pieces_of('{"arguments": {"a": ', '1}, "name": "add"', "}") == [
        [],
        [CallBegin(0, "add"), CallArguments(0, '{"a": 1}')],
        [],
        [],
    ]


@pytest.mark.parametrize(
    ("held", "shown"),
    [
        ("a < b", ""),
        ("<tool_calls", ""),
        ("<|im_end", ""),
        ("a [TOOLS", ""),
        ("[1", ""),
        ("[added", ""),
        ("[w ", ""),
        ('{"na', "x"),
        ('{"a', "n"),  # of "answer", not of "arguments"
        ("```j", "s\n"),
        ("``", "x"),
        ("\n ", "x"),
        ("<tool_call>\n", "x"),
        ("<tool_call>{", "x"),
    ],
)
def test_text_is_shown_as_soon_as_it_can_be_no_call(held: str, shown: str) -> None:
    choice = Choice(tools=TOOLS)
    deltas = choice.feed(held.encode()) + choice.feed(shown.encode())
    assert merge(deltas).content == held + shown
    assert choice.finish() == []


# ---------------------------------------------------------------- limits


@given(cuts=CUTS, n_chars=st.integers(0, 60))
def test_no_more_is_held_than_the_limit(cuts: Iterable[int], n_chars: int) -> None:
    arguments = f'{{"a": "{"x" * n_chars}"}}'
    answer = f'<tool_call>{{"arguments": {arguments}, "name": "add"}}</tool_call>'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MAX_HELD_CALL", 80)
        found = found_in(answer, cuts)
    if answer.index('"}</') < 80:
        assert found == Merged("", "", (Call("add", arguments),))
    else:
        assert found == Merged(answer, "", ())


def test_what_is_too_long_to_be_held_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_HELD_CALL", 20)
    choice = Choice(tools=TOOLS)
    assert choice.feed(b'{"arguments": {"a"') == []
    assert choice.feed(b": 12345") == [Content('{"arguments": {"a": 12345')]


@given(cuts=CUTS)
def test_an_answer_has_no_more_calls_than_a_message_may_have(cuts: Iterable[int]) -> None:
    one = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MAX_TOOL_CALLS", 2)
        found = found_in(one * 4, cuts)
    assert found == Merged(one * 2, "", (Call("add", "{}"),) * 2)


@given(cuts=CUTS)
def test_arguments_are_nested_only_so_deep(cuts: Iterable[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MAX_ARGUMENTS_DEPTH", 3)
        patch.setattr(defaults, "MAX_PYTHON_DEPTH", 2)
        assert found_in('{"name": "add", "arguments": {"a": [[]]}}', cuts).content == ""
        assert found_in('{"name": "add", "arguments": {"a": [[[]]]}}', cuts).content == "[]]]}}"
        assert found_in("[add(a=[[]])]", cuts).content == ""
        assert found_in("[add(a=[[[]]])]", cuts).content == "[]]])]"


def test_long_answers_of_anything_are_read() -> None:
    """Not how fast: only that nothing recurses or piles up."""
    for begin, repeated in [
        ("", "<tool_call>"),
        ('{"name": "add", "arguments": {"a": ', "["),
        ('{"name": "add", "arguments": {"a": ', "[],"),
        ('{"name": "add", "arguments": "', "\\u"),
        ('<tool_call>{"arguments": "', "x"),
        ("[add(a=", "["),
        ('[add(a="', "\\"),
    ]:
        answer = begin + repeated * (200_000 // len(repeated))
        choice = Choice(tools=TOOLS)
        data = answer.encode()
        for place in range(0, len(data), 4096):
            choice.feed(data[place : place + 4096])
        choice.finish()
