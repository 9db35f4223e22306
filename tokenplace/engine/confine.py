"""What each child process of the engine does to itself, and how it talks to its parent.

Start at `enter_child`, then `confine`.

A child runs what strangers influence (C code over their prompts, a template out of a file), so it
may be killed at any time, must not outlive its parent, must leave no memory image with prompts
behind, and has nothing to say to the network or the disk. Blocking I/O: a child has no event loop
and does one thing at a time.
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

from tokenplace import defaults
from tokenplace.engine.frames import FrameDecoder, encode_frame
from tokenplace.engine.sandbox import refuse_calls, refuse_files, refuse_privileges

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_READ_BYTES: Final = 1 << 16

_STACK_BYTES: Final = 8 << 20  # of a thread, where the user's limit does not say

NETWORK: Final = "network"
FILES: Final = "files"
PROGRAMS: Final = "programs"
PROTECTIONS: Final = (NETWORK, FILES, PROGRAMS)
"""What a child can be kept from: making sockets, opening files, starting programs."""


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
    """Make this process a child, and open its pipe.

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
    refuse_privileges()
    if os.getppid() != parent_pid:  # it died before the line above could see it
        raise ParentGone
    return ParentPipe(socket.socket(fileno=fd))


def confine_worker(has_gpu: bool = False) -> tuple[str, ...]:
    """From now on: no files, sockets, programs or processes, and only so much more memory; what is
    open stays open. Those of `PROTECTIONS` that are in force.

    Everything must be imported and loaded. has_gpu: its driver may go on using files and memory.
    """
    if not has_gpu:
        _limit_growth()
    return confine(has_gpu=has_gpu)


def confine(*, has_gpu: bool = False) -> tuple[str, ...]:
    """The same, without a word of memory."""
    has_landlock = not has_gpu and refuse_files()
    has_seccomp = refuse_calls(has_gpu=has_gpu)
    in_force = {
        NETWORK: has_seccomp,  # Landlock knows TCP only
        FILES: has_landlock or (has_seccomp and not has_gpu),
        PROGRAMS: has_landlock or has_seccomp,
    }
    return tuple(protection for protection in PROTECTIONS if in_force[protection])


def _limit_growth() -> None:
    """Bound what a request can make this process take; over it, the request costs the process.

    Not RLIMIT_AS: mapped weights count there. RLIMIT_DATA counts what can be written and belongs to
    this process alone: heap, KV cache, and the stacks of threads, which start with the first step.
    """
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as status:
            (data_kb,) = (line.split()[1] for line in status if line.startswith("VmData:"))
        stack_bytes = max(resource.getrlimit(resource.RLIMIT_STACK)[0], _STACK_BYTES)
        stacks_bytes = stack_bytes * (os.cpu_count() or 1)
        limit = int(data_kb) * 1024 + stacks_bytes + defaults.WORKER_GROWTH_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
