"""Child processes of the engine, from the parent's side. Start at `ChildProcess.start`.

Differs from `trio.lowlevel.open_process`: that one forks in a helper thread, and the kernel sends
the parent-death signal when that *thread* ends, ten seconds later. So the child is started from
trio's own thread (2 ms).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import Any, Final

import trio

from tokenplace.engine.frames import FrameDecoder

_READ_BYTES: Final = 1 << 16
_EXIT_WAIT_S: Final = 0.5  # a process with gigabytes of memory needs a moment to end


_OTHERS_SIGNALS: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class ChildDied(Exception):
    """The child ended, or its pipe did. `str()` says how, e.g. "signal 9".

    is_own_fault: it aborted or ended by itself; nobody outside (a person, the kernel that ran out
    of memory) is known to have ended it.
    """

    def __init__(self, how: str, status: int | None = None) -> None:
        """status: as `Popen.returncode`."""
        super().__init__(how)
        self.is_own_fault = status is not None and -status not in _OTHERS_SIGNALS


class ChildProcess:
    """One child, running `python -m module`, and the frames to and from it."""

    def __init__(self, popen: subprocess.Popen[bytes], stream: trio.SocketStream) -> None:
        self._popen = popen
        self._stream = stream
        self._decoder = FrameDecoder()

    @classmethod
    def start(cls, module: str, pass_fds: tuple[int, ...] = ()) -> ChildProcess:
        """Start it, with these descriptors open. Raises `ChildDied`. Whoever starts a child must
        `aclose` it.
        """
        ours, theirs = socket.socketpair()
        # -P: never import from the folder that the user happens to be in.
        command = [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())]
        environment = {
            **os.environ,
            "GGML_NO_BACKTRACE": "1",  # an abort would run gdb for seconds
            "OPENBLAS_NUM_THREADS": "1",  # numpy's pool: nothing here needs it
            # How long llama.cpp's threads spin for each other before they sleep. On a busy machine
            # libgomp's own 300,000 rounds outlast a time slice and make two threads several times
            # slower than these; on a quiet one both are as fast.
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
        }
        with theirs:
            try:
                popen = subprocess.Popen(
                    command,
                    pass_fds=(theirs.fileno(), *pass_fds),
                    stdin=subprocess.DEVNULL,
                    # What a dying C library prints may quote the prompt.
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            except OSError as error:
                ours.close()
                raise ChildDied(f"it did not start: {error.strerror}") from None
        return cls(popen, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Has it not ended yet?"""
        return self._popen.poll() is None

    async def send(self, frame: bytes) -> None:
        """Send one frame. Raises `ChildDied`."""
        try:
            await self._stream.send_all(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise await self._how_it_ended() from None

    async def receive(self) -> Any:
        """The next value. Raises `ChildDied`, and `BadFrame` for nonsense."""
        while (value := self._decoder.next_value()) is None:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise await self._how_it_ended()
            self._decoder.receive_data(data)
        return value

    def kill(self) -> None:
        """End it now; a child has nothing to save. Never waits."""
        self._popen.kill()

    async def aclose(self) -> None:
        """Kill it and wait until it is gone, also while being cancelled.

        Giving back its memory may take a moment.
        """
        self.kill()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._popen.wait)
            await self._stream.aclose()

    async def _how_it_ended(self) -> ChildDied:
        """The pipe ends a moment before the process; one that only closed its pipe is killed."""
        with trio.move_on_after(_EXIT_WAIT_S):
            await trio.to_thread.run_sync(self._popen.wait, abandon_on_cancel=True)
        status = self._popen.returncode
        if status is None:
            self.kill()
            return ChildDied("its pipe closed")
        return ChildDied(f"signal {-status}" if status < 0 else f"exit status {status}", status)
