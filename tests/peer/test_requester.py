"""The requester against donors that answer what they please."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.peer.exchange_lab import BOB_ID, NETWORK, Lab, make_request, text_of
from tests.peer.memory import MemoryPeerStream, stream_pair
from tokenplace import defaults
from tokenplace.errors import (
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    DonorBusy,
    DonorSilent,
    RemoteProtocolError,
    TokenplaceError,
)
from tokenplace.generation import (
    Accepted,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.peer.frames import Frame, encode_frame
from tokenplace.peer.refusal import Refusal, encode_refusal
from tokenplace.peer.request_map import decode_request
from tokenplace.peer.wire import FRAME_LENGTH
from tokenplace.sealing.answer import AnswerSealer
from tokenplace.sealing.request import open_request

ACCEPTED = Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 0, 0)
FINISHED = Finished((ChoiceEnd(0, EogStop(2)),), Usage(5, 0, 0), Timings(0, 0, 0))
WHOLE = replace(FINISHED, usage=Usage(5, 0, 2))


def token(index: int, piece: bytes = b"x") -> Tokens:
    return Tokens(0, index, (7,), (piece,))


Script = Callable[[MemoryPeerStream, AnswerSealer], Awaitable[None]]


class Scripted:
    """A donor that opens requests as it should, and then does as a script says."""

    def __init__(self, script: Script) -> None:
        self.lab = Lab()
        self.script = script
        self.streams: list[MemoryPeerStream] = []
        self.events: list[Event] = []

    async def open_stream(self) -> MemoryPeerStream:
        alice, bob = stream_pair()
        self.streams.append(alice)
        self.lab.nursery.start_soon(self._serve, bob)
        return alice

    async def _serve(self, stream: MemoryPeerStream) -> None:
        frame = b""
        while len(frame) < 4 or len(frame) < 4 + FRAME_LENGTH.unpack(frame[:4])[0]:
            frame += await stream.receive_some(1 << 16)
        opened = open_request(frame[4:], self.lab.key_ring, BOB_ID, NETWORK, trio.current_time())
        request = decode_request(opened.payload)
        sealer = AnswerSealer(request.resp_secret, request.reply_key, opened.digest)
        try:
            await self.script(stream, sealer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def ask(self, request: GenerateRequest | None = None) -> list[Event]:
        """What came is in `events`, also when the answer failed."""
        failure: TokenplaceError | None = None
        async with self.lab.running():
            try:
                await self._collect(request or make_request())
            except TokenplaceError as error:  # bare, as it must be
                failure = error
        if failure is not None:
            raise failure  # out of the lab's nursery it would come in a group
        return self.events

    async def _collect(self, request: GenerateRequest) -> None:
        remote = self.lab.remote(open_stream=self.open_stream)
        async with remote.generate(request) as channel:
            async for event in channel:
                self.events.append(event)


def whole_answer(sealer: AnswerSealer) -> bytes:
    return (
        sealer.opening
        + sealer.seal(encode_frame(ACCEPTED))
        + sealer.seal(encode_frame(token(0, b"one ")))
        + sealer.seal(encode_frame(token(1, b"two")) + encode_frame(WHOLE), is_final=True)
    )


async def test_a_scripted_answer_arrives() -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.send_all(whole_answer(sealer))
        await stream.aclose()

    donor = Scripted(script)
    assert text_of(await donor.ask()) == b"one two"
    assert not donor.streams[0].was_reset


# ---------------------------------------------------------------- connecting


async def test_no_connection_within_five_seconds(autojump_clock: MockClock) -> None:
    async def hang() -> MemoryPeerStream:
        await trio.sleep_forever()
        raise AssertionError

    async with Lab().running() as lab:
        with pytest.raises(ConnectFailed):
            await lab.ask(make_request(), lab.remote(open_stream=hang))
        assert trio.current_time() == defaults.CONNECT_TIMEOUT_S


async def test_a_refused_connection() -> None:
    async def refuse() -> MemoryPeerStream:
        raise ConnectFailed("nobody listens")

    async with Lab().running() as lab:
        with pytest.raises(ConnectFailed) as failure:
            await lab.ask(make_request(), lab.remote(open_stream=refuse))
    assert failure.value.detail == "nobody listens"


async def test_a_connection_lost_before_the_request_was_sent() -> None:
    async def open_lost() -> MemoryPeerStream:
        alice, _ = stream_pair()
        alice.lose()
        return alice

    async with Lab().running() as lab:
        remote = lab.remote(open_stream=open_lost)
        async with remote.generate(make_request()) as channel:
            await wait_all_tasks_blocked()
            with pytest.raises(ConnectionLost):
                await channel.receive()


# ---------------------------------------------------------------- silence


async def test_a_silent_donor_is_given_up_after_ten_seconds(autojump_clock: MockClock) -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await trio.sleep_forever()

    donor = Scripted(script)
    with pytest.raises(DonorSilent):
        await donor.ask()
    assert trio.current_time() == defaults.IDLE_TIMEOUT_S
    assert donor.streams[0].was_reset


async def test_a_donor_frozen_in_mid_answer_too(autojump_clock: MockClock) -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        chunk = sealer.seal(encode_frame(ACCEPTED) + encode_frame(token(0)))
        await stream.send_all(sealer.opening + chunk)
        await trio.sleep(5)
        await stream.send_all(sealer.seal(encode_frame(token(1))))
        await trio.sleep_forever()

    donor = Scripted(script)
    with pytest.raises(DonorSilent):
        await donor.ask()
    assert trio.current_time() == 15.0
    assert text_of(donor.events) == b"xx"


async def test_bytes_that_lead_nowhere_are_not_progress(autojump_clock: MockClock) -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        for byte in whole_answer(sealer):
            await stream.send_all(bytes([byte]))
            await trio.sleep(9)

    donor = Scripted(script)
    with pytest.raises(DeadlineExceeded):
        await donor.ask()
    assert trio.current_time() == defaults.ACCEPT_TIMEOUT_S


async def test_a_long_upload_is_not_the_donors_silence(autojump_clock: MockClock) -> None:
    """A donor that reads slowly has not been asked yet; the silence counts from the last byte."""
    lab = Lab()
    alice, bob = stream_pair()

    async def open_stream() -> MemoryPeerStream:
        return alice

    async def read_slowly() -> None:
        for _ in range(7):
            await trio.sleep(1)
            await bob.receive_some(64 << 10)

    async with lab.running():
        lab.nursery.start_soon(read_slowly)
        with pytest.raises(DonorSilent):
            await lab.ask(make_request("x" * 500_000), lab.remote(open_stream=open_stream))
        assert 14 <= trio.current_time() <= 17


# ---------------------------------------------------------------- answers that are no answers


@settings(max_examples=60)
@given(st.binary(max_size=2000), st.booleans())
def test_garbage_gives_no_text_and_a_declared_error(data: bytes, is_sealed: bool) -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.send_all((sealer.opening if is_sealed else b"") + data)
        await stream.aclose()

    donor = Scripted(script)
    with pytest.raises((RemoteProtocolError, ConnectionLost)):
        trio.run(donor.ask)
    assert donor.events == []
    assert donor.streams[0].was_reset


@settings(max_examples=80)
@given(st.data())
def test_a_truncated_answer_never_finishes(data: st.DataObject) -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        answer = whole_answer(sealer)
        await stream.send_all(answer[: data.draw(st.integers(0, len(answer) - 1))])
        await stream.aclose()

    donor = Scripted(script)
    with pytest.raises((ConnectionLost, RemoteProtocolError)):
        trio.run(donor.ask)
    assert text_of(donor.events) in (b"", b"one ")
    assert not any(isinstance(event, Finished) for event in donor.events)


@settings(max_examples=80)
@given(st.data())
def test_a_tampered_answer_never_gives_other_text(data: st.DataObject) -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        answer = bytearray(whole_answer(sealer))
        position = data.draw(st.integers(0, len(answer) - 1))
        answer[position] ^= data.draw(st.integers(1, 255))
        await stream.send_all(bytes(answer))
        await stream.aclose()

    donor = Scripted(script)
    with pytest.raises((ConnectionLost, RemoteProtocolError)):
        trio.run(donor.ask)
    assert text_of(donor.events) in (b"", b"one ")
    assert not any(isinstance(event, Finished) for event in donor.events)


async def test_an_answer_to_another_request_is_refused() -> None:
    answers: list[bytes] = []

    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        answers.append(whole_answer(sealer))
        await stream.send_all(answers[0])
        await stream.aclose()

    donor = Scripted(script)
    assert text_of(await donor.ask()) == b"one two"
    donor.events.clear()
    with pytest.raises(RemoteProtocolError):
        await donor.ask()
    assert donor.events == []


async def test_chunks_of_two_answers_do_not_mix() -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        chunks = [sealer.seal(encode_frame(frame)) for frame in (ACCEPTED, token(0), token(1))]
        await stream.send_all(sealer.opening + chunks[0] + chunks[2])
        await trio.sleep_forever()

    donor = Scripted(script)
    with pytest.raises(RemoteProtocolError):
        await donor.ask()
    assert text_of(donor.events) == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"\2",
        b"\0\xff\xff",  # a refusal of 64 KiB
        b"\1\xff\xff",  # a key of 64 KiB
        b"\0\0\1\xc1",
        b"\0\0\1\x80",
    ],
)
async def test_a_wrong_beginning_is_refused_at_once(
    answer: bytes, autojump_clock: MockClock
) -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.send_all(answer)
        await trio.sleep_forever()

    donor = Scripted(script)
    with pytest.raises(RemoteProtocolError):
        await donor.ask()
    assert trio.current_time() == 0
    assert donor.streams[0].was_reset


async def test_a_huge_chunk_is_refused_at_once(autojump_clock: MockClock) -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.send_all(sealer.opening + b"\xff" * 8)
        await trio.sleep_forever()

    with pytest.raises(RemoteProtocolError):
        await Scripted(script).ask()
    assert trio.current_time() == 0


@pytest.mark.parametrize(
    ("chunks", "final"),
    [
        ([[token(0)]], []),
        ([[ACCEPTED], [ACCEPTED]], []),
        ([[ACCEPTED], [token(1)]], []),
        ([[ACCEPTED], [token(0), token(0)]], []),
        ([[ACCEPTED, FINISHED]], []),
        ([[ACCEPTED]], []),
        ([[ACCEPTED]], [token(0)]),
        ([[ACCEPTED]], [FINISHED, token(0)]),
        ([[ACCEPTED]], [FINISHED, FINISHED]),
        ([], [FINISHED]),
    ],
)
async def test_frames_out_of_order_break_the_protocol(
    chunks: list[list[Frame]], final: list[Frame]
) -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        answer = sealer.opening
        for frames in chunks:
            answer += sealer.seal(b"".join(map(encode_frame, frames)))
        answer += sealer.seal(b"".join(map(encode_frame, final)), is_final=True)
        await stream.send_all(answer)
        await stream.aclose()

    donor = Scripted(script)
    with pytest.raises(RemoteProtocolError):
        await donor.ask()
    assert not any(isinstance(event, Finished) for event in donor.events)


async def test_more_tokens_than_asked_for_break_the_protocol() -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.send_all(whole_answer(sealer))
        await stream.aclose()

    with pytest.raises(RemoteProtocolError):
        await Scripted(script).ask(make_request(max_tokens=9))


# ---------------------------------------------------------------- refusals and leaving


async def test_a_refusal_comes_through_a_request_that_nobody_reads(
    autojump_clock: MockClock,
) -> None:
    """The donor refuses at once; the request is larger than the stream's window."""
    lab = Lab()
    alice, bob = stream_pair()

    async def open_stream() -> MemoryPeerStream:
        return alice

    async with lab.running():
        await bob.send_all(encode_refusal(Refusal(DonorBusy(retry_after_s=7))))
        with pytest.raises(DonorBusy) as busy:
            await lab.ask(make_request("x" * 2_000_000), lab.remote(open_stream=open_stream))
    assert busy.value.retry_after_s == 7
    assert trio.current_time() == 0
    assert alice.was_reset


async def test_what_came_before_an_error_is_delivered_first() -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        chunk = sealer.seal(encode_frame(ACCEPTED) + encode_frame(token(0)))
        end = sealer.seal(encode_frame(token(1)) + encode_frame(DonorBusy("x")), is_final=True)
        await stream.send_all(sealer.opening + chunk + end)
        await stream.aclose()

    donor = Scripted(script)
    with pytest.raises(DonorBusy):
        await donor.ask()
    assert text_of(donor.events) == b"xx"


async def test_a_failed_answer_keeps_failing() -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.aclose()

    donor = Scripted(script)
    async with donor.lab.running():
        remote = donor.lab.remote(open_stream=donor.open_stream)
        async with remote.generate(make_request()) as channel:
            for _ in range(2):
                with pytest.raises(ConnectionLost):
                    await channel.receive()


async def test_a_channel_can_be_closed_before_the_block_is_left() -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.send_all(whole_answer(sealer))
        await stream.aclose()

    donor = Scripted(script)
    async with donor.lab.running():
        remote = donor.lab.remote(open_stream=donor.open_stream)
        async with remote.generate(make_request()) as channel:
            await channel.receive()
            await channel.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await channel.receive()


async def test_leaving_while_the_stream_opens_leaves_nothing(autojump_clock: MockClock) -> None:
    async def hang() -> MemoryPeerStream:
        await trio.sleep_forever()
        raise AssertionError

    async with Lab().running() as lab:
        with trio.move_on_after(1) as scope:
            await lab.ask(make_request(), lab.remote(open_stream=hang))
        assert scope.cancelled_caught


async def test_errors_say_nothing_of_the_prompt() -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.send_all(b"\2")

    with pytest.raises(TokenplaceError) as failure:
        await Scripted(script).ask(make_request("canary-9d20"))
    error: BaseException | None = failure.value
    while error is not None:
        assert "canary-9d20" not in f"{error!r} {error}"
        error = error.__context__
