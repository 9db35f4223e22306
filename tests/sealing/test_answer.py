from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.mutations import damaged
from tests.sealing import forge
from tests.sealing.forge import REPLY_KEY, RESP_SECRET
from tokenplace import defaults
from tokenplace.errors import BadFormat, ConnectionLost, RemoteProtocolError
from tokenplace.sealing.answer import (
    MAX_FRAMES_BYTES,
    AnswerOpener,
    AnswerSealer,
    Chunk,
    RefusalBytes,
    ReplySecrets,
)
from tokenplace.sealing.chunks import decode_varint, encode_varint, varint_size
from tokenplace.sealing.suites import PUBLIC_KEY_BYTES

SECRETS = ReplySecrets(RESP_SECRET, REPLY_KEY)
DIGEST = forge.digest_of(b"a sealed request")
FRAMES = [b"one", b"", b"three" * 60, b"the end"]


def make_answer(frames: list[bytes] = FRAMES) -> bytes:
    sealer = AnswerSealer(RESP_SECRET, REPLY_KEY.public, DIGEST)
    chunks = [sealer.seal(part) for part in frames[:-1]]
    return sealer.opening + b"".join(chunks) + sealer.seal(frames[-1], is_final=True)


ANSWER = make_answer()
WHOLE = [Chunk(part, False) for part in FRAMES[:-1]] + [Chunk(FRAMES[-1], True)]


def drain(opener: AnswerOpener) -> list[RefusalBytes | Chunk]:
    items = []
    while (item := opener.next_item()) is not None:
        items.append(item)
    return items


def read(pieces: list[bytes], *, secrets: ReplySecrets = SECRETS) -> list[RefusalBytes | Chunk]:
    opener = AnswerOpener(secrets, DIGEST)
    items = []
    for piece in pieces:
        opener.receive_data(piece)
        items += drain(opener)
    opener.receive_eof()
    return items + drain(opener)


@st.composite
def split(draw: st.DrawFn, data: bytes = ANSWER) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=30)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(split())
def test_any_split_gives_the_same_chunks(pieces: list[bytes]) -> None:
    assert read(pieces) == WHOLE


def test_byte_by_byte_gives_the_same_chunks() -> None:
    assert read([ANSWER[i : i + 1] for i in range(len(ANSWER))]) == WHOLE


@given(st.lists(st.binary(max_size=MAX_FRAMES_BYTES), min_size=1, max_size=5))
def test_what_is_sealed_here_and_by_the_page_opens(frames: list[bytes]) -> None:
    whole = [Chunk(part, False) for part in frames[:-1]] + [Chunk(frames[-1], True)]
    assert read([make_answer(frames)]) == whole
    answer = forge.Answer(DIGEST)
    chunks = [answer.chunk(part) for part in frames[:-1]]
    assert read([answer.opening + b"".join(chunks) + answer.final(frames[-1])]) == whole


def test_sizes_say_little() -> None:
    sealer = AnswerSealer(RESP_SECRET, REPLY_KEY.public, DIGEST)
    assert len(sealer.opening) == 1 + 2 + 1168 + 32
    sizes = {len(sealer.seal(bytes(n))) for n in range(127)}
    assert sizes == {2 + 128 + 16}
    assert len(sealer.seal(bytes(127))) == 2 + 256 + 16
    assert len(sealer.seal(bytes(MAX_FRAMES_BYTES))) == 4 + defaults.MAX_CHUNK_BYTES + 16
    assert len(sealer.seal(b"", is_final=True)) == 1 + 128 + 16


def test_more_than_a_chunk_holds_is_our_own_mistake() -> None:
    sealer = AnswerSealer(RESP_SECRET, REPLY_KEY.public, DIGEST)
    with pytest.raises(AssertionError):
        sealer.seal(bytes(MAX_FRAMES_BYTES + 1))


def is_prefix(items: list[RefusalBytes | Chunk]) -> bool:
    return items == WHOLE[: len(items)] and len(items) < len(WHOLE)


@given(st.data(), st.integers(0, len(ANSWER) - 1))
def test_a_truncated_answer_is_lost_never_finished(data: st.DataObject, length: int) -> None:
    opener = AnswerOpener(SECRETS, DIGEST)
    items = []
    for piece in data.draw(split(ANSWER[:length])):
        opener.receive_data(piece)
        items += drain(opener)
    assert is_prefix(items)
    opener.receive_eof()
    with pytest.raises((ConnectionLost, RemoteProtocolError)):
        drain(opener)


@given(st.integers(1, len(ANSWER) - 1), st.integers(1, 255))
def test_a_changed_byte_never_gives_other_frames(position: int, flip: int) -> None:
    changed = bytearray(ANSWER)
    changed[position] ^= flip
    opener = AnswerOpener(SECRETS, DIGEST)
    opener.receive_data(bytes(changed))
    opener.receive_eof()
    items = []
    with pytest.raises((RemoteProtocolError, ConnectionLost)):  # noqa: PT012
        while (item := opener.next_item()) is not None:
            items.append(item)
    assert is_prefix(items)


def parts() -> tuple[bytes, list[bytes], bytes]:
    answer = forge.Answer(DIGEST)
    return answer.opening, [answer.chunk(b"%d" % n) for n in range(4)], answer.final(b"end")


@pytest.mark.parametrize("order", [[0, 2, 3], [1, 0, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2]])
def test_dropped_swapped_and_repeated_chunks_do_not_open(order: list[int]) -> None:
    opening, chunks, final = parts()
    with pytest.raises(RemoteProtocolError):
        read([opening + b"".join(chunks[n] for n in order) + final])


def test_bytes_after_the_final_chunk_are_refused() -> None:
    opening, chunks, final = parts()
    for extra in (b"\0", chunks[0], final, bytes(144)):
        with pytest.raises((RemoteProtocolError, ConnectionLost)):
            read([opening + b"".join(chunks) + final + extra])


def test_no_other_chunk_passes_as_the_final_one_nor_the_reverse() -> None:
    answer = forge.Answer(DIGEST)
    fake_final = forge.varint(0) + answer.ciphertext(forge.frames_plaintext(b"end"))
    with pytest.raises(RemoteProtocolError):
        read([answer.opening + fake_final])
    answer = forge.Answer(DIGEST)
    early = answer.ciphertext(forge.frames_plaintext(b"end"), b"final")
    with pytest.raises(RemoteProtocolError):
        read([answer.opening + forge.varint(len(early)) + early])


def test_an_answer_opens_only_for_its_request_and_secrets() -> None:
    opener = AnswerOpener(SECRETS, forge.digest_of(b"another request"))
    opener.receive_data(ANSWER)
    with pytest.raises(RemoteProtocolError):
        opener.next_item()
    with pytest.raises(RemoteProtocolError):
        read([ANSWER], secrets=ReplySecrets(bytes(32), REPLY_KEY))
    with pytest.raises(RemoteProtocolError):
        read([ANSWER], secrets=ReplySecrets(RESP_SECRET, forge.DONOR_KEY))


def test_new_secrets_each_time() -> None:
    first, second = ReplySecrets.generate(), ReplySecrets.generate()
    assert first.resp_secret != second.resp_secret
    assert first.key.public != second.key.public
    assert len(first.resp_secret) == 32


@pytest.mark.parametrize(
    "length", [1, 16, 143, 145, 16 + defaults.MAX_CHUNK_BYTES + 128, (1 << 30) - 1, (1 << 62) - 1]
)
def test_an_impossible_chunk_length_is_refused_at_once(length: int) -> None:
    opener = AnswerOpener(SECRETS, DIGEST)
    opener.receive_data(forge.Answer(DIGEST).opening + forge.varint(length))
    with pytest.raises(RemoteProtocolError):
        opener.next_item()


def test_an_oversize_final_chunk_is_refused_before_it_ends() -> None:
    opener = AnswerOpener(SECRETS, DIGEST)
    opener.receive_data(forge.Answer(DIGEST).opening + forge.varint(0))
    opener.receive_data(bytes(defaults.MAX_CHUNK_BYTES + 16))
    assert opener.next_item() is None
    opener.receive_data(b"\0")
    with pytest.raises(RemoteProtocolError):
        opener.next_item()


def test_a_wrong_key_length_is_refused_at_once() -> None:
    opener = AnswerOpener(SECRETS, DIGEST)
    opener.receive_data(b"\1\xff\xff")
    with pytest.raises(RemoteProtocolError):
        opener.next_item()


@pytest.mark.parametrize("plaintext", [b"\xff\xff" + bytes(126), b"\0\1x" + bytes(124) + b"\1"])
def test_wrong_padding_is_refused(plaintext: bytes) -> None:
    answer = forge.Answer(DIGEST)
    ciphertext = answer.ciphertext(plaintext)
    with pytest.raises(RemoteProtocolError):
        read([answer.opening + forge.varint(len(ciphertext)) + ciphertext])


@given(damaged(forge.frames_plaintext(b"frames")) | st.binary(min_size=128, max_size=128))
def test_whatever_was_sealed_is_frames_or_a_protocol_error(plaintext: bytes) -> None:
    answer = forge.Answer(DIGEST)
    ciphertext = answer.ciphertext(plaintext)
    opener = AnswerOpener(SECRETS, DIGEST)
    opener.receive_data(answer.opening + forge.varint(len(ciphertext)) + ciphertext)
    try:
        items = drain(opener)
    except RemoteProtocolError:
        return
    assert all(
        isinstance(item, Chunk) and forge.frames_plaintext(item.frames) == plaintext
        for item in items
    )


def test_every_length_of_length_is_read() -> None:
    answer = forge.Answer(DIGEST)
    stream = answer.opening
    for size in (2, 4, 8):
        ciphertext = answer.ciphertext(forge.frames_plaintext(b"%d" % size))
        prefix = size.bit_length() - 1 << 8 * size - 2
        stream += (len(ciphertext) | prefix).to_bytes(size, "big") + ciphertext
    stream += answer.final(b"end")
    items = read([stream[n : n + 1] for n in range(len(stream))])
    assert items == [
        Chunk(b"2", False),
        Chunk(b"4", False),
        Chunk(b"8", False),
        Chunk(b"end", True),
    ]


@given(split(b"\0\0\5hello"))
def test_a_refusal_is_handed_over_as_it_is(pieces: list[bytes]) -> None:
    assert read(pieces) == [RefusalBytes(b"hello")]


def test_a_refusal_over_the_limit_is_refused_at_once() -> None:
    opener = AnswerOpener(SECRETS, DIGEST)
    opener.receive_data(b"\0" + (defaults.MAX_REFUSAL_BYTES + 1).to_bytes(2, "big"))
    with pytest.raises(RemoteProtocolError):
        opener.next_item()


def test_nothing_may_follow_a_refusal() -> None:
    with pytest.raises(RemoteProtocolError):
        read([b"\0\0\1xy"])


def test_a_cut_off_refusal_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLost):
        read([b"\0\0\5hell"])


@given(st.binary(max_size=3000))
def test_garbage_is_a_declared_error(data: bytes) -> None:
    opener = AnswerOpener(SECRETS, DIGEST)
    opener.receive_data(data[:1] and bytes([data[0] % 3]) + data[1:])
    opener.receive_eof()
    try:
        items = drain(opener)
    except (RemoteProtocolError, ConnectionLost):
        return
    assert all(isinstance(item, RefusalBytes) for item in items)


def test_a_reply_key_that_cannot_be_used_is_the_requesters_fault() -> None:
    for reply_key in (b"", b"\xff" * PUBLIC_KEY_BYTES, REPLY_KEY.public[:-32] + bytes(32)):
        with pytest.raises(BadFormat):
            AnswerSealer(RESP_SECRET, reply_key, DIGEST)


@pytest.mark.parametrize(
    ("encoded", "value"),  # RFC 9000, appendix A.1
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
        ("4025", 37),
    ],
)
def test_varints_are_quics(encoded: str, value: int) -> None:
    data = bytes.fromhex(encoded)
    assert varint_size(data[0]) == len(data)
    assert decode_varint(data) == value


@given(st.integers(0, (1 << 30) - 1))
def test_varints_are_shortest(value: int) -> None:
    assert encode_varint(value) == forge.varint(value)
