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
ALIVE: dict[str, Any] = {"f": "alive", "phase": "prefill", "progress": 0.5, "position": 0}
TOKENS: dict[str, Any] = {
    "f": "tokens",
    "choice": 0,
    "index": 4,
    "ids": [11, 70000],
    "bytes": [b"gr\xc3", b"\xbc"],
}
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


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


RIGHT: list[tuple[str, list[Any], list[dict[str, Any]]]] = [
    ("accepted", [ACCEPTED], [ACCEPTED]),
    ("tokens and alive", [TOKENS, ALIVE], [TOKENS, ALIVE]),
    (
        "a phase that version 1 never sends",
        [ALIVE | {"phase": "requeued"}],
        [ALIVE | {"phase": "requeued"}],
    ),
    ("finished", [FINISHED], [FINISHED]),
    *(
        (name, [stops(stop)], [stops(stop)])
        for name, stop in (
            ("stopped at a string", {"kind": "string", "string": "\n\n"}),
            ("stopped at the length", {"kind": "length"}),
        )
    ),
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
    ("an unknown phase", ALIVE | {"phase": "dreaming"}),
    ("progress over 1", ALIVE | {"progress": 1.1}),
    ("progress not a number", ALIVE | {"progress": float("nan")}),
    ("no tokens", TOKENS | {"ids": [], "bytes": []}),
    ("fewer bytes than ids", TOKENS | {"bytes": [b""]}),
    ("bytes as text", TOKENS | {"bytes": ["a", "b"]}),
    ("ids as a map", TOKENS | {"ids": {}}),
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


def main() -> None:
    chunks: list[dict[str, Any]] = []
    for name, frames, means in RIGHT:
        data = b"".join(map(msgpack.packb, frames))
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
