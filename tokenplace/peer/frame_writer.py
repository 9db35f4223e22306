"""Frames of one connection leave one after the other, in a task of their own. Start at
`FrameWriter`.

Whoever sends may be cancelled at any time: a frame that has begun to leave goes on without him, for
half of it on the wire would end every other stream. Frames without data overtake those with: on a
slow line an answer to a ping must not wait until everybody's answers have left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from tokenplace import defaults


@dataclass(eq=False, slots=True)
class _Frame:
    data: bytes
    is_over: trio.Event = field(default_factory=trio.Event)
    is_out: bool = False


class FrameWriter:
    """Writes what others send and post, while `run` runs. Everybody's data wait in turn."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._write = write
        self._control: deque[_Frame] = deque()
        self._data: deque[_Frame] = deque()
        self._leaving: _Frame | None = None
        self._sent = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._is_closed = False

    async def send(self, data: bytes) -> None:
        """Wait until `data` is out. Raises `trio.ClosedResourceError` when it will never be.

        Cancelled before it has begun to leave, it stays here.
        """
        frame = self._put(self._data, data)
        try:
            await frame.is_over.wait()
        except trio.Cancelled:
            if frame in self._data:
                self._data.remove(frame)
            raise
        if not frame.is_out:
            raise trio.ClosedResourceError

    async def post(self, data: bytes) -> trio.Event:
        """Have `data` leave before all that is sent; the event says when. Waits only if
        `MAX_WAITING_FRAMES` wait already. Raises `trio.ClosedResourceError` when nothing leaves.
        """
        while len(self._control) >= defaults.MAX_WAITING_FRAMES:
            await self._room.park()
        frame = self._put(self._control, data)
        await trio.lowlevel.cancel_shielded_checkpoint()  # it is on its way
        return frame.is_over

    def _put(self, frames: deque[_Frame], data: bytes) -> _Frame:
        if self._is_closed:
            raise trio.ClosedResourceError
        frame = _Frame(data)
        frames.append(frame)
        self._sent.set()
        return frame

    async def run(self) -> None:
        """Write until cancelled. Raises what writing raises, and `trio.TooSlowError` when one frame
        takes over `WRITE_STALL_S`; nothing leaves after that.
        """
        try:
            while True:
                frame = self._leaving = self._next()
                if frame is None:
                    self._sent = trio.Event()
                    await self._sent.wait()
                    continue
                with trio.fail_after(defaults.WRITE_STALL_S):
                    await self._write(frame.data)
                frame.is_out = True
                frame.is_over.set()
        finally:
            self._close()

    def _next(self) -> _Frame | None:
        if self._control:
            self._room.unpark()
            return self._control.popleft()
        return self._data.popleft() if self._data else None

    def _close(self) -> None:
        self._is_closed = True
        left = [*self._control, *self._data]
        if self._leaving is not None:
            left.append(self._leaving)
        self._control.clear()
        self._data.clear()
        for frame in left:
            frame.is_over.set()
        self._room.unpark_all()
