"""tests/vectors/hpke_pq.json: our suite is the one that other stacks call MLKEM768-X25519."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tokenplace.sealing import suites
from tokenplace.sealing.suites import PrivateKey

VECTOR = json.loads(
    (Path(__file__).resolve().parent.parent / "vectors" / "hpke_pq.json").read_text()
)
DATA = {
    name: bytes.fromhex(VECTOR[name])
    for name in ("info", "skRm", "pkRm", "enc", "key", "base_nonce")
}


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    """The hybrid's private key is a seed (draft-ietf-hpke-pq): ML-KEM's, then X25519's."""
    expanded = hashlib.shake_256(DATA["skRm"]).digest(64 + 32)
    return PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
        x25519.X25519PrivateKey.from_private_bytes(expanded[64:]),
    )


def test_the_suite_has_the_code_points_of_the_draft(key: PrivateKey) -> None:
    assert tuple(int(VECTOR[name]) for name in ("kem_id", "kdf_id", "aead_id")) == (
        suites.KEM_ID,
        suites.KDF_ID,
        suites.AEAD_ID,
    )
    assert len(DATA["enc"]) == suites.ENC_BYTES
    assert len(DATA["pkRm"]) == suites.PUBLIC_KEY_BYTES
    assert key.public == DATA["pkRm"]


@pytest.mark.parametrize("vector", VECTOR["single_shot"], ids=lambda vector: vector["name"])
def test_what_others_seal_opens(key: PrivateKey, vector: dict[str, Any]) -> None:
    sealed = DATA["enc"] + bytes.fromhex(vector["ct"])
    if vector["expect"] == "success":
        assert key.decrypt(sealed, DATA["info"]).hex() == VECTOR["first_encryption"]["pt"]
        with pytest.raises(ValueError, match="does not open"):
            key.decrypt(sealed, DATA["info"] + b"x")
    else:
        with pytest.raises(ValueError, match="does not open"):
            key.decrypt(sealed, DATA["info"])


def test_the_published_key_is_the_one_that_seals_the_published_ciphertext() -> None:
    first = {name: bytes.fromhex(value) for name, value in VECTOR["first_encryption"].items()}
    assert first["nonce"] == DATA["base_nonce"]
    sealed = ChaCha20Poly1305(DATA["key"]).encrypt(first["nonce"], first["pt"], first["aad"])
    assert sealed == first["ct"]
