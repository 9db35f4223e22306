"""The donor against requesters that send what they please, byte by byte."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.fakes import EchoEngine
from tests.peer.exchange_lab import (
    SIGNED_KEYS,
    SIGNED_LIVE,
    Lab,
    make_request,
    read_all,
)
from tests.peer.memory import WINDOW_BYTES, MemoryPeerStream
from tokenplace import defaults
from tokenplace.errors import ErrorCode
from tokenplace.generation import Event, Finished, Tokens
from tokenplace.peer.frames import decode_frames
from tokenplace.peer.refusal import Refusal, decode_refusal
from tokenplace.peer.wire import FRAME_LENGTH, encode_request
from tokenplace.sealing.answer import AnswerOpener, Chunk, RefusalBytes, ReplySecrets

PROMPT = "one two three"


def refusal_in(answer: bytes) -> Refusal:
    assert answer[0] == 0
    assert int.from_bytes(answer[1:3], "big") == len(answer) - 3
    return decode_refusal(answer[3:])


async def refusal_of(lab: Lab, frame: bytes) -> Refusal:
    stream = await lab.open_stream()
    await stream.send_all(frame)
    return refusal_in(await read_all(stream))


def events_in(opener: AnswerOpener, answer: bytes) -> list[Event]:
    opener.receive_data(answer)
    opener.receive_eof()
    events: list[Event] = []
    while (chunk := opener.next_item()) is not None:
        assert isinstance(chunk, Chunk)
        events += decode_frames(chunk.frames)  # type: ignore[arg-type]
    return events


async def test_a_request_sent_byte_by_byte_is_served() -> None:
    async with Lab().running() as lab:
        frame, opener = lab.seal_request(make_request(PROMPT))
        stream = await lab.open_stream()
        for n in range(len(frame)):
            await stream.send_all(frame[n : n + 1])
        events = events_in(opener, await read_all(stream))
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("prefix", [defaults.MAX_REQUEST_FRAME_BYTES + 1, (1 << 32) - 1])
async def test_a_huge_length_is_refused_at_once(prefix: int, autojump_clock: MockClock) -> None:
    async with Lab().running() as lab:
        refusal = await refusal_of(lab, FRAME_LENGTH.pack(prefix))
        assert refusal.error.code is ErrorCode.TOO_BIG
        assert trio.current_time() == 0
        await lab.settled()


@settings(max_examples=30)
@given(st.binary(max_size=3000))
def test_garbage_is_refused(data: bytes) -> None:
    async def refuse() -> Refusal:
        async with Lab().running() as lab:
            refusal = await refusal_of(lab, FRAME_LENGTH.pack(len(data)) + data)
            await lab.settled()
            assert lab.donor.statistics.n_failed == 1
            return refusal

    code = trio.run(refuse).error.code
    assert code in (ErrorCode.BAD_FORMAT, ErrorCode.UNKNOWN_KEY)


@settings(max_examples=30)
@given(st.data())
def test_no_tampered_request_reaches_the_engine(data: st.DataObject) -> None:
    engine = EchoEngine()

    async def refuse() -> Refusal:
        async with Lab(engine).running() as lab:
            frame = bytearray(lab.seal_request(make_request(PROMPT))[0])
            position = data.draw(st.integers(FRAME_LENGTH.size, len(frame) - 1))
            frame[position] ^= data.draw(st.integers(1, 255))
            return await refusal_of(lab, bytes(frame))

    code = trio.run(refuse).error.code
    assert code in (ErrorCode.BAD_FORMAT, ErrorCode.UNKNOWN_KEY)
    assert engine.requests == []


@pytest.mark.parametrize("payload", [b"", b"\x80", b"\xc1", os.urandom(500)])
async def test_what_opens_to_garbage_is_refused(payload: bytes) -> None:
    async with Lab().running() as lab:
        refusal = await refusal_of(lab, lab.seal(payload))
    assert refusal.error.code is ErrorCode.BAD_FORMAT


async def test_a_reply_key_that_cannot_be_used_is_bad_format() -> None:
    async with Lab().running() as lab:
        reply = ReplySecrets.generate()
        payload = encode_request(
            make_request(PROMPT), lab.target().epoch, reply.resp_secret, b"\xff" * 1216
        )
        refusal = await refusal_of(lab, lab.seal(payload))
        assert refusal.error.code is ErrorCode.BAD_FORMAT
        await lab.settled()


async def test_a_replayed_request_is_refused() -> None:
    engine = EchoEngine()
    async with Lab(engine).running() as lab:
        frame, opener = lab.seal_request(make_request(PROMPT))
        stream = await lab.open_stream()
        await stream.send_all(frame)
        assert isinstance(events_in(opener, await read_all(stream))[-1], Finished)
        refusal = await refusal_of(lab, frame)
    assert refusal.error.code is ErrorCode.STALE_EPOCH
    assert (refusal.keys, refusal.live) == (SIGNED_KEYS, SIGNED_LIVE)
    assert len(engine.requests) == 1


async def test_an_epoch_of_long_ago_is_stale(autojump_clock: MockClock) -> None:
    async with Lab().running() as lab:
        frame, _ = lab.seal_request(make_request(PROMPT))
        await trio.sleep((1 + defaults.EPOCHS_KEPT) * defaults.EPOCH_S)
        refusal = await refusal_of(lab, frame)
    assert refusal.error.code is ErrorCode.STALE_EPOCH


async def test_a_busy_donor_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "OPEN_PER_BUCKET", 0)
    async with Lab().running() as lab:
        stream = await lab.open_stream()
        refusal = refusal_in(await read_all(stream))
    assert refusal.error.code is ErrorCode.BUSY
    assert refusal.error.retry_after_s == defaults.BUSY_RETRY_AFTER_S
    assert (refusal.keys, refusal.live) == (None, None)


async def test_large_requests_share_a_budget(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(defaults, "MAX_LARGE_REQUESTS_BYTES", 256 << 10)
    large = FRAME_LENGTH.pack(4 << 20) + bytes(300 << 10)
    async with Lab(EchoEngine(piece_bytes=4096)).running() as lab:
        hog = await lab.open_stream()
        await hog.send_all(large[: 200 << 10])
        await trio.sleep(1)
        refusal = await refusal_of(lab, large)
        assert refusal.error.code is ErrorCode.BUSY
        events = await lab.ask(make_request(PROMPT))  # small ones need no budget
        assert isinstance(events[-1], Finished)
        await lab.settled()
        assert trio.current_time() == defaults.REQUEST_TIMEOUT_S
        # The budget is free again.
        assert isinstance((await lab.ask(make_request("x" * 100_000)))[-1], Finished)


async def test_announcing_large_requests_takes_nothing_from_others(
    autojump_clock: MockClock,
) -> None:
    async with Lab(EchoEngine(piece_bytes=4096)).running() as lab:
        for _ in range(2 * defaults.MAX_LARGE_REQUESTS_BYTES // defaults.MAX_REQUEST_FRAME_BYTES):
            hog = await lab.open_stream()
            await hog.send_all(FRAME_LENGTH.pack(defaults.MAX_REQUEST_FRAME_BYTES))
        assert isinstance((await lab.ask(make_request("x" * 100_000)))[-1], Finished)
        assert trio.current_time() < defaults.REQUEST_TIMEOUT_S
        await lab.settled()


@pytest.mark.parametrize("n_bytes", [0, 3, 4, 1000])
async def test_a_request_that_does_not_come_is_cut_off(
    n_bytes: int, autojump_clock: MockClock
) -> None:
    async with Lab().running() as lab:
        frame, _ = lab.seal_request(make_request(PROMPT))
        stream = await lab.open_stream()
        await stream.send_all(frame[:n_bytes])
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)
        assert trio.current_time() == defaults.REQUEST_TIMEOUT_S
        await lab.settled()


@pytest.mark.parametrize("n_bytes", [0, 3, 4, 1000])
@pytest.mark.parametrize("end", ["eof", "reset", "lose"])
async def test_a_requester_gone_before_its_request_leaves_nothing(n_bytes: int, end: str) -> None:
    async with Lab().running() as lab:
        frame, _ = lab.seal_request(make_request(PROMPT))
        stream = await lab.open_stream()
        await stream.send_all(frame[:n_bytes])
        await end_it(stream, end)
        await lab.settled()
        assert lab.donor.statistics.n_answering == 0


async def end_it(stream: MemoryPeerStream, end: str) -> None:
    match end:
        case "eof":
            await stream.send_eof()
        case "reset":
            await stream.reset()
        case "lose":
            stream.lose()
        case "bytes":
            await stream.send_all(b"\0")


@pytest.mark.parametrize("end", ["eof", "reset", "lose", "bytes"])
async def test_whatever_the_requester_does_next_cancels(
    end: str, autojump_clock: MockClock
) -> None:
    engine = EchoEngine(token_interval_s=1.0)
    async with Lab(engine).running() as lab:
        frame, _ = lab.seal_request(make_request("word " * 100))
        stream = await lab.open_stream()
        await stream.send_all(frame)
        await trio.sleep(5.5)
        assert engine.n_running == 1
        await end_it(stream, end)
        await lab.settled()
        assert trio.current_time() == 5.5
        assert (engine.n_running, engine.n_cancelled) == (0, 1)
        assert lab.donor.statistics.n_cancelled == 1
        assert lab.streams[0][1].was_reset


async def test_bytes_that_come_with_the_request_cancel_too(autojump_clock: MockClock) -> None:
    engine = EchoEngine(token_interval_s=1.0)
    async with Lab(engine).running() as lab:
        frame, _ = lab.seal_request(make_request("word " * 100))
        stream = await lab.open_stream()
        await stream.send_all(frame + b"\0")
        await lab.settled()
        assert engine.n_running == 0
        assert trio.current_time() < 1


async def test_a_requester_that_does_not_read_is_cut_off(autojump_clock: MockClock) -> None:
    engine = EchoEngine(piece_bytes=8192, token_interval_s=0.01)
    async with Lab(engine).running() as lab:
        frame, _ = lab.seal_request(make_request("word " * 100_000))
        stream = await lab.open_stream()
        await stream.send_all(frame)
        await lab.settled()
        n_ticks = WINDOW_BYTES / 8192
        assert trio.current_time() == pytest.approx(defaults.WRITE_TIMEOUT_S, abs=0.1 * n_ticks)
        assert engine.n_running == 0
        assert lab.donor.statistics.n_cancelled == 1
        assert lab.streams[0][1].was_reset


async def test_a_refusal_nobody_reads_is_cut_off(autojump_clock: MockClock) -> None:
    async with Lab().running() as lab:
        stream = await lab.open_stream()
        lab.streams[0][1].outgoing.data += bytes(WINDOW_BYTES)  # its window is full
        await stream.send_all(FRAME_LENGTH.pack(0))
        await lab.settled()
        assert trio.current_time() == defaults.WRITE_TIMEOUT_S
        assert lab.streams[0][1].was_reset


async def test_a_refusal_to_a_requester_gone_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "OPEN_PER_BUCKET", 0)
    async with Lab().running() as lab:
        (await lab.open_stream()).lose()
        await lab.settled()
        assert lab.streams[0][1].was_reset


async def test_the_first_token_leaves_at_once_and_later_ones_on_the_tick(
    autojump_clock: MockClock,
) -> None:
    async with Lab(EchoEngine(piece_bytes=1, token_interval_s=0.01)).running() as lab:
        frame, opener = lab.seal_request(make_request("x" * 100))
        stream = await lab.open_stream()
        await stream.send_all(frame)
        arrivals: list[tuple[float, int]] = []
        while data := await stream.receive_some(1 << 16):
            opener.receive_data(data)
            while (item := opener.next_item()) is not None:
                assert not isinstance(item, RefusalBytes)
                tokens = [e for e in decode_frames(item.frames) if isinstance(e, Tokens)]
                arrivals += [(trio.current_time(), len(event.ids)) for event in tokens]
    times = [time for time, _ in arrivals]
    assert times[0] == pytest.approx(0.01)
    pauses = [after - before for before, after in pairwise(times[:-1])]
    assert pauses == pytest.approx([defaults.TOKEN_TICK_S] * len(pauses))
    assert 18 <= len(pauses) <= 20
    assert arrivals[0][1] == 1
    assert {n_tokens for _, n_tokens in arrivals[1:-1]} <= {4, 5, 6}


async def test_an_answer_that_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(defaults, "MAX_EXCHANGE_S", 20.0)
    engine = EchoEngine(token_interval_s=1.0)
    async with Lab(engine).running() as lab:
        frame, opener = lab.seal_request(make_request("word " * 100))
        stream = await lab.open_stream()
        await stream.send_all(frame)
        error = events_in(opener, await read_all(stream))[-1]
        assert getattr(error, "code", None) is ErrorCode.DEADLINE_EXCEEDED
        assert trio.current_time() == 20.0
        await lab.settled()
        assert engine.n_running == 0


async def test_a_donor_that_is_stopped_frees_its_engine(autojump_clock: MockClock) -> None:
    engine = EchoEngine(token_interval_s=1.0)
    lab = Lab(engine)
    async with lab.running():
        frame, _ = lab.seal_request(make_request("word " * 100))
        stream = await lab.open_stream()
        await stream.send_all(frame)
        await trio.sleep(5)
    assert engine.n_running == 0
    assert lab.is_idle
    assert lab.donor.statistics.n_answering == 0
