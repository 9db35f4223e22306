"""Writes tests/vectors/frames.json: `python -m tests.peer.write_vectors`.

What the frames mean is written by hand below, in the terms of `tokenplace.generation`; the bytes
are msgpack's. The file is part of the specification: run it only when the wire changes.
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
MEANS = {
    "accepted": (
        f"Accepted(prompt_digest={bytes(32)!r}, n_prompt=7, n_cached=3, n_ctx=4096, max_new=100, "
        "sampler='tp/1', eta_ms=1500, position=1, donor='')"
    ),
    "alive": "Alive(phase=<Phase.PREFILL: 'prefill'>, progress=0.5, position=0)",
    "tokens": "Tokens(choice=0, index=4, ids=(11, 70000), pieces=(b'gr\\xc3', b'\\xbc'))",
    "finished": (
        "Finished(choices=(ChoiceEnd(choice=0, stop=EogStop(id=2)),), "
        "usage=Usage(n_prompt=7, n_cached=3, n_completion=6), "
        "timings=Timings(queue_ms=1, prefill_ms=2, decode_ms=3))"
    ),
}


def stops(stop: object) -> dict[str, Any]:
    return FINISHED | {"choices": [{"choice": 0, "stop": stop}]}


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


RIGHT: list[tuple[str, list[dict[str, Any]], list[str]]] = [
    ("accepted", [ACCEPTED], [MEANS["accepted"]]),
    ("tokens and alive", [TOKENS, ALIVE], [MEANS["tokens"], MEANS["alive"]]),
    ("finished", [FINISHED], [MEANS["finished"]]),
    (
        "stopped at a string",
        [stops({"kind": "string", "string": "\n\n"})],
        [MEANS["finished"].replace("EogStop(id=2)", "StringStop(string='\\n\\n')")],
    ),
    (
        "stopped at the length",
        [stops({"kind": "length"})],
        [MEANS["finished"].replace("EogStop(id=2)", "LengthStop()")],
    ),
    ("no frames, a heartbeat", [], []),
    ("an unknown frame", [{"f": "receipt", "x": 1}], []),
    ("an unknown key", [ALIVE | {"x": [1]}], [MEANS["alive"]]),
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
]


def main() -> None:
    chunks: list[dict[str, Any]] = []
    for name, frames, means in RIGHT:
        data = b"".join(map(msgpack.packb, frames))
        chunks.append({"name": name, "frames": data.hex(), "expect": "success", "means": means})
    for name, frame in WRONG:
        data = msgpack.packb(frame)
        chunks.append({"name": name, "frames": data.hex(), "expect": "protocol_error"})
    data = msgpack.packb(ALIVE)[:-1]
    chunks.append({"name": "cut off", "frames": data.hex(), "expect": "protocol_error"})
    about = (
        "docs/protocol.md, section 5: the frames of one chunk, in hex. `means` names the values in "
        "Python's notation."
    )
    PATH.write_text(json.dumps({"about": about, "chunks": chunks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
