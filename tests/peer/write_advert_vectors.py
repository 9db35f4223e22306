"""Writes tests/vectors/adverts.json: `python -m tests.peer.write_advert_vectors`.

Signed objects right and wrong, byte by byte from docs/protocol.md, section 3, and libp2p's RFC
0002: nothing here uses `tokenplace` or libp2p, so that both can be checked against each other.
Start at `Signed`. The file is part of the specification: run it only when the wire changes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import base58
import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PATH = Path(__file__).resolve().parent.parent / "vectors" / "adverts.json"

NETWORK, NOW, SEQ = "main", 1_800_000_000, 1_800_000_000_000
SEEDS = {"ALICE": bytes(range(32)), "BOB": b"bob".ljust(32, b".")}
LIFETIME_S = {"keys": 48 * 3600, "offer": 15 * 60, "live": 20}

MODEL = {
    "name": "smollm2-135m-instruct",
    "artifact": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "template": "dbe83a9ff7a5e7a3dbfc994eac57fee92cac8043427e82e9dc79e645fd7e7eb6",
    "profile": "llama.cpp b1, f16 KV, 2048",
    "n_ctx": 2048,
    "features": ["chat"],
}
HYBRID: dict[str, Any] = {
    "id": 7,
    "kem": 0x647A,
    "kdf": 1,
    "aead": 3,
    "public": bytes(n % 251 for n in range(1216)),
}
GREASE: dict[str, Any] = {
    "id": 8,
    "kem": 0x3A3A,
    "kdf": 0xFAFA,
    "aead": 0x0A0A,
    "public": b"means nothing",
}
X25519: dict[str, Any] = {"id": 9, "kem": 0x0020, "kdf": 1, "aead": 3, "public": bytes(32)}
ADDRS = ["/ip4/203.0.113.7/tcp/4010"]
LOAD = {"state": "accepting", "queue": 2, "prefill_tps": 310.0, "decode_tps": 7.2}


def private_key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(SEEDS[name])


def public_message(name: str) -> bytes:
    """libp2p's PublicKey: type Ed25519, 32 bytes."""
    return b"\x08\x01\x12\x20" + private_key(name).public_key().public_bytes_raw()


def peer_bytes(name: str) -> bytes:
    """The public key's identity multihash."""
    return b"\x00\x24" + public_message(name)


def peer_id(name: str) -> str:
    return base58.b58encode(peer_bytes(name)).decode()


def sized(data: bytes) -> bytes:
    """Behind its length as LEB128."""
    length, prefix = len(data), b""
    while length >= 0x80:
        prefix += bytes([length & 0x7F | 0x80])
        length >>= 7
    return prefix + bytes([length]) + data


@dataclass(frozen=True)
class Signed:
    """One envelope, as right as its fields. `payload` overrides what `fields` would say."""

    kind: str
    fields: dict[str, Any]
    signer: str = "ALICE"
    domain: str | None = None
    payload_type: str | None = None
    payload: bytes | None = None

    def but(self, **changes: Any) -> Signed:
        return replace(self, fields={**self.fields, **changes})

    def without(self, name: str) -> Signed:
        return replace(self, fields={k: v for k, v in self.fields.items() if k != name})

    def envelope(self) -> bytes:
        domain = self.domain or f"tokenplace/1/{NETWORK}/{self.kind}"
        payload_type = (self.payload_type or f"/tokenplace/{self.kind}").encode()
        payload = self.payload if self.payload is not None else msgpack.packb(self.fields)
        unsigned = sized(domain.encode()) + sized(payload_type) + sized(payload)
        signature = private_key(self.signer).sign(unsigned)
        return (
            b"\x0a"
            + sized(public_message(self.signer))
            + b"\x12"
            + sized(payload_type)
            + b"\x1a"
            + sized(payload)
            + b"\x2a"
            + sized(signature)
        )


def signed(kind: str, seq: int, fields: dict[str, Any]) -> Signed:
    common = {"v": 1, "peer": peer_bytes("ALICE"), "seq": seq, "nbf": NOW}
    return Signed(kind, {**common, "exp": NOW + LIFETIME_S[kind], **fields})


KEYS = signed("keys", SEQ, {"keys": [HYBRID]})
OFFER = signed(
    "offer",
    SEQ + 1,
    {
        "addrs": ADDRS,
        "models": [MODEL],
        "keys_hash": hashlib.sha256(KEYS.envelope()).digest(),
    },
)
LIVE = signed("live", SEQ + 2, {"epoch": bytes(range(8)), **LOAD})


def flip(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


Case = tuple[str, Signed, dict[str, Any]]
RIGHT: list[Case] = [
    ("keys", KEYS, {}),
    ("offer", OFFER, {}),
    ("live", LIVE, {}),
    ("an unknown field is ignored", LIVE.but(later=[1, {"x": b""}]), {}),
    ("keys that live shorter", KEYS.but(exp=NOW + 1), {}),
    ("keys with an entry of grease", KEYS.but(keys=[GREASE, HYBRID]), {}),
    ("keys of unknown suites only", KEYS.but(keys=[GREASE, X25519]), {}),
    ("an unknown field of a key", KEYS.but(keys=[HYBRID | {"later": [b""]}]), {}),
    ("an offer of nothing", OFFER.but(models=[]), {}),
    ("five minutes after the end, by the verifier's clock", LIVE, {"now": NOW + 20 + 300}),
    (
        "expired, but fetched from its donor just now",
        LIVE,
        {"now": NOW + 10**6, "from_donor": True},
    ),
    ("five minutes before the start", KEYS, {"now": NOW - 300}),
    ("seq equal to the floor", KEYS, {"floor_seq": SEQ}),
    ("a model's quantization", OFFER.but(models=[MODEL | {"quant": "Q4_1"}]), {}),
    ("one of 16 characters", OFFER.but(models=[MODEL | {"quant": "Q" * 16}]), {}),
]
# With part of the reason that this implementation gives.
WRONG: list[tuple[str, Signed, dict[str, Any], str]] = [
    ("a second later", LIVE, {"now": NOW + 321}, "expired"),
    ("a second earlier", KEYS, {"now": NOW - 301}, "not valid yet"),
    ("seq below the floor", KEYS, {"floor_seq": SEQ + 1}, "older than one already seen"),
    ("of another peer", KEYS, {"peer_id": peer_id("BOB")}, "signed by"),
    ("another peer's signature", replace(LIVE, signer="BOB"), {}, "signed by"),
    ("another peer's name", LIVE.but(peer=peer_bytes("BOB")), {}, "'peer'"),
    ("of another network", KEYS, {"network": "other"}, "signature"),
    ("an offer in place of keys", OFFER, {"kind": "keys"}, "payload type"),
    (
        "signed for another domain",
        replace(LIVE, domain=f"tokenplace/1/{NETWORK}/offer"),
        {},
        "signature",
    ),
    ("of another payload type", replace(LIVE, payload_type="/x"), {}, "payload type"),
    ("a live that lives too long", LIVE.but(exp=NOW + 21), {}, "lifetime"),
    ("an offer that lives too long", OFFER.but(exp=NOW + 901), {}, "lifetime"),
    ("keys that live too long", KEYS.but(exp=NOW + 48 * 3600 + 1), {}, "lifetime"),
    ("ends before it starts", LIVE.but(exp=NOW - 1), {}, "lifetime"),
    ("ends as it starts", LIVE.but(exp=NOW), {}, "lifetime"),
    ("version 2", LIVE.but(v=2), {}, "'v'"),
    ("a seq below 0", LIVE.but(seq=-1), {}, "'seq'"),
    ("a seq over 63 bits", LIVE.but(seq=1 << 63), {}, "'seq'"),
    ("a time with a fraction", LIVE.but(nbf=NOW + 0.5), {}, "'nbf'"),
    ("a number missing", LIVE.without("seq"), {}, "'seq'"),
    ("a queue that is no step", LIVE.but(queue=3), {}, "'queue'"),
    ("a bool for a number", LIVE.but(queue=False), {}, "'queue'"),
    ("an unknown state", LIVE.but(state="sleeping"), {}, "'state'"),
    ("speed is not a number", LIVE.but(decode_tps=float("nan")), {}, "'decode_tps'"),
    ("an unbelievable speed", LIVE.but(prefill_tps=1e8), {}, "'prefill_tps'"),
    ("an epoch of 9 bytes", LIVE.but(epoch=bytes(9)), {}, "'epoch'"),
    ("an epoch as text", LIVE.but(epoch="12345678"), {}, "'epoch'"),
    ("larger than 8 KiB", LIVE.but(later=bytes(8192)), {}, "larger"),
    ("a payload that is no map", replace(LIVE, payload=b"\x91\x01"), {}, "not a map"),
    ("a payload that is no msgpack", replace(LIVE, payload=b"\xc1"), {}, "not msgpack"),
    ("bytes after the payload's map", replace(LIVE, payload=b"\x80\0"), {}, "not msgpack"),
    ("no keys at all", KEYS.but(keys=[]), {}, "'keys'"),
    ("nine keys", KEYS.but(keys=[GREASE] * 9), {}, "'keys'"),
    ("keys in a map", KEYS.but(keys={}), {}, "'keys'"),
    ("a key that is no map", KEYS.but(keys=[7]), {}, "'keys'"),
    ("a key id over 255", KEYS.but(keys=[HYBRID | {"id": 256}]), {}, "'id'"),
    ("a suite over 16 bits", KEYS.but(keys=[HYBRID | {"kem": 1 << 16}]), {}, "'kem'"),
    ("a public key as text", KEYS.but(keys=[HYBRID | {"public": "x"}]), {}, "'public'"),
    ("an over-long public key", KEYS.but(keys=[GREASE | {"public": bytes(4097)}]), {}, "'public'"),
    ("a short keys_hash", OFFER.but(keys_hash=bytes(31)), {}, "'keys_hash'"),
    ("nine addresses", OFFER.but(addrs=ADDRS * 9), {}, "'addrs'"),
    ("an over-long address", OFFER.but(addrs=["/" * 257]), {}, "'addrs'"),
    ("an address that steers a terminal", OFFER.but(addrs=["\x1b[2J"]), {}, "'addrs'"),
    ("a name in capitals", OFFER.but(models=[MODEL | {"name": "SmolLM2"}]), {}, "'name'"),
    (
        "an artifact that is no hash",
        OFFER.but(models=[MODEL | {"artifact": "x"}]),
        {},
        "'artifact'",
    ),
    ("one of 17 characters", OFFER.but(models=[MODEL | {"quant": "Q" * 17}]), {}, "'quant'"),
    ("a quantization that is no text", OFFER.but(models=[MODEL | {"quant": 4}]), {}, "'quant'"),
    ("too many features", OFFER.but(models=[MODEL | {"features": ["f"] * 17}]), {}, "'features'"),
]


def raw_cases() -> list[tuple[str, bytes, str]]:
    """What no signer makes: `live` bytes changed after signing."""
    live = LIVE.envelope()
    rsa = b"\x0a" + sized(b"\x08\x00\x12\x20" + bytes(32)) + live[live.index(b"\x12\x10") :]
    long_type = live.index(b"\x12\x10")
    return [
        ("nothing", b"", "Ed25519"),
        ("garbage", b"\xff" * 40, "not an envelope"),
        ("a changed payload", flip(live, live.index(b"accepting")), "signature"),
        ("a changed signature", flip(live, -1), "signature"),
        ("cut off", live[:-1], "not an envelope"),
        ("a field after the envelope's last", live + b"\x30\0", "canonical"),
        ("a field twice", live + live[live.index(b"\x2a\x40") :], "canonical"),
        (
            "a length in more bytes than it needs",
            live[: long_type + 1] + b"\x90\0" + live[long_type + 2 :],
            "canonical",
        ),
        ("another type of key", rsa, "Ed25519"),
    ]


def case(name: str, kind: str, envelope: bytes) -> dict[str, Any]:
    inputs = {"kind": kind, "peer_id": peer_id("ALICE"), "network": NETWORK, "now": NOW}
    inputs |= {"floor_seq": 0, "from_donor": False}
    return {"name": name, **inputs, "envelope": envelope.hex()}


def cases() -> list[dict[str, Any]]:
    found = [
        case(name, right.kind, right.envelope()) | given | {"expect": "success"}
        for name, right, given in RIGHT
    ]
    for name, wrong, given, reason in WRONG:
        refused = case(name, given.get("kind", wrong.kind), wrong.envelope()) | given
        found.append(refused | {"expect": "protocol_error", "reason": reason})
    for name, data, reason in raw_cases():
        refused = case(name, "live", data)
        found.append(refused | {"expect": "protocol_error", "reason": reason})
    return found


def choices() -> list[dict[str, Any]]:
    """Which of a donor's keys a requester seals to; null: to none."""
    other_aead = HYBRID | {"id": 10, "aead": 1}
    short = HYBRID | {"id": 11, "public": bytes(1215)}
    second = HYBRID | {"id": 12}
    lists = [
        ("the only one", [HYBRID], 7),
        ("grease before it", [GREASE, HYBRID], 7),
        ("grease behind it", [HYBRID, GREASE], 7),
        ("the first of two", [second, HYBRID], 12),
        ("weaker ones before it", [X25519, other_aead, HYBRID], 7),
        ("one of a wrong size before it", [short, HYBRID], 7),
        ("a downgraded list", [X25519, GREASE, other_aead], None),
    ]
    return [
        {
            "name": name,
            "keys": [key | {"public": key["public"].hex()} for key in keys],
            "expect": expect,
        }
        for name, keys, expect in lists
    ]


def main() -> None:
    about = (
        "Signed objects, docs/protocol.md, section 3; bytes in hex. `seed` is the donor's Ed25519 "
        "private key. `keys`, `offer` and `live` are to be signed byte for byte. cases: verify "
        "`envelope` as the `kind` of `peer_id` in `network` at `now`; `from_donor`: it came from "
        "the donor itself; `expect` is success or protocol_error, `reason` a hint why. choices: "
        "the id of the key that a request is sealed to, null if none."
    )
    data = {
        "about": about,
        "seed": SEEDS["ALICE"].hex(),
        "peer_id": peer_id("ALICE"),
        "network": NETWORK,
        "now": NOW,
        "keys": {
            "seq": SEQ,
            "keys": [HYBRID | {"public": HYBRID["public"].hex()}],
            "envelope": KEYS.envelope().hex(),
        },
        "offer": {
            "seq": SEQ + 1,
            "addrs": ADDRS,
            "models": [MODEL],
            "envelope": OFFER.envelope().hex(),
        },
        "live": {
            "seq": SEQ + 2,
            "epoch": bytes(range(8)).hex(),
            **{"state": "accepting", "queue": 3, "prefill_tps": 312.4, "decode_tps": 7.25},
            "envelope": LIVE.envelope().hex(),
        },
        "cases": cases(),
        "choices": choices(),
    }
    PATH.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
