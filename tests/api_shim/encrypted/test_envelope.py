"""Envelopes against a client of other make."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api_shim.encrypted.client import (
    JAVASCRIPT,
    PYTHON,
    Client,
    aes_encrypt,
    base64_of,
    key_of,
    other_key,
    seal,
    seal_bytes,
)
from tokenplace.api_shim.encrypted import envelope
from tokenplace.api_shim.encrypted.envelope import NotOpened, SealedAnswer, open_sealed

HERE = Path(__file__).parent
PEER = key_of()
PUBLIC = PEER.public_key()
MESSAGES = [{"role": "user", "content": "Grüße, \u2028 donors 🦙"}]
SEALED = seal(MESSAGES, PUBLIC)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("wrapping", [PYTHON, JAVASCRIPT])
@settings(max_examples=40)
@given(value=json_values)
def test_what_a_client_seals_is_opened(wrapping: AsymmetricPadding, value: object) -> None:
    assert open_sealed(PEER, seal(value, PUBLIC, wrapping)) == value


def test_a_request_that_was_sealed_long_ago() -> None:
    """Made by OpenSSL's command line, not by the library that both sides use here."""
    vector = json.loads((HERE / "openssl.json").read_text("utf-8"))
    key = load_pem_private_key(vector["private_key"].encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    for name in ("oaep", "pkcs1_v15"):
        assert open_sealed(key, vector[name]) == vector["messages"]
    with pytest.raises(NotOpened):
        open_sealed(key, vector["oaep_sha1"])


# ---------------------------------------------------------------- what cannot be opened


def with_part(name: str, data: bytes) -> dict[str, Any]:
    return {**SEALED, name: base64_of(data)}


def part(name: str) -> bytes:
    return base64.b64decode(SEALED[name])


def wrapped(text: bytes, wrapping: AsymmetricPadding = PYTHON) -> dict[str, Any]:
    return with_part("cipherkey", PUBLIC.encrypt(text, wrapping))


def unpadded(plaintext: bytes) -> dict[str, str]:
    """Whole blocks whose padding is that of the plaintext's own end."""
    key, iv = os.urandom(32), os.urandom(16)
    return {
        "ciphertext": base64_of(aes_encrypt(key, iv, plaintext)[: len(plaintext)]),
        "cipherkey": base64_of(PUBLIC.encrypt(base64.b64encode(key), PYTHON)),
        "iv": base64_of(iv),
    }


def flipped(name: str, place: int) -> dict[str, Any]:
    data = bytearray(part(name))
    data[place] ^= 0x80
    return with_part(name, bytes(data))


MODULUS = PUBLIC.public_numbers().n
BROKEN: dict[str, Any] = {
    "nothing": None,
    "a list": [],
    "messages in clear": MESSAGES,
    "an empty object": {},
    **{f"no {name}": {n: t for n, t in SEALED.items() if n != name} for name in SEALED},
    **{f"{name} is null": {**SEALED, name: None} for name in SEALED},
    **{f"{name} is a list": {**SEALED, name: [1]} for name in SEALED},
    **{f"{name} is empty": {**SEALED, name: ""} for name in SEALED},
    **{f"{name} is no base64": {**SEALED, name: "#" + SEALED[name][1:]} for name in SEALED},
    **{f"{name} is no ASCII": {**SEALED, name: "ä" + SEALED[name][1:]} for name in SEALED},
    **{f"{name} lacks its padding": {**SEALED, name: text.rstrip("=")[:-1]}
       for name, text in SEALED.items()},
    **{f"{name} is a byte short": with_part(name, part(name)[:-1]) for name in SEALED},
    **{f"{name} is a byte long": with_part(name, part(name) + b"\0") for name in SEALED},
    **{f"{name} is hex": {**SEALED, name: part(name).hex()} for name in SEALED},
    "another peer's key": seal(MESSAGES, other_key().public_key()),
    "another peer's key, by PKCS#1": seal(MESSAGES, other_key().public_key(), JAVASCRIPT),
    "a key of 3072 bits": with_part("cipherkey", os.urandom(384)),
    "a wrapped key of 0": with_part("cipherkey", bytes(256)),
    "a wrapped key of 1": with_part("cipherkey", bytes(255) + b"\1"),
    "the modulus": with_part("cipherkey", MODULUS.to_bytes(256, "big")),
    "beyond the modulus": with_part("cipherkey", b"\xff" * 256),
    "a flip in the wrapped key": flipped("cipherkey", 100),
    "a flip in the last block": flipped("ciphertext", -1),
    "a flip in the first block": flipped("ciphertext", 0),
    "a flip in the IV": flipped("iv", 0),
    "a key that is not base64 text": wrapped(os.urandom(32)),
    "a key of 16 bytes": wrapped(base64.b64encode(os.urandom(16))),
    "a key of 31 bytes": wrapped(base64.b64encode(os.urandom(31))),
    "a key of 33 bytes": wrapped(base64.b64encode(os.urandom(33))),
    "44 bytes that are not base64": wrapped(b"#" * 44),
    "a key of hex": wrapped(os.urandom(32).hex().encode(), JAVASCRIPT),
    "an empty key": wrapped(b"", JAVASCRIPT),
    "no padding": unpadded(json.dumps(MESSAGES).encode().ljust(160)),
    "padding of 0": unpadded(b"[]".ljust(15) + b"\0"),
    "padding of 17": unpadded(b"[]".ljust(15) + b"\x11"),
    "padding of two kinds": unpadded(b"[]".ljust(14) + b"\3\2"),
    **{f"inside: {data[:20]!r}": seal_bytes(data, PUBLIC) for data in (
        b"", b"[", b"[}", b"hello", b"\xff\xfe[\0]\0", b"[\xc3]", "[]".encode("utf-16"), b"[NaN]",
        b"[" * 100_000, b"9" * 5_000,
    )},
}  # fmt: skip


@pytest.mark.parametrize("sealed", BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_opened(sealed: object) -> None:
    with pytest.raises(NotOpened) as caught:
        open_sealed(PEER, sealed)
    assert caught.value.args == ()
    assert caught.value.__context__ is None  # nothing of what went wrong goes along


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(SEALED)), place=st.integers(0), flip=st.integers(1, 255))
def test_a_damaged_request_is_not_opened_or_differs(name: str, place: int, flip: int) -> None:
    data = bytearray(part(name))
    data[place % len(data)] ^= flip
    try:
        value = open_sealed(PEER, with_part(name, bytes(data)))
    except NotOpened:
        return
    assert name != "cipherkey"  # the format has no other authentication
    assert value != MESSAGES


STEPS = ("_rsa_decrypt", "_read_key", "_decrypt", "_unpad", "_parse")


def counting(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each step is taken."""
    counts: Counter[str] = Counter()

    def counted(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            counts[name] += 1
            return step(*args)

        return wrapper

    for name in STEPS:
        monkeypatch.setattr(envelope, name, counted(name, getattr(envelope, name)))
    return counts


@pytest.mark.parametrize("sealed", [SEALED, *BROKEN.values()], ids=["good", *BROKEN])
def test_every_step_is_always_taken(sealed: object, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counting(monkeypatch)
    try:
        open_sealed(PEER, sealed)
    except NotOpened:
        assert sealed is not SEALED
    assert counts == {"_rsa_decrypt": 2, "_read_key": 2, "_decrypt": 1, "_unpad": 1, "_parse": 1}


def test_the_private_key_works_whatever_was_sent() -> None:
    """OpenSSL refuses at once what is of a wrong length or not below the modulus; the stand-in for
    it must be neither, or else it would show."""
    stand_in = envelope._dummy_wrapped(PEER)
    with pytest.raises(ValueError, match="Decryption failed"):
        PEER.decrypt(stand_in, PYTHON)
    assert int.from_bytes(stand_in, "big") < MODULUS


@pytest.mark.parametrize("answer", [b"", b"x" * 44, bytes(32), base64.b64encode(bytes(31))])
def test_no_library_decides_what_a_broken_padding_looks_like(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some answer PKCS#1 v1.5 that is broken with an error, some with random bytes."""
    monkeypatch.setattr(envelope, "_rsa_decrypt", lambda *_: answer)
    with pytest.raises(NotOpened):
        open_sealed(PEER, SEALED)


# ---------------------------------------------------------------- answers

ANSWER = {"object": "chat.completion", "choices": [{"text": "Grüße 🦙\u2028"}], "usage": None}


def test_a_whole_answer_is_opened_by_the_client() -> None:
    client = Client(PUBLIC, other_key())
    sealed = SealedAnswer(client.key.public_key(), is_streamed=False).whole(ANSWER)
    assert client.open_whole(json.loads(json.dumps(sealed))) == ANSWER


def test_a_stream_is_opened_by_the_client() -> None:
    client = Client(PUBLIC, other_key())
    answer = SealedAnswer(client.key.public_key(), is_streamed=True)
    chunks = [{"object": "chat.completion.chunk", "text": "x" * size} for size in range(40)]
    events = [answer.event(chunk) for chunk in chunks]
    assert [client.open_event(event) for event in events] == chunks
    assert len({event["data"]["iv"] for event in events}) == len(events)
    assert len({event["stream_session_id"] for event in events}) == 1


def test_no_two_answers_share_a_key_or_a_session() -> None:
    answers = [SealedAnswer(PUBLIC, is_streamed=True) for _ in range(2)]
    events = [Client(PUBLIC).open_event(answer.event(ANSWER)) for answer in answers]
    first, second = (answer.event(ANSWER) for answer in answers)
    assert events == [ANSWER, ANSWER]
    assert first["stream_session_id"] != second["stream_session_id"]
    assert first["data"]["ciphertext"] != second["data"]["ciphertext"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_key_that_cannot_be_used_is_found_out_at_once(is_streamed: bool) -> None:
    even = rsa.RSAPublicNumbers(65537, 1 << 2047).public_key()
    with pytest.raises(ValueError, match="failed"):
        SealedAnswer(even, is_streamed=is_streamed)
