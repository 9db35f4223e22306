"""Writes tests/vectors/ops.json: `python -m tests.peer.write_op_vectors`.

Bodies of emb/1, cnt/1 and scr/1, and answers to them in parts, by hand from docs/protocol.md,
sections 5 and 7. The file is part of the specification: run it only when the wire changes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent.parent / "vectors" / "ops.json"

ONE, TWO = "AQAAAA==", "AQAAAHARAQA="
PROMPT: dict[str, Any] = {"prompt": "x"}
ABSENT: dict[str, Any] = {"dimensions": None}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
REPLAY: dict[str, Any] = {"temperature": 0.5, "top_k": 7, "choice": 15}

# op, name, body, what it means
RIGHT: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("embed", "one text", {"inputs": ["x"]}, {"inputs": ["x"]}),
    (
        "embed",
        "texts and ids",
        {"inputs": ["grüße 😀", {"ids": TWO}, "x"], "dimensions": 8192},
        {"inputs": ["grüße 😀", [1, 70000], "x"], "dimensions": 8192},
    ),
    ("embed", "the most texts", {"inputs": ["x"] * 2048}, {"inputs": ["x"] * 2048}),
    ("embed", "unknown fields", {"inputs": ["x"], "new": {"a": None}}, {"inputs": ["x"]}),
    ("count", "a prompt", PROMPT, PROMPT),
    ("count", "ids", {"prompt_ids": TWO}, {"prompt_ids": [1, 70000]}),
    ("count", "what only gen/1 has is ignored", PROMPT | {"max_tokens": "many"}, PROMPT),
    ("score", "ids after a prompt", PROMPT | {"ids": TWO}, {"ids": [1, 70000]}),
    (
        "score",
        "a replay",
        PROMPT | {"ids": ONE, "replay": REPLAY},
        {"ids": [1], "replay": {"temperature": 0.5, "top_k": 7, "choice": 15}},
    ),
    (
        "score",
        "a replay of nothing unusual",
        PROMPT | {"ids": ONE, "replay": {}},
        {"ids": [1], "replay": {"temperature": 0.8, "top_k": 40, "choice": 0}},
    ),
]
# op, name, body, the field that the error names
WRONG: list[tuple[str, str, Any, str | None]] = [
    ("embed", "no inputs", {}, "inputs"),
    ("embed", "an empty list", {"inputs": []}, "inputs"),
    ("embed", "a text alone", {"inputs": "x"}, "inputs"),
    ("embed", "2,049 texts", {"inputs": ["x"] * 2049}, "inputs"),
    ("embed", "an empty text", {"inputs": ["x", ""]}, "inputs[1]"),
    ("embed", "half a character", {"inputs": ["\ud800"]}, "inputs[0]"),
    ("embed", "ids as a list", {"inputs": [[1, 2]]}, "inputs[0]"),
    ("embed", "no ids", {"inputs": [{"ids": ""}]}, "inputs[0]"),
    ("embed", "an object without ids", {"inputs": ["x", {}]}, "inputs[1]"),
    ("embed", "half an id", {"inputs": [{"ids": "AQA="}]}, "inputs[0]"),
    ("embed", "null", {"inputs": [None]}, "inputs[0]"),
    ("embed", "no dimensions", {"inputs": ["x"], "dimensions": 0}, "dimensions"),
    ("embed", "too many dimensions", {"inputs": ["x"], "dimensions": 8193}, "dimensions"),
    ("embed", "dimensions null", {"inputs": ["x"], "dimensions": None}, "dimensions"),
    ("embed", "a list", ["x"], None),
    ("count", "nothing", {}, "messages"),
    ("count", "a prompt and ids", PROMPT | {"prompt_ids": ONE}, "messages"),
    ("count", "an empty prompt", {"prompt": ""}, "prompt"),
    ("count", "tools without messages", PROMPT | {"tools": []}, "tools"),
    ("score", "no ids", PROMPT, "ids"),
    ("score", "ids as a list", PROMPT | {"ids": [1]}, "ids"),
    ("score", "no prompt", {"ids": ONE}, "messages"),
    ("score", "a replay that is none", PROMPT | {"ids": ONE, "replay": True}, "replay"),
    (
        "score",
        "a replay too hot",
        PROMPT | {"ids": ONE, "replay": {"temperature": 3}},
        "temperature",
    ),
    ("score", "a choice over 15", PROMPT | {"ids": ONE, "replay": {"choice": 16}}, "choice"),
]


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def score(logprob: float, gap: float, rank: int, mass: float) -> bytes:
    return struct.pack("<ffIf", logprob, gap, rank, mass)


U, V = floats(1.0, 0.0), floats(0.6, -0.8)
TEXTS: dict[str, Any] = {"inputs": ["x", "y"]}
TWO_IDS: dict[str, Any] = PROMPT | {"ids": TWO}
REPLAYED: dict[str, Any] = TWO_IDS | {"replay": {}}
FIRST, SECOND = score(-0.5, 0.0, 0, 0.0), score(-2.5, 1.5, 7, 0.75)
NAN, INF = float("nan"), float("inf")

# op, name, body, parts, n_tokens, what comes out
ANSWERS: list[tuple[str, str, dict[str, Any], list[bytes], list[int], Any]] = [
    ("embed", "two vectors", TEXTS, [U + V], [3, 4], [U, V]),
    ("embed", "two vectors in three parts", TEXTS, [U[:3], U[3:] + V[:1], V[1:]], [3, 4], [U, V]),
    ("embed", "of so many dimensions", TEXTS | {"dimensions": 2}, [U, V], [3, 4], [U, V]),
    ("embed", "a little too long", TEXTS, [U, floats(1.009, 0)], [3, 4], [U, floats(1.009, 0)]),
    ("count", "a count", PROMPT, [], [7], None),
    (
        "score",
        "two scores",
        TWO_IDS,
        [FIRST + SECOND],
        [7],
        [[-0.5, 0.0, 0, 0.0], [-2.5, 1.5, 7, 0.75]],
    ),
    (
        "score",
        "two scores, and what would have been drawn",
        REPLAYED,
        [FIRST + b"\1\0\0\0", SECOND + b"\2\0\0\0"],
        [7],
        [[-0.5, 0.0, 0, 0.0, 1], [-2.5, 1.5, 7, 0.75, 2]],
    ),
]
LIES: list[tuple[str, str, dict[str, Any], list[bytes], list[int]]] = [
    ("embed", "no vectors", TEXTS, [], [3, 4]),
    ("embed", "one vector for two texts, one number each", TEXTS, [U], [3, 4]),
    ("embed", "three vectors", TEXTS, [U, V, V], [3, 4]),
    ("embed", "half a number", TEXTS, [U + V[:-1]], [3, 4]),
    ("embed", "other dimensions", TEXTS | {"dimensions": 3}, [U, V], [3, 4]),
    ("embed", "more dimensions", TEXTS | {"dimensions": 1}, [U, V], [3, 4]),
    ("embed", "one number of tokens", TEXTS, [U, V], [7]),
    ("embed", "three numbers of tokens", TEXTS, [U, V], [3, 4, 0]),
    ("embed", "not a number", TEXTS, [U, floats(NAN, 0)], [3, 4]),
    ("embed", "infinite", TEXTS, [U, floats(INF, 0)], [3, 4]),
    ("embed", "zeros", TEXTS, [U, floats(0, 0)], [3, 4]),
    ("embed", "too long", TEXTS, [U, floats(1.02, 0)], [3, 4]),
    ("embed", "too short", TEXTS, [U, floats(0.98, 0)], [3, 4]),
    ("count", "a part", PROMPT, [b"\7\0\0\0"], [7]),
    ("count", "no count", PROMPT, [], []),
    ("count", "two counts", PROMPT, [], [7, 7]),
    ("score", "no scores", TWO_IDS, [], [7]),
    ("score", "one score for two ids", TWO_IDS, [FIRST], [7]),
    ("score", "three scores", TWO_IDS, [FIRST * 3], [7]),
    ("score", "nothing drawn", REPLAYED, [FIRST + SECOND], [7]),
    ("score", "drawn without being asked", TWO_IDS, [(FIRST + b"\1\0\0\0") * 2], [7]),
    ("score", "no number of tokens", TWO_IDS, [FIRST + SECOND], []),
    *(
        ("score", name, TWO_IDS, [FIRST + score(*values)], [7])
        for name, values in (
            ("surer than sure", (0.5, 0.0, 0, 0.0)),
            ("no log-probability", (NAN, 0.0, 0, 0.0)),
            ("endlessly unlikely", (-INF, 0.0, 0, 0.0)),
            ("a gap below 0", (-1.0, -0.5, 0, 0.0)),
            ("no gap", (-1.0, NAN, 0, 0.0)),
            ("an endless gap", (-1.0, INF, 0, 0.0)),
            ("a mass over 1", (-1.0, 0.0, 0, 1.5)),
            ("a mass below 0", (-1.0, 0.0, 0, -0.5)),
            ("no mass", (-1.0, 0.0, 0, NAN)),
        )
    ),
]


def bodies() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    for op, name, body, means in RIGHT:
        whole = {"embed": ABSENT, "count": {}, "score": {"replay": None}}[op] | means
        listed.append(_body(op, name, body) | {"expect": "success", "means": whole})
    for op, name, wrong, param in WRONG:
        listed.append(_body(op, name, wrong) | {"expect": "invalid_request", "param": param})
    return listed


def answers() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    for op, name, body, parts, n_tokens, means in ANSWERS:
        plain = [row.hex() if isinstance(row, bytes) else row for row in means or []]
        listed.append(
            _answer(op, name, body, parts, n_tokens) | {"expect": "success", "means": plain}
        )
    for op, name, body, parts, n_tokens in LIES:
        listed.append(_answer(op, name, body, parts, n_tokens) | {"expect": "protocol_error"})
    return listed


def _body(op: str, name: str, body: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "body": json.dumps(body, separators=(",", ":"))}


def _answer(
    op: str, name: str, body: dict[str, Any], parts: list[bytes], n_tokens: list[int]
) -> dict[str, Any]:
    told = {"parts": [part.hex() for part in parts], "n_tokens": n_tokens}
    return _body(op, name, body) | told


def main() -> None:
    about = (
        "docs/protocol.md, sections 5 and 7: bodies of emb/1, cnt/1 and scr/1 as text, and answers "
        "to such. `parts`: the bytes of each part, in hex."
    )
    whole = {"about": about, "bodies": bodies(), "answers": answers()}
    PATH.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
