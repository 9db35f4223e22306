"""tests/vectors/sealing.json, as a second implementation would use it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from tests.sealing import forge
from tokenplace.errors import TokenplaceError
from tokenplace.peer.request_map import decode_request
from tokenplace.sealing.answer import AnswerOpener, Chunk, ReplySecrets
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.request import open_request
from tokenplace.sealing.suites import PrivateKey

PATH = Path(__file__).resolve().parent.parent / "vectors" / "sealing.json"
VECTORS = json.loads(PATH.read_text())


def load_key(vector: dict[str, Any]) -> PrivateKey:
    return PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(vector["mlkem_seed"])),
        x25519.X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["x25519"])),
    )


@pytest.mark.parametrize("name", ["donor_key", "reply_key"])
def test_public_keys(name: str) -> None:
    assert load_key(VECTORS[name]).public.hex() == VECTORS[name]["public"]


@pytest.mark.parametrize("vector", VECTORS["requests"], ids=lambda vector: vector["name"])
def test_requests(vector: dict[str, Any]) -> None:
    ring = forge.ring_of(load_key(VECTORS["donor_key"]), VECTORS["donor_key"]["id"])
    sealed = bytes.fromhex(vector["sealed"]) + bytes(vector.get("zeros", 0))
    donor_id = bytes.fromhex(vector["donor_id"])
    try:
        request = open_request(sealed, ring, donor_id, vector["network"], forge.NOW)
        outcome: tuple[str | None, ...] = ("success", request.payload.hex(), request.digest.hex())
    except TokenplaceError as error:
        outcome = (error.code.value, None, None)
    assert outcome == (vector["expect"], vector.get("payload"), vector.get("digest"))


def test_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = VECTORS["replays"]
    monkeypatch.setattr(secrets, "token_bytes", lambda n: bytes.fromhex(vector["epoch"]))
    epochs = Epochs()
    epochs.current(forge.NOW)
    donor_id = bytes.fromhex(vector["donor_id"])
    for step in vector["steps"]:
        sealed, outcome = bytes.fromhex(step["sealed"]), "success"
        try:
            opened = open_request(sealed, forge.RING, donor_id, vector["network"], forge.NOW)
            epochs.accept(decode_request(opened.payload).epoch, opened.enc, forge.NOW)
        except TokenplaceError as error:
            outcome = error.code.value
        assert outcome == step["expect"], step["name"]


@pytest.mark.parametrize("vector", VECTORS["answers"], ids=lambda vector: vector["name"])
def test_answers(vector: dict[str, Any]) -> None:
    secrets = ReplySecrets(bytes.fromhex(VECTORS["resp_secret"]), load_key(VECTORS["reply_key"]))
    opener = AnswerOpener(secrets, bytes.fromhex(VECTORS["request_digest"]))
    opener.receive_data(bytes.fromhex(vector["stream"]))
    opener.receive_eof()
    chunks, expect = [], "success"
    try:
        while (item := opener.next_item()) is not None:
            assert isinstance(item, Chunk)
            chunks.append({"frames": item.frames.hex(), "final": item.is_final})
    except TokenplaceError as error:
        expect = error.code.value
    assert (expect, chunks) == (vector["expect"], vector["chunks"])
