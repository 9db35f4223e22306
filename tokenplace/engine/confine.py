"""What each child process of the engine does to itself, and how it talks to its parent.

Start at `enter_child`.

A child runs what strangers influence (C code over their prompts, a template out of a file), so it
may be killed at any time, must not outlive its parent, and must leave no memory image with prompts
behind. Blocking I/O: a child has no event loop and does one thing at a time.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Iterable
from typing import Any, Final

from tokenplace.engine.frames import FrameDecoder, encode_frame

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_READ_BYTES: Final = 1 << 16


class ParentGone(Exception):
    """The other end of the pipe is closed: there is nobody left to work for."""


class ParentPipe:
    """The child's end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = FrameDecoder()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, values: Iterable[object]) -> None:
        """Send the values as frames, in one write. Raises `ParentGone`."""
        data = b"".join(map(encode_frame, values))
        try:
            self._socket.sendall(data)
        except OSError:
            raise ParentGone from None

    def receive(self) -> Any:
        """The next value; waits for it. Raises `ParentGone`."""
        while (value := self._decoder.next_value()) is None:
            self._read()
        return value

    def receive_nowait(self) -> Any | None:
        """The next value if it is there already. Raises `ParentGone`."""
        while (value := self._decoder.next_value()) is None and self._poll.poll(0):
            self._read()
        return value

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except OSError:
            raise ParentGone from None
        if not data:
            raise ParentGone
        self._decoder.receive_data(data)


def enter_child(argv: list[str]) -> ParentPipe:
    """Confine this process and open its pipe.

    argv: file descriptor and parent's process id, as `process.py` gives them. Raises `ParentGone`.
    """
    fd, parent_pid = int(argv[0]), int(argv[1])
    # Ctrl-C and service managers signal the whole group; only the parent knows when answers have
    # ended.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # nor may another process of this user read it
    if os.getppid() != parent_pid:  # it died before the line above could see it
        raise ParentGone
    return ParentPipe(socket.socket(fileno=fd))
