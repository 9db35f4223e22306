"""What somebody between a requester and a donor can do to sealed bytes: every kind of attack, many
times with other sizes and places. None is ever taken for the real thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sealing import forge
from tests.sealing.forge import BOB_ID, KEY_ID, NETWORK, NOW, REPLY_KEY, RESP_SECRET, RING
from tokenplace.errors import (
    BadFormat,
    ConnectionLost,
    RemoteProtocolError,
    StaleEpoch,
    UnknownKey,
)
from tokenplace.sealing.answer import AnswerOpener, AnswerSealer, Chunk, ReplySecrets
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.request import open_request, request_digest, seal_request
from tokenplace.sealing.suites import PublicKey

KEY = PublicKey(KEY_ID, 0x647A, 1, 3, forge.DONOR_KEY.public)
REFUSED = (BadFormat, UnknownKey, StaleEpoch)
BROKEN = (RemoteProtocolError, ConnectionLost)


@dataclass(frozen=True)
class Donor:
    """Opens requests as a donor does, each once."""

    ring: KeyRing = RING
    donor_id: bytes = BOB_ID

    def take(self, sealed: bytes, epochs: Epochs, epoch: bytes) -> bytes:
        opened = open_request(sealed, self.ring, self.donor_id, NETWORK, NOW)
        epochs.accept(epoch, opened.enc, NOW)
        return opened.payload


@given(payload=st.binary(max_size=3000), data=st.data())
def test_a_request_is_opened_once_by_its_donor_and_as_it_was(
    payload: bytes, data: st.DataObject
) -> None:
    sealed = seal_request(payload, KEY, BOB_ID, NETWORK)
    epochs = Epochs()
    epoch = epochs.current(NOW)
    changed = bytearray(sealed)
    changed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    attacks = {
        "bit-flip": (Donor(), bytes(changed)),
        "cut off": (Donor(), sealed[: data.draw(st.integers(0, len(sealed) - 1))]),
        "another donor's id": (Donor(donor_id=BOB_ID[:-1] + b"?"), sealed),
        "another donor's key": (Donor(forge.ring_of(REPLY_KEY)), sealed),
    }
    for donor, attack in attacks.values():
        with pytest.raises(REFUSED):
            donor.take(attack, epochs, epoch)
    assert Donor().take(sealed, epochs, epoch) == payload  # what did not open is not remembered
    with pytest.raises(StaleEpoch):  # replayed
        Donor().take(sealed, epochs, epoch)


@dataclass(frozen=True)
class Sealed:
    """An answer, cut at its chunks' borders."""

    opening: bytes
    chunks: list[bytes]
    frames: list[bytes]


@st.composite
def answers(draw: st.DrawFn) -> Sealed:
    frames = draw(st.lists(st.binary(max_size=300), min_size=3, max_size=8))
    sealer = AnswerSealer(RESP_SECRET, REPLY_KEY.public, request_digest(b"the request"))
    chunks = [sealer.seal(part, is_final=n == len(frames)) for n, part in enumerate(frames, 1)]
    return Sealed(sealer.opening, chunks, frames)


def read(stream: bytes, request: bytes = b"the request") -> list[Chunk]:
    opener = AnswerOpener(ReplySecrets(RESP_SECRET, REPLY_KEY), request_digest(request))
    opener.receive_data(stream)
    opener.receive_eof()
    chunks = []
    try:
        while (item := opener.next_item()) is not None:
            assert isinstance(item, Chunk)
            chunks.append(item)
    except BROKEN:
        assert not any(chunk.is_final for chunk in chunks)  # never taken for whole
        return chunks
    raise AssertionError("the answer was taken for whole")


Attack = Callable[[Sealed, st.DataObject], bytes]


def truncated(answer: Sealed, data: st.DataObject) -> bytes:
    whole = answer.opening + b"".join(answer.chunks)
    return whole[: data.draw(st.integers(0, len(whole) - 1))]


def dropped(answer: Sealed, data: st.DataObject) -> bytes:
    where = data.draw(st.integers(0, len(answer.chunks) - 1))
    return answer.opening + b"".join(answer.chunks[:where] + answer.chunks[where + 1 :])


def swapped(answer: Sealed, data: st.DataObject) -> bytes:
    one, other = sorted(data.draw(st.permutations(range(len(answer.chunks))))[:2])
    chunks = list(answer.chunks)
    chunks[one], chunks[other] = chunks[other], chunks[one]
    return answer.opening + b"".join(chunks)


def repeated(answer: Sealed, data: st.DataObject) -> bytes:
    where = data.draw(st.integers(0, len(answer.chunks) - 1))
    return answer.opening + b"".join(answer.chunks[: where + 1] + answer.chunks[where:])


def ended_early(answer: Sealed, data: st.DataObject) -> bytes:
    where = data.draw(st.integers(0, len(answer.chunks) - 2))
    fake = b"\0" + answer.chunks[where][2:]  # its two bytes of length say that it is the last
    return answer.opening + b"".join(answer.chunks[:where]) + fake


def lengthened(answer: Sealed, data: st.DataObject) -> bytes:
    extra = data.draw(st.binary(min_size=1, max_size=300) | st.sampled_from(answer.chunks))
    return answer.opening + b"".join(answer.chunks) + extra


def flipped(answer: Sealed, data: st.DataObject) -> bytes:
    whole = bytearray(answer.opening + b"".join(answer.chunks))
    # A first byte of 0 is an unsealed refusal, which nobody vouches for: no attack on the seal.
    whole[data.draw(st.integers(1, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    return bytes(whole)


@pytest.mark.parametrize(
    "attack", [truncated, dropped, swapped, repeated, ended_early, lengthened, flipped]
)
@given(answer=answers(), data=st.data())
def test_an_answer_is_only_whole_as_it_was_sealed(
    attack: Attack, answer: Sealed, data: st.DataObject
) -> None:
    chunks = read(attack(answer, data))
    # What came before the damage is the donor's, in its order.
    assert [chunk.frames for chunk in chunks] == answer.frames[: len(chunks)]


@given(answer=answers())
def test_an_answer_to_another_request_is_none(answer: Sealed) -> None:
    assert read(answer.opening + b"".join(answer.chunks), b"another request") == []
