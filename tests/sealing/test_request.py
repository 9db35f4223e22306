from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.mutations import damaged
from tests.sealing import forge
from tests.sealing.forge import BOB_ID, KEY_ID, NETWORK, NOW, RING
from tokenplace import defaults
from tokenplace.errors import BadFormat, RemoteProtocolError, RequestTooBig, UnknownKey
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.request import open_request, seal_request
from tokenplace.sealing.suites import (
    AEAD_ID,
    ENC_BYTES,
    KDF_ID,
    KEM_ID,
    PUBLIC_KEY_BYTES,
    PublicKey,
)

KEY = PublicKey(KEY_ID, KEM_ID, KDF_ID, AEAD_ID, forge.DONOR_KEY.public)
PAYLOAD = b"the payload"
SEALED = seal_request(PAYLOAD, KEY, BOB_ID, NETWORK)
LARGEST = defaults.MAX_PADDED_BYTES - 4


def opened(sealed: bytes) -> bytes:
    return open_request(sealed, RING, BOB_ID, NETWORK, NOW).payload


@given(st.binary(max_size=5000))
def test_what_is_sealed_opens_here_and_by_the_page(payload: bytes) -> None:
    sealed = seal_request(payload, KEY, BOB_ID, NETWORK)
    assert opened(sealed) == payload
    assert forge.open_request(sealed) == payload
    assert opened(forge.seal_request(forge.pad(payload))) == payload


def test_enc_and_digest_are_those_of_the_sealed_bytes() -> None:
    request = open_request(SEALED, RING, BOB_ID, NETWORK, NOW)
    assert request.enc == SEALED[8 : 8 + ENC_BYTES]
    assert request.digest == forge.digest_of(SEALED)
    assert SEALED[:8] == forge.header()


@pytest.mark.parametrize(
    ("length", "padded"),
    [(0, 2048), (2044, 2048), (2045, 4096), (70_000, 131_072), (LARGEST, 4 << 20)],
)
def test_sizes_are_powers_of_two(length: int, padded: int) -> None:
    sealed = seal_request(b"x" * length, KEY, BOB_ID, NETWORK)
    assert len(sealed) == 8 + ENC_BYTES + padded + 16
    assert len(sealed) <= defaults.MAX_REQUEST_FRAME_BYTES
    assert opened(sealed) == b"x" * length


def test_a_payload_over_the_limit_is_not_sealed() -> None:
    with pytest.raises(RequestTooBig):
        seal_request(bytes(LARGEST + 1), KEY, BOB_ID, NETWORK)


def test_a_frame_over_the_limit_is_not_opened() -> None:
    with pytest.raises(RequestTooBig):
        opened(bytes(defaults.MAX_REQUEST_FRAME_BYTES + 1))


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_no_changed_byte_opens(position: int, flip: int) -> None:
    sealed = bytearray(SEALED)
    sealed[position] ^= flip
    with pytest.raises((BadFormat, UnknownKey)):
        opened(bytes(sealed))


@given(st.integers(0, len(SEALED) - 1))
def test_no_truncated_request_opens(length: int) -> None:
    with pytest.raises(BadFormat):
        opened(SEALED[:length])


@given(st.binary(max_size=3000))
def test_garbage_is_a_declared_error(data: bytes) -> None:
    with pytest.raises((BadFormat, UnknownKey)):
        opened(data)


def test_it_opens_only_for_its_donor_and_network() -> None:
    with pytest.raises(BadFormat):
        open_request(SEALED, RING, b"A" + BOB_ID[1:], NETWORK, NOW)
    with pytest.raises(BadFormat):
        open_request(SEALED, RING, BOB_ID, "other", NOW)
    # The lengths in `info` keep the two apart even where they touch.
    with pytest.raises(BadFormat):
        open_request(SEALED, RING, BOB_ID[1:], NETWORK + BOB_ID[:1].decode(), NOW)


def test_an_old_key_is_unknown_after_a_restart() -> None:
    restarted = forge.ring_of(forge.REPLY_KEY, KEY_ID + 1)
    with pytest.raises(UnknownKey):
        open_request(SEALED, restarted, BOB_ID, NETWORK, NOW)


def test_the_same_key_id_with_another_key_does_not_open() -> None:
    with pytest.raises(BadFormat):
        open_request(SEALED, forge.ring_of(forge.REPLY_KEY), BOB_ID, NETWORK, NOW)


@pytest.mark.parametrize(
    "head",
    [
        forge.header(form=0),
        forge.header(form=2),
        forge.header(kem=0x20),
        forge.header(kdf=2),
        forge.header(aead=1),
    ],
)
def test_another_format_or_suite_is_refused(head: bytes) -> None:
    with pytest.raises(BadFormat):
        opened(forge.seal_request(forge.pad(PAYLOAD), head))


@pytest.mark.parametrize("kem", [forge.X25519_KEM, KEM_ID])
def test_a_weaker_suite_is_refused_though_its_bytes_are_right(kem: int) -> None:
    head = forge.header(kem=kem)
    weak = forge.seal_weakly(forge.pad(PAYLOAD), head)
    # The donor has what it takes to open it,
    _, half = forge.library_keys(forge.DONOR_SEEDS)
    plaintext = forge.WEAK_SUITE.decrypt(weak[8:], half, info=forge.request_info(head))
    assert plaintext == forge.pad(PAYLOAD)
    with pytest.raises(BadFormat):  # and does not.
        opened(weak)


def test_an_entry_that_means_nothing_cannot_be_sealed_to() -> None:
    ring = KeyRing()
    (grease,) = (key for key in ring.advertised(NOW).keys if not key.is_supported)
    with pytest.raises(RemoteProtocolError):
        seal_request(PAYLOAD, grease, BOB_ID, NETWORK)
    under_its_id = dataclasses.replace(KEY, id=grease.id)
    with pytest.raises(UnknownKey):
        open_request(
            seal_request(PAYLOAD, under_its_id, BOB_ID, NETWORK), ring, BOB_ID, NETWORK, NOW
        )


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        bytes(1024),  # too short
        bytes(2048 + 128),  # no power of two
        struct.pack(">I", 2045) + bytes(2044),  # longer than there is
        struct.pack(">I", 0xFFFFFFFF) + bytes(2044),
        struct.pack(">I", 1) + b"x" + bytes(2042) + b"\1",  # not zeros
    ],
)
def test_wrong_padding_is_refused(plaintext: bytes) -> None:
    with pytest.raises(BadFormat):
        opened(forge.seal_request(plaintext))


@given(damaged(forge.pad(PAYLOAD)[:2048]) | st.binary(min_size=2048, max_size=2048))
def test_whatever_was_sealed_is_a_payload_or_bad_format(plaintext: bytes) -> None:
    try:
        payload = opened(forge.seal_request(plaintext))
    except BadFormat:
        return
    assert forge.pad(payload) == plaintext


def test_unusable_keys_are_the_donors_fault() -> None:
    for key in (
        dataclasses.replace(KEY, kem=0x20),
        dataclasses.replace(KEY, public=KEY.public[1:]),
        dataclasses.replace(KEY, public=b"\xff" * PUBLIC_KEY_BYTES),  # no ML-KEM key
        dataclasses.replace(KEY, public=KEY.public[:-32] + bytes(32)),  # of low order
    ):
        with pytest.raises(RemoteProtocolError):
            seal_request(PAYLOAD, key, BOB_ID, NETWORK)
