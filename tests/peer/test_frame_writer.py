"""In which order frames leave, and what becomes of them when somebody does not wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tokenplace import defaults
from tokenplace.peer.frame_writer import FrameWriter

FRAME_S = 0.6 * defaults.WRITE_STALL_S


class Line:
    """Takes `frame_s` for a frame."""

    def __init__(self, frame_s: float = FRAME_S) -> None:
        self.frame_s = frame_s
        self.begun: list[bytes] = []
        self.taken: list[bytes] = []

    async def write(self, frame: bytes) -> None:
        self.begun.append(frame)
        await trio.sleep(self.frame_s)
        self.taken.append(frame)


@asynccontextmanager
async def open_writer(line: Line) -> AsyncIterator[FrameWriter]:
    writer = FrameWriter(line.write)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        yield writer
        nursery.cancel_scope.cancel()


async def test_data_leave_in_turn_and_all_else_before_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    line = Line()
    async with open_writer(line) as writer, trio.open_nursery() as senders:
        for data in (b"first", b"second", b"third"):
            senders.start_soon(writer.send, data)
            await trio.testing.wait_all_tasks_blocked()
        for data in (b"a ping", b"an end"):
            await writer.post(data)
        assert trio.current_time() < FRAME_S, "nobody waits who posts"
    assert line.taken == [b"first", b"a ping", b"an end", b"second", b"third"]


async def test_waiting_for_others_is_no_stall(autojump_clock: trio.testing.MockClock) -> None:
    line = Line()
    async with open_writer(line) as writer, trio.open_nursery() as senders:
        for _ in range(10):
            senders.start_soon(writer.send, b"data")
    assert len(line.taken) == 10


async def test_a_frame_that_does_not_leave_ends_all(autojump_clock: trio.testing.MockClock) -> None:
    writer = FrameWriter(Line(frame_s=1.1 * defaults.WRITE_STALL_S).write)

    async def run() -> None:
        with pytest.raises(trio.TooSlowError):
            await writer.run()

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await writer.send(b"data")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(send)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        is_over = await writer.post(b"a ping")
    assert trio.current_time() == defaults.WRITE_STALL_S
    assert is_over.is_set(), "nobody waits for ever"
    with pytest.raises(trio.ClosedResourceError):
        await writer.post(b"another")
    with pytest.raises(trio.ClosedResourceError):
        await writer.send(b"data")


async def test_who_leaves_takes_back_what_has_not_begun_and_waits_for_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    line = Line()
    async with open_writer(line) as writer:
        async with trio.open_nursery() as senders:
            senders.start_soon(writer.send, b"begun")
            await trio.testing.wait_all_tasks_blocked()
            senders.start_soon(writer.send, b"not begun")
            await trio.testing.wait_all_tasks_blocked()
            assert line.begun == [b"begun"]
            senders.cancel_scope.cancel()
        assert trio.current_time() == 0
        await writer.send(b"another")
    assert line.taken == [b"begun", b"another"]


async def test_what_is_posted_is_limited(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "MAX_WAITING_FRAMES", 3)
    line = Line(frame_s=1.0)
    async with open_writer(line) as writer:
        for _ in range(4):  # one of them is leaving
            await writer.post(b"a pong")
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == 0
        await writer.post(b"a pong")
        assert trio.current_time() == 1.0
        with trio.CancelScope() as gone:
            gone.cancel()
            await writer.post(b"too many")
        assert gone.cancelled_caught
        await (await writer.post(b"the last")).wait()
    assert line.taken == [b"a pong"] * 5 + [b"the last"]
