"""Writes tests/vectors/sealing.json: `python -m tests.sealing.write_vectors`.

HPKE draws its own randomness, so a request cannot be sealed twice alike: the vectors are for
opening. They are made from the second implementation (`forge.py`), and the product must open them.
Run it only when the wire changes; the file is part of the specification.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tests.sealing import forge
from tests.sealing.forge import BOB_ID, DONOR_KEY, KEY_ID, NETWORK, REPLY_KEY, RESP_SECRET

PATH = Path(__file__).resolve().parent.parent / "vectors" / "sealing.json"
PAYLOAD = bytes.fromhex("81a17601")  # {"v": 1} in msgpack
Vector = dict[str, Any]


def flip(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def request_vectors() -> list[Vector]:
    sealed = forge.seal_request(forge.pad(PAYLOAD))
    other_suite = forge.seal_request(forge.pad(PAYLOAD), forge.header(aead=1))
    other_key = forge.seal_request(forge.pad(PAYLOAD), forge.header(key_id=KEY_ID + 1))
    not_zeros = forge.seal_request(flip(forge.pad(PAYLOAD), -1))
    too_long = forge.seal_request(struct.pack(">I", 2045) + bytes(2044))
    no_power = forge.seal_request(forge.pad(PAYLOAD) + bytes(128))
    cases: list[tuple[str, bytes, str, Vector]] = [
        ("whole", sealed, "success", {}),
        ("another network", sealed, "bad_format", {"network": "other"}),
        ("another donor", sealed, "bad_format", {"donor_id": b"A" + BOB_ID[1:]}),
        ("another format", flip(sealed, 0), "bad_format", {}),
        ("an unknown key", other_key, "unknown_key", {}),
        ("another suite", other_suite, "bad_format", {}),
        ("changed enc", flip(sealed, 8), "bad_format", {}),
        ("changed ciphertext", flip(sealed, 2000), "bad_format", {}),
        ("changed tag", flip(sealed, -1), "bad_format", {}),
        ("cut off", sealed[:-1], "bad_format", {}),
        ("padding that is not zeros", not_zeros, "bad_format", {}),
        ("a length beyond the end", too_long, "bad_format", {}),
        ("padded to no power of two", no_power, "bad_format", {}),
    ]
    vectors = []
    for name, data, expect, changes in cases:
        inputs: Vector = {"network": NETWORK, "donor_id": BOB_ID, **changes}
        vector: Vector = {
            "name": name,
            "network": inputs["network"],
            "donor_id": inputs["donor_id"].hex(),
            "sealed": data.hex(),
            "expect": expect,
        }
        if expect == "success":
            vector |= {"payload": PAYLOAD.hex(), "digest": forge.digest_of(data).hex()}
        vectors.append(vector)
    return vectors


def answer_vectors() -> list[Vector]:
    answer = forge.Answer(forge.digest_of(b"a sealed request"))
    opening = answer.opening
    one, two, final = answer.chunk(b"one"), answer.chunk(b"two" * 50), answer.final(b"the end")
    early = forge.Answer(forge.digest_of(b"a sealed request"))
    early.opening = opening  # the same keys: `shared` and `nonce` are
    fake_final = early.final(b"one")
    unmarked = forge.Answer(forge.digest_of(b"a sealed request"))
    not_final = forge.varint(0) + unmarked.ciphertext(forge.frames_plaintext(b"one"))
    whole = [("one", False), ("two" * 50, False), ("the end", True)]
    cases = [
        ("whole", opening + one + two + final, "success", whole),
        ("only a final chunk", opening + fake_final, "success", [("one", True)]),
        ("ends after the opening", opening, "connection_lost", []),
        ("ends between chunks", opening + one, "connection_lost", whole[:1]),
        ("ends within a chunk", opening + one + two[:-1], "connection_lost", whole[:1]),
        ("ends in the final chunk", opening + one + two + final[:-1], "connection_lost", whole[:2]),
        ("a dropped chunk", opening + two + final, "protocol_error", []),
        ("swapped chunks", opening + two + one + final, "protocol_error", []),
        ("a repeated chunk", opening + one + one + two + final, "protocol_error", whole[:1]),
        ("a changed chunk", opening + flip(one, 20) + two + final, "protocol_error", []),
        ("another nonce", flip(opening, -1) + one + two + final, "protocol_error", []),
        ("another enc", flip(opening, 3) + one + two + final, "protocol_error", []),
        ("a final chunk not marked so", opening + not_final, "protocol_error", []),
        (
            "bytes after the end",
            opening + one + two + final + bytes(128),
            "protocol_error",
            whole[:2],
        ),
        ("a huge chunk", opening + forge.varint((1 << 62) - 1), "protocol_error", []),
        ("a chunk of no padded size", opening + forge.varint(60) + bytes(60), "protocol_error", []),
        ("an unknown kind", b"\2" + opening[1:] + one + two + final, "protocol_error", []),
        ("a key of another length", b"\1\0\x30" + bytes(48), "protocol_error", []),
    ]
    return [
        {
            "name": name,
            "stream": stream.hex(),
            "expect": expect,
            "chunks": [{"frames": frames.encode().hex(), "final": last} for frames, last in chunks],
        }
        for name, stream, expect, chunks in cases
    ]


def key_vector(seeds: tuple[bytes, bytes], public: bytes) -> Vector:
    return {"mlkem_seed": seeds[0].hex(), "x25519": seeds[1].hex(), "public": public.hex()}


def main() -> None:
    vectors = {
        "about": [
            "docs/protocol.md, sections 4 and 5. All bytes in hex.",
            "requests: open `sealed` with the donor key; `expect`: success, or a code (section 8).",
            "answers: open `stream` and its end with the reply key; `chunks` come before that.",
        ],
        "donor_key": {"id": KEY_ID, **key_vector(forge.DONOR_SEEDS, DONOR_KEY.public)},
        "requests": request_vectors(),
        "reply_key": key_vector(forge.REPLY_SEEDS, REPLY_KEY.public),
        "resp_secret": RESP_SECRET.hex(),
        "request_digest": forge.digest_of(b"a sealed request").hex(),
        "answers": answer_vectors(),
    }
    PATH.write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
