"""tests/vectors/ohttp.json: the published examples, read and written by the product's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.sealing import rfc9180
from tokenplace.errors import TokenplaceError
from tokenplace.sealing.chunks import ChunkCipher, ChunkReader
from tokenplace.sealing.suites import hpke_open

VECTORS = json.loads(
    (Path(__file__).resolve().parent.parent / "vectors" / "ohttp.json").read_text()
)
RFC, DRAFT = VECTORS["rfc9458"], VECTORS["chunked"]
SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
TAG_BYTES = 16


def data(vector: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(vector[name])


def private_key(vector: dict[str, Any]) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(data(vector, "private_key"))


def request_info(vector: dict[str, Any]) -> bytes:
    label: str = vector["request_label"]
    return label.encode() + b"\0" + data(vector, "header")


def context(vector: dict[str, Any]) -> rfc9180.Context:
    return rfc9180.receive(private_key(vector), data(vector, "enc"), request_info(vector))


def answer_cipher(vector: dict[str, Any], secret: bytes) -> ChunkCipher:
    salt = data(vector, "enc") + data(vector, "response_nonce")
    return ChunkCipher.derive(secret, salt, AESGCM, key_bytes=16)


def read(cipher: ChunkCipher, stream: bytes, step: int) -> tuple[str, list[str]]:
    """What the outcome is, and which plaintexts came before it, `step` bytes at a time."""
    reader = ChunkReader(cipher, is_length=lambda n: n >= TAG_BYTES, max_bytes=64)
    plaintexts = []
    try:
        for start in range(0, len(stream) + 1, step):
            piece = stream[start : start + step]
            reader.receive_data(piece)
            if start + step > len(stream):
                reader.receive_eof()
            while (chunk := reader.next_chunk()) is not None:
                plaintexts.append(chunk[0].hex())
    except TokenplaceError as error:
        return error.code.value, plaintexts
    return "success", plaintexts


def test_the_rfcs_request_opens() -> None:
    sealed = data(RFC, "enc") + data(RFC, "ciphertext")
    opened = hpke_open(SUITE, private_key(RFC), sealed, request_info(RFC))
    assert opened == data(RFC, "plaintext")


def test_the_rfcs_answer_opens() -> None:
    secret = context(RFC).export(RFC["response_label"].encode(), 16)
    opened = answer_cipher(RFC, secret).open(data(RFC, "response_ciphertext"), is_final=False)
    assert opened == data(RFC, "response_plaintext")


def test_the_drafts_request_opens_in_one_and_in_chunks() -> None:
    chunks = DRAFT["request_chunks"]
    one = data(DRAFT, "enc") + bytes.fromhex(chunks[0]["sealed"])[1:]
    assert hpke_open(SUITE, private_key(DRAFT), one, request_info(DRAFT)) == bytes.fromhex(
        chunks[0]["plaintext"]
    )
    received = context(DRAFT)
    stream = bytes.fromhex("".join(chunk["sealed"] for chunk in chunks))
    for step in (1, 7, len(stream)):
        cipher = ChunkCipher(AESGCM(received.key), received.base_nonce)
        assert read(cipher, stream, step) == ("success", [c["plaintext"] for c in chunks])


def test_the_drafts_secret_is_exported() -> None:
    secret = context(DRAFT).export(DRAFT["response_label"].encode(), 16)
    assert secret == data(DRAFT, "response_secret")


@pytest.mark.parametrize("vector", VECTORS["streams"], ids=lambda vector: vector["name"])
def test_the_drafts_answer_opens_and_no_other(vector: dict[str, Any]) -> None:
    stream = data(vector, "stream")
    for step in (1, 7, len(stream)):
        cipher = answer_cipher(DRAFT, data(DRAFT, "response_secret"))
        assert read(cipher, stream, step) == (vector["expect"], vector["plaintexts"])


def test_the_drafts_chunks_are_sealed_byte_for_byte() -> None:
    received = context(DRAFT)
    request = ChunkCipher(AESGCM(received.key), received.base_nonce)
    answer = answer_cipher(DRAFT, data(DRAFT, "response_secret"))
    for cipher, chunks in (
        (request, DRAFT["request_chunks"]),
        (answer, DRAFT["response_chunks"]),
    ):
        for number, chunk in enumerate(chunks, 1):
            plaintext = data(chunk, "plaintext")
            assert cipher.seal(plaintext, is_final=number == len(chunks)).hex() == chunk["sealed"]
