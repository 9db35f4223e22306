"""Writes tests/vectors/frames.json: `python -m tests.peer.write_vectors`.

What the frames mean is written by hand below, in the terms of docs/protocol.md, section 5; the
bytes are msgpack's. The file is part of the specification: run it only when the wire changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack

PATH = Path(__file__).resolve().parent.parent / "vectors" / "frames.json"

ACCEPTED: dict[str, Any] = {
    "f": "accepted",
    "prompt_digest": bytes(32),
    "n_prompt": 7,
    "n_cached": 3,
    "n_ctx": 4096,
    "max_new": 100,
    "sampler": "tp/1",
    "eta_ms": 1500,
    "position": 1,
}
ALIVE: dict[str, Any] = {
    "f": "alive",
    "phase": "prefill",
    "progress": 0.5,
    "position": 0,
    "eta_ms": 700,
}
TOKENS: dict[str, Any] = {
    "f": "tokens",
    "choice": 0,
    "index": 4,
    "ids": [11, 70000],
    "bytes": [b"gr\xc3", b"\xbc"],
}
# Written as float32; both are numbers of either size.
LOGPROBS: list[Any] = [
    [-0.5, [[11, b"gr\xc3", -0.5], [12, b"", -3.25]]],
    [-100.0, []],
]
FINISHED: dict[str, Any] = {
    "f": "finished",
    "choices": [{"choice": 0, "stop": {"kind": "eog", "id": 2}}],
    "usage": {"n_prompt": 7, "n_cached": 3, "n_completion": 6},
    "timings": {"queue_ms": 1, "prefill_ms": 2, "decode_ms": 3},
}
ERROR: dict[str, Any] = {
    "f": "error",
    "code": "context_length_exceeded",
    "scope": "app",
    "retry_elsewhere": False,
    "message": "too long",
    "param": "messages",
    "retry_after_s": 2.5,
    "numbers": {"n_prompt": 5000, "n_ctx": 4096},
}


PART: dict[str, Any] = {"f": "part", "at": 15360, "bytes": b"\0\0\x80\x3f"}
ANSWERED: dict[str, Any] = {"f": "answered", "n_tokens": [3, 70000]}
BARE_ERROR: dict[str, Any] = {
    "f": "error",
    "code": "internal",
    "scope": "donor",
    "retry_elsewhere": True,
    "message": "",
}
GREASE: dict[str, Any] = {"f": "~qz", "~a": {"~b": [b"\0", 1.5, None, -1]}}


def stops(stop: object) -> dict[str, Any]:
    return FINISHED | {"choices": [{"choice": 0, "stop": stop}]}


def likely(*logprobs: object) -> dict[str, Any]:
    return TOKENS | {"logprobs": list(logprobs)}


def top(*entry: object) -> dict[str, Any]:
    """Of the first of two tokens."""
    return likely([-0.5, [list(entry)]], [-0.5, []])


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


ENDS = [
    {"choice": 1, "stop": {"kind": "length"}},
    {"choice": 0, "stop": {"kind": "eog", "id": 2}},
]
LOWEST = -(2 - 2**-23) * 2.0**127
CERTAIN = likely([0.0, []], [-1.0, []])
VERY_UNLIKELY = likely([LOWEST, []], [0.0, []])
RIGHT: list[tuple[str, list[Any], list[dict[str, Any]]]] = [
    ("accepted", [ACCEPTED], [ACCEPTED]),
    ("a thought begun", [ACCEPTED | {"begun": "<think>"}], [ACCEPTED | {"begun": "<think>"}]),
    ("the other way", [ACCEPTED | {"begun": "[THINK]"}], [ACCEPTED | {"begun": "[THINK]"}]),
    ("nothing begun", [ACCEPTED | {"begun": ""}], [ACCEPTED]),
    ("begun with what nobody knows", [ACCEPTED | {"begun": "<muse>"}], [ACCEPTED]),
    ("begun with words", [ACCEPTED | {"begun": "Sure! " * 10}], [ACCEPTED]),
    ("tokens and alive", [TOKENS, ALIVE], [TOKENS, ALIVE]),
    (
        "a phase that version 1 never sends",
        [ALIVE | {"phase": "requeued"}],
        [ALIVE | {"phase": "requeued"}],
    ),
    (
        "alive, of a donor that does not say when",
        [without(ALIVE, "eta_ms")],
        [ALIVE | {"eta_ms": 0}],
    ),
    ("finished", [FINISHED], [FINISHED]),
    *(
        (name, [stops(stop)], [stops(stop)])
        for name, stop in (
            ("stopped at a string", {"kind": "string", "string": "\n\n"}),
            ("stopped at the length", {"kind": "length"}),
            ("stopped where its form was complete", {"kind": "grammar"}),
        )
    ),
    (
        "the ends of two choices",
        [FINISHED | {"choices": ENDS}],
        [FINISHED | {"choices": ENDS}],
    ),
    ("tokens of another choice", [TOKENS | {"choice": 15}], [TOKENS | {"choice": 15}]),
    ("log-probabilities", [likely(*LOGPROBS)], [likely(*LOGPROBS)]),
    ("a log-probability of 0, as an integer", [likely([0, []], [-1, []])], [CERTAIN]),
    (
        "20 likely tokens",
        [likely(*[[-0.5, [[n, b"x", -2.0] for n in range(20)]]] * 2)],
        [likely(*[[-0.5, [[n, b"x", -2.0] for n in range(20)]]] * 2)],
    ),
    ("the lowest log-probability", [likely([LOWEST, []], [0.0, []])], [VERY_UNLIKELY]),
    ("taken", [{"f": "taken"}], [{"f": "taken"}]),
    ("a part and the end", [PART, ANSWERED], [PART, ANSWERED]),
    ("a part without bytes", [PART | {"bytes": b""}], [PART | {"bytes": b""}]),
    ("an error", [ERROR], [ERROR]),
    ("the smallest error", [BARE_ERROR], [BARE_ERROR]),
    ("a known code does as the table says", [ERROR | {"retry_elsewhere": True}], [ERROR]),
    ("an unknown code does as it says", [BARE_ERROR | {"code": "of later"}], [BARE_ERROR]),
    (
        "a code of the requester's own",
        [BARE_ERROR | {"code": "model_not_found", "scope": "app"}],
        [BARE_ERROR],
    ),
    ("advice over an hour is ignored", [BARE_ERROR | {"retry_after_s": 3601}], [BARE_ERROR]),
    ("no frames, a heartbeat", [], []),
    ("an unknown frame", [{"f": "receipt", "x": 1}], []),
    ("an unknown key", [ALIVE | {"x": [1]}], [ALIVE]),
    ("grease before and behind", [GREASE, ALIVE, GREASE], [ALIVE]),
    ("grease among the keys", [{"~k": {"~k": [None]}} | TOKENS], [TOKENS]),
]
WRONG: list[tuple[str, Any]] = [
    ("no map", 1),
    ("a list", []),
    ("a map without f", {}),
    ("f a list", {"f": []}),
    ("a digest too short", ACCEPTED | {"prompt_digest": bytes(31)}),
    ("a digest as text", ACCEPTED | {"prompt_digest": "0" * 32}),
    ("a count below 0", ACCEPTED | {"n_prompt": -1}),
    ("a count over 32 bits", ACCEPTED | {"max_new": 1 << 32}),
    ("a count as a boolean", ACCEPTED | {"n_cached": True}),
    ("a count as a float", ACCEPTED | {"eta_ms": 1.0}),
    ("a key missing", without(ACCEPTED, "position")),
    ("a long sampler", ACCEPTED | {"sampler": "x" * 33}),
    ("begun in bytes", ACCEPTED | {"begun": b"<think>"}),
    ("begun null", ACCEPTED | {"begun": None}),
    ("begun with a lot", ACCEPTED | {"begun": "x" * 65}),
    ("a part as text", PART | {"bytes": "x"}),
    ("a part of a list", PART | {"bytes": [0]}),
    ("a part below 0", PART | {"at": -1}),
    ("a part without a place", without(PART, "at")),
    ("answered without numbers", without(ANSWERED, "n_tokens")),
    ("answered with one number", ANSWERED | {"n_tokens": 3}),
    ("answered with a text", ANSWERED | {"n_tokens": ["3"]}),
    ("answered with a number below 0", ANSWERED | {"n_tokens": [-1]}),
    ("answered with a boolean", ANSWERED | {"n_tokens": [True]}),
    ("an unknown phase", ALIVE | {"phase": "dreaming"}),
    ("progress over 1", ALIVE | {"progress": 1.1}),
    ("a wait below 0", ALIVE | {"eta_ms": -1}),
    ("a wait as a float", ALIVE | {"eta_ms": 700.0}),
    ("progress not a number", ALIVE | {"progress": float("nan")}),
    ("no tokens", TOKENS | {"ids": [], "bytes": []}),
    ("fewer bytes than ids", TOKENS | {"bytes": [b""]}),
    ("bytes as text", TOKENS | {"bytes": ["a", "b"]}),
    ("ids as a map", TOKENS | {"ids": {}}),
    ("log-probabilities as a map", TOKENS | {"logprobs": {}}),
    ("no log-probabilities for two tokens", likely()),
    ("one log-probability for two tokens", likely([-0.5, []])),
    ("three log-probabilities for two tokens", likely(*[[-0.5, []]] * 3)),
    ("a log-probability without its list", likely(-0.5, -0.5)),
    ("a log-probability with something behind", likely(*[[-0.5, [], 1]] * 2)),
    ("a log-probability as text", likely(*[["-0.5", []]] * 2)),
    ("a log-probability as a boolean", likely(*[[False, []]] * 2)),
    ("a log-probability that is not a number", likely(*[[float("nan"), []]] * 2)),
    ("a log-probability of minus infinity", likely(*[[float("-inf"), []]] * 2)),
    ("a log-probability below float32", likely(*[[-3.5e38, []]] * 2)),
    ("a log-probability above 0", likely(*[[0.001, []]] * 2)),
    ("likely tokens as a map", likely(*[[-0.5, {}]] * 2)),
    ("a likely token as bytes", likely(*[[-0.5, [b"abc"]]] * 2)),
    ("a likely token as text", likely(*[[-0.5, ["abc"]]] * 2)),
    ("a likely token without bytes", top(11, -0.5)),
    ("a likely token's bytes as text", top(11, "x", -0.5)),
    ("a likely token's id below 0", top(-1, b"x", -0.5)),
    ("a likely token that is not a number", top(11, b"x", float("nan"))),
    ("a likely token above 0", top(11, b"x", 0.5)),
    ("21 likely tokens", likely(*[[-0.5, [[n, b"", -2.0] for n in range(21)]]] * 2)),
    ("an unknown stop", stops({"kind": "tired"})),
    ("a stop without a kind", stops({})),
    ("a stop of text", stops("eog")),
    ("a long stop string", stops({"kind": "string", "string": "x" * 257})),
    ("usage a list", FINISHED | {"usage": []}),
    ("timings missing", without(FINISHED, "timings")),
    ("choices of numbers", FINISHED | {"choices": [1]}),
    ("an error of another code's type", ERROR | {"code": 7}),
    ("a code too long", ERROR | {"code": "c" * 65}),
    ("a message too long", ERROR | {"message": "m" * 513}),
    ("a message in bytes", ERROR | {"message": b"m"}),
    ("retrying as a number", ERROR | {"retry_elsewhere": 1}),
    ("numbers with a fraction", ERROR | {"numbers": {"n_ctx": 0.5}}),
    ("too many numbers", ERROR | {"numbers": {str(n): n for n in range(9)}}),
    ("a number over 2^53", ERROR | {"numbers": {"n_ctx": (1 << 53) + 1}}),
]


def plain(value: Any) -> Any:
    """As JSON: bytes in hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def packed(frame: dict[str, Any]) -> bytes:
    data: bytes = msgpack.packb(frame, use_single_float="logprobs" in frame)
    return data


def main() -> None:
    chunks: list[dict[str, Any]] = []
    for name, frames, means in RIGHT:
        data = b"".join(map(packed, frames))
        meaning = [plain(frame) for frame in means]
        chunks.append({"name": name, "frames": data.hex(), "expect": "success", "means": meaning})
    for name, frame in WRONG:
        data = msgpack.packb(frame)
        chunks.append({"name": name, "frames": data.hex(), "expect": "protocol_error"})
    for name, data in (
        ("cut off", msgpack.packb(ALIVE)[:-1]),
        ("cut off within the second", msgpack.packb(ALIVE) + msgpack.packb(TOKENS)[:9]),
        ("a type that msgpack does not know", b"\xc1"),
        ("a bomb", b"\x81\xa1f\xdd\xff\xff\xff\xff"),
    ):
        chunks.append({"name": name, "frames": data.hex(), "expect": "protocol_error"})
    about = (
        "docs/protocol.md, section 5: the frames of one chunk, in hex. `means`: the known frames, "
        "with their known keys; bytes in hex."
    )
    PATH.write_text(json.dumps({"about": about, "chunks": chunks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
