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

import msgpack

from tests.sealing import forge
from tests.sealing.forge import BOB_ID, DONOR_KEY, KEY_ID, NETWORK, REPLY_KEY, RESP_SECRET
from tokenplace import defaults

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
    too_short = forge.seal_request(struct.pack(">I", 0) + bytes(1020))
    reserved = forge.seal_request(forge.pad(PAYLOAD), forge.header(kem=0x1A1A))
    weak = forge.seal_weakly(forge.pad(PAYLOAD))
    weak_by_another_name = forge.seal_weakly(forge.pad(PAYLOAD), forge.header())
    over_long = {"zeros": defaults.MAX_REQUEST_FRAME_BYTES - len(sealed) + 1}
    cases: list[tuple[str, bytes, str, Vector]] = [
        ("whole", sealed, "success", {}),
        ("another network", sealed, "bad_format", {"network": "other"}),
        ("another donor", sealed, "bad_format", {"donor_id": b"A" + BOB_ID[1:]}),
        ("nothing", b"", "bad_format", {}),
        ("a header alone", forge.header(), "bad_format", {}),
        ("another format", flip(sealed, 0), "bad_format", {}),
        ("an unknown key", other_key, "unknown_key", {}),
        ("another suite", other_suite, "bad_format", {}),
        ("a reserved suite under a known key", reserved, "bad_format", {}),
        ("sealed to the X25519 half alone", weak, "bad_format", {}),
        ("the same, said to be the hybrid", weak_by_another_name, "bad_format", {}),
        ("changed enc", flip(sealed, 8), "bad_format", {}),
        ("changed ciphertext", flip(sealed, 2000), "bad_format", {}),
        ("changed tag", flip(sealed, -1), "bad_format", {}),
        ("cut off", sealed[:-1], "bad_format", {}),
        ("padding that is not zeros", not_zeros, "bad_format", {}),
        ("a length beyond the end", too_long, "bad_format", {}),
        ("padded to no power of two", no_power, "bad_format", {}),
        ("padded to less than 2 KiB", too_short, "bad_format", {}),
        ("over-long", sealed, "too_big", over_long),
    ]
    vectors = []
    for name, data, expect, changes in cases:
        inputs: Vector = {"network": NETWORK, "donor_id": BOB_ID, **changes}
        vector: Vector = {
            "name": name,
            "network": inputs["network"],
            "donor_id": inputs["donor_id"].hex(),
            "sealed": data.hex(),
            **({"zeros": inputs["zeros"]} if "zeros" in inputs else {}),
            "expect": expect,
        }
        if expect == "success":
            vector |= {"payload": PAYLOAD.hex(), "digest": forge.digest_of(data).hex()}
        vectors.append(vector)
    return vectors


def replay_vectors() -> Vector:
    """Requests in the order they come in, and what the donor says to each."""
    epoch = bytes(range(8))
    fields: dict[str, Any] = {
        **{"v": 1, "op": "generate", "requires": [], "epoch": epoch, "resp_secret": RESP_SECRET},
        **{"reply_key": REPLY_KEY.public, "artifact": "ab" * 32, "template": ""},
        **{"cache_scope": bytes(16), "seed": bytes(8), "as_of": "2026-03-01", "attempt": 0},
        "body": b'{"prompt":"x"}',
    }

    def sealed(**changes: object) -> bytes:
        return forge.seal_request(forge.pad(msgpack.packb({**fields, **changes})))

    first, again = sealed(), sealed()
    steps = [
        ("the first", first, "success"),
        ("replayed", first, "stale_epoch"),
        ("the same, sealed anew", again, "success"),
        ("replayed after another", first, "stale_epoch"),
        ("under an epoch that was never said", sealed(epoch=b"8 bytes."), "stale_epoch"),
        ("by who knows no epoch", sealed(epoch=bytes(8)), "stale_epoch"),
        ("without an epoch", sealed(epoch=b""), "bad_format"),
        ("replayed after its garbage was refused", again, "stale_epoch"),
    ]
    return {
        "epoch": epoch.hex(),
        "network": NETWORK,
        "donor_id": BOB_ID.hex(),
        "steps": [
            {"name": name, "sealed": data.hex(), "expect": expect} for name, data, expect in steps
        ],
    }


def answer_vectors() -> list[Vector]:
    answer = forge.Answer(forge.digest_of(b"a sealed request"))
    opening = answer.opening
    one, two, final = answer.chunk(b"one"), answer.chunk(b"two" * 50), answer.final(b"the end")
    early = forge.Answer(forge.digest_of(b"a sealed request"))
    early.opening = opening  # the same keys: `shared` and `nonce` are
    fake_final = early.final(b"one")
    unmarked = forge.Answer(forge.digest_of(b"a sealed request"))
    not_final = forge.varint(0) + unmarked.ciphertext(forge.frames_plaintext(b"one"))
    other = forge.Answer(forge.digest_of(b"another sealed request"))
    of_another = opening + other.chunk(b"one") + other.final(b"the end")
    not_zeros = one_chunk(opening, struct.pack(">H", 1) + b"x" + bytes(124) + b"\1")
    beyond = one_chunk(opening, struct.pack(">H", 127) + bytes(126))
    longest = defaults.MAX_CHUNK_BYTES + 16
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
        ("an early final", opening + one + b"\0" + two[2:], "protocol_error", whole[:1]),
        ("a changed final", opening + one + two + flip(final, -1), "protocol_error", whole[:2]),
        # Its length is no chunk's: as if it had been cut off.
        ("a repeated final", opening + one + two + final + final, "connection_lost", whole[:2]),
        ("an answer to another request", of_another, "protocol_error", []),
        ("padding that is not zeros", not_zeros, "protocol_error", []),
        ("frames longer than their chunk", beyond, "protocol_error", []),
        ("an over-long chunk", opening + forge.varint(longest + 128), "protocol_error", []),
        ("an over-long final", opening + b"\0" + bytes(longest + 1), "protocol_error", []),
        ("nothing", b"", "connection_lost", []),
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


def one_chunk(opening: bytes, plaintext: bytes) -> bytes:
    answer = forge.Answer(forge.digest_of(b"a sealed request"))
    ciphertext = answer.ciphertext(plaintext)
    return opening + forge.varint(len(ciphertext)) + ciphertext


def key_vector(seeds: tuple[bytes, bytes], public: bytes) -> Vector:
    return {"mlkem_seed": seeds[0].hex(), "x25519": seeds[1].hex(), "public": public.hex()}


def main() -> None:
    vectors = {
        "about": [
            "docs/protocol.md, sections 4 and 5. All bytes in hex.",
            "requests: open `sealed`, followed by `zeros` zero bytes if given, with the donor key.",
            "replays: `epoch` is the donor's only one; `steps` come in one after the other.",
            "answers: open `stream` and its end with the reply key; `chunks` come before that.",
            "`expect`: success, or a code (section 8).",
        ],
        "donor_key": {"id": KEY_ID, **key_vector(forge.DONOR_SEEDS, DONOR_KEY.public)},
        "requests": request_vectors(),
        "replays": replay_vectors(),
        "reply_key": key_vector(forge.REPLY_SEEDS, REPLY_KEY.public),
        "resp_secret": RESP_SECRET.hex(),
        "request_digest": forge.digest_of(b"a sealed request").hex(),
        "answers": answer_vectors(),
    }
    PATH.write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
