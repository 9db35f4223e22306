"""Writes requests.json and refusals.json in tests/vectors: run as a module, `python -m`.

The msgpack maps inside a sealed request and outside the seal of a refusal, by hand from
docs/protocol.md, sections 4 and 5. The files are part of the specification: run it only when the
wire changes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgpack

from tests.peer.write_vectors import plain

FOLDER = Path(__file__).resolve().parent.parent / "vectors"

REQUEST: dict[str, Any] = {
    "v": 1,
    "op": "generate",
    "requires": [],
    "epoch": bytes(range(8)),
    "resp_secret": bytes(range(32)),
    "reply_key": b"k" * 1216,
    "artifact": "ab" * 32,
    "template": "cd" * 32,
    "cache_scope": bytes(range(16)),
    "seed": bytes(range(8)),
    "as_of": "2026-03-01",
    "attempt": 0,
    "body": b'{"prompt":"x"}',
}
UNKNOWN: dict[str, Any] = {"credential": b"c" * 99, "of later": [{"a": [None, 1.5]}], "x": "y" * 99}
IDS = b"\1\0\0\0\x70\x11\1\0"
RESUME = [{"choice": 0, "ids": IDS}]
DIGEST = bytes(range(100, 132))
NO_HEDGE = {"hedge": False}
NOTHING_RESUMED: dict[str, Any] = {"resume": [], "prompt_digest": b""}
KNOWN = ["choices", "grammar", "logprobs", "penalties", "prompt_ids", "resume", "tools"]

RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("the smallest", {}),
    ("without a template", {"template": ""}),
    ("an epoch of zeros", {"epoch": bytes(8)}),
    ("the last attempt", {"attempt": 255}),
    ("a hedge", {"hedge": True}),
    ("no hedge", {"hedge": False}),
    ("every requirement there is", {"requires": KNOWN}),
    ("a requirement twice", {"requires": ["tools", "tools"]}),
    ("an empty resume asks for nothing", {"resume": []}),
    ("a digest without a resume means nothing", {"prompt_digest": bytes(3)}),
    ("unknown keys", UNKNOWN),
    ("grease of any type", {"~a": None, "~b": {"~c": [b"\0", -1, 1 << 63]}, "~d": 0.5}),
    ("a body that only gen/1 can judge", {"body": b"{}"}),
    ("embed", {"op": "embed", "template": "", "body": b'{"inputs":["x"]}'}),
    ("count", {"op": "count"}),
    ("score", {"op": "score", "body": b'{"prompt":"x","ids":"AQAAAA=="}'}),
]
RESUMING: list[tuple[str, list[Any], list[dict[str, Any]]]] = [
    ("a resume", RESUME, [{"choice": 0, "ids": [1, 70000]}]),
    (
        "a resume of two choices, nothing of one yet",
        [{"ids": IDS[:4], "choice": 15}, {"choice": 3, "ids": b""}],
        [{"choice": 15, "ids": [1]}, {"choice": 3, "ids": []}],
    ),
    (
        "a resume with unknown keys and grease",
        [{"choice": 0, "x": [1], "ids": b"\xff" * 4, "~a": {"~b": None}}],
        [{"choice": 0, "ids": [4294967295]}],
    ),
]
UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    ("another op", {"op": "of later"}),
    ("an op in capitals", {"op": "EMBED"}),
    ("an empty op", {"op": ""}),
    ("an unknown requirement", {"requires": ["of later"]}),
    ("an unknown one among known ones", {"requires": [*KNOWN, "of later"]}),
    ("a requirement in capitals", {"requires": ["TOOLS"]}),
    ("an empty requirement", {"requires": [""]}),
    ("grease as a requirement", {"requires": ["~tools"]}),
]
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("version 2", {"v": 2}),
    ("a version as a boolean", {"v": True}),
    ("op in bytes", {"op": b"generate"}),
    ("an over-long op", {"op": "x" * 65}),
    ("requires as text", {"requires": "x"}),
    ("requires of numbers", {"requires": [1]}),
    ("too many requirements", {"requires": ["x"] * 33}),
    ("an epoch of 7 bytes", {"epoch": bytes(7)}),
    ("an epoch as text", {"epoch": "e" * 8}),
    ("a secret of 31 bytes", {"resp_secret": bytes(31)}),
    ("a reply key of another length", {"reply_key": bytes(1217)}),
    ("no artifact", {"artifact": ""}),
    ("an artifact in capitals", {"artifact": "AB" * 32}),
    ("an artifact and a line break", {"artifact": "ab" * 32 + "\n"}),
    ("a template that is no hash", {"template": "x"}),
    ("no cache scope", {"cache_scope": b""}),
    ("a seed as a number", {"seed": 1}),
    ("a day that there is not", {"as_of": "2025-02-30"}),
    ("a date in another form", {"as_of": "20260301"}),
    ("an attempt below 0", {"attempt": -1}),
    ("an attempt over 255", {"attempt": 256}),
    ("a hedge as a number", {"hedge": 1}),
    ("requires nested", {"requires": [["tools"]]}),
    ("a resume that is none", {"resume": 0}),
    ("a resume as a map", {"resume": RESUME[0], "prompt_digest": DIGEST}),
    ("a resume without the prompt's digest", {"resume": RESUME}),
    ("a prompt's digest of 31 bytes", {"resume": RESUME, "prompt_digest": DIGEST[1:]}),
    ("a prompt's digest as text", {"resume": RESUME, "prompt_digest": "d" * 32}),
    *(
        (f"a resume: {name}", {"resume": resume, "prompt_digest": DIGEST})
        for name, resume in (
            ("no map", [0]),
            ("no choice", [{"ids": IDS}]),
            ("no ids", [{"choice": 0}]),
            ("a choice over 15", [{"choice": 16, "ids": IDS}]),
            ("a choice as a boolean", [{"choice": True, "ids": IDS}]),
            ("ids as a list", [{"choice": 0, "ids": [1, 2]}]),
            ("ids that end within one", [{"choice": 0, "ids": IDS[:-1]}]),
            ("a choice twice", RESUME * 2),
            ("17 choices", [{"choice": choice, "ids": b""} for choice in range(17)]),
        )
    ),
    ("a body as text", {"body": "{}"}),
    ("a body as a map", {"body": {}}),
    ("an extension type", {"v": msgpack.ExtType(1, b"x")}),
]


def with_pairs(*pairs: bytes) -> bytes:
    """The whole map with more pairs, already packed, at its end."""
    body = b"".join(msgpack.packb(key) + msgpack.packb(value) for key, value in REQUEST.items())
    return b"\xde" + struct.pack(">H", len(REQUEST) + len(pairs)) + body + b"".join(pairs)


def no_maps() -> list[tuple[str, bytes]]:
    """What is not the map it must be, byte by byte."""
    whole = bytes(msgpack.packb(REQUEST))
    return [
        ("nothing", b""),
        ("a list", b"\x90"),
        ("an empty map", b"\x80"),
        ("a type that msgpack does not know", b"\xc1"),
        ("cut off", whole[:-1]),
        ("bytes after the map", whole + b"\0"),
        ("a known key twice", with_pairs(b"\xa1v\x01")),
        ("an unknown key twice", with_pairs(*[b"\xa3new\x01"] * 2)),
        ("grease twice under one name", with_pairs(*[b"\xa2~a\xc0"] * 2)),
        ("a key that is no text", with_pairs(b"\x01\x01")),
        ("an over-long key", with_pairs(b"\xd9\x41" + b"x" * 65 + b"\x01")),
        ("too many keys", with_pairs(*(b"\xa3%03d\x01" % n for n in range(52)))),
        ("an unknown value nested too deep", with_pairs(b"\xa1x" + b"\x91" * 5000 + b"\x90")),
        ("an unknown value that announces 2^32 - 1 items", with_pairs(b"\xa1x\xdd" + b"\xff" * 4)),
        ("a map that announces 2^32 - 1 keys", b"\xdf" + b"\xff" * 4),
    ]


def request_vectors() -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = []
    for expect, cases in (
        ("success", RIGHT),
        ("unsupported", UNSUPPORTED),
        ("bad_format", WRONG),
    ):
        for name, changes in cases:
            fields = REQUEST | changes
            vector = {"name": name, "payload": msgpack.packb(fields).hex(), "expect": expect}
            if expect == "success":
                fields = NO_HEDGE | fields
                known = {k: value for k, value in fields.items() if k in NO_HEDGE | REQUEST}
                vector["means"] = plain(known | NOTHING_RESUMED)
            vectors.append(vector)
    for name, sent, resume in RESUMING:
        payload = msgpack.packb(REQUEST | {"resume": sent, "prompt_digest": DIGEST}).hex()
        means = plain(REQUEST | NO_HEDGE | {"resume": resume, "prompt_digest": DIGEST})
        vectors.append({"name": name, "payload": payload, "expect": "success", "means": means})
    for name in REQUEST:
        rest = {key: value for key, value in REQUEST.items() if key != name}
        payload = msgpack.packb(rest).hex()
        vectors.append({"name": f"without {name}", "payload": payload, "expect": "bad_format"})
    vectors += [
        {"name": name, "payload": data.hex(), "expect": "bad_format"} for name, data in no_maps()
    ]
    return vectors


def refusal(fields: object) -> bytes:
    payload = bytes(msgpack.packb(fields))
    return b"\0" + struct.pack(">H", len(payload)) + payload


KEYS, LIVE = b"a signed keys envelope", b"a signed live envelope"
BUSY = {"code": "busy", "retry_after_s": 2.0}
STALE = {"code": "stale_epoch", "keys": KEYS, "live": LIVE}
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("unknown key", {"code": "unknown_key", "keys": KEYS, "live": LIVE}, {}),
    ("stale epoch", STALE, {}),
    ("an outdated one without envelopes", {"code": "unknown_key"}, {}),
    ("busy", BUSY, {}),
    ("busy without advice", {"code": "busy"}, {}),
    ("too big", {"code": "too_big"}, {}),
    ("bad format", {"code": "bad_format"}, {}),
    ("unknown keys and grease", STALE | {"~x": {"~y": [1]}, "of later": b""}, {}),
    ("advice over an hour is ignored", BUSY | {"retry_after_s": 3601}, {"retry_after_s": None}),
    ("advice that is no number is ignored", BUSY | {"retry_after_s": "1"}, {"retry_after_s": None}),
    ("an envelope as text is ignored", STALE | {"keys": "x"}, {"keys": None}),
]
NO_REFUSALS: list[tuple[str, bytes, str]] = [
    ("no map", refusal(["busy"]), "protocol_error"),
    ("no code", refusal({}), "protocol_error"),
    ("a code as a number", refusal({"code": 1}), "protocol_error"),
    ("a code that is only said inside the seal", refusal({"code": "internal"}), "protocol_error"),
    ("an unknown code", refusal({"code": "of later"}), "protocol_error"),
    ("no msgpack", b"\0\0\1\xc1", "protocol_error"),
    ("nothing in it", b"\0\0\0", "protocol_error"),
    ("over-long", b"\0\x20\x01" + bytes(8193), "protocol_error"),
    ("bytes after it", refusal(BUSY) + b"\0", "protocol_error"),
    ("cut off", refusal(BUSY)[:-1], "connection_lost"),
    ("cut off in its length", b"\0\0", "connection_lost"),
    ("no answer at all", b"", "connection_lost"),
]


def refusal_vectors() -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = []
    for name, fields, changes in REFUSED:
        known = {key: fields.get(key) for key in ("code", "keys", "live", "retry_after_s")}
        means = plain(known | changes)
        answer = refusal(fields).hex()
        vectors.append({"name": name, "answer": answer, "expect": "success", "means": means})
    for name, data, expect in NO_REFUSALS:
        vectors.append({"name": name, "answer": data.hex(), "expect": expect})
    return vectors


def write(name: str, about: str, key: str, vectors: list[dict[str, Any]]) -> None:
    text = json.dumps({"about": about, key: vectors}, indent=1)
    (FOLDER / name).write_text(text + "\n")


def main() -> None:
    write(
        "requests.json",
        "docs/protocol.md, section 4: the msgpack map inside a sealed request, in hex. `means`: "
        "the known keys but `credential`; bytes in hex, the ids of `resume` as numbers.",
        "requests",
        request_vectors(),
    )
    write(
        "refusals.json",
        "docs/protocol.md, section 5: a whole answer that is an unsealed refusal, in hex, up to "
        "the end of the stream. `means`: what is in it; null if absent or ignored.",
        "refusals",
        refusal_vectors(),
    )


if __name__ == "__main__":
    main()
