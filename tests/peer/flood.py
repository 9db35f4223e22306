"""A flood of TCP connections from one address, in a process of its own. Start at `open_flood`.

They never say a word. Held ones are opened again when the other side hangs up, others hang up
themselves as soon as they are open.
"""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

N_SOCKETS = 900
SOURCE = "127.0.0.2"
# As fast as a line of 10 Mbit/s can: six packets each way. What a core could do on loopback would
# only show which of two busy programs the system prefers.
RECONNECTS_PER_S = 2000


@asynccontextmanager
async def open_flood(port: int, *, is_held: bool) -> AsyncIterator[None]:
    """Inside the block, all sockets have tried to connect once, and go on."""
    args = [sys.executable, "-m", "tests.peer.flood", str(port), str(int(is_held))]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(_run, args)
        assert process.stdout is not None
        with trio.fail_after(20):
            assert await process.stdout.receive_some(100) == b"ready\n"
        yield
        assert process.poll() is None, "the flood ended by itself"
        nursery.cancel_scope.cancel()


async def _run(args: list[str], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(args, stdout=subprocess.PIPE, task_status=task_status)


def flood(port: int, *, is_held: bool) -> None:
    """Connect until killed."""
    selector = selectors.DefaultSelector()
    for _ in range(N_SOCKETS):
        _connect(port, selector)
    print("ready", flush=True)
    while True:
        pause_until = time.monotonic() + 0.01
        for key, _ in selector.select()[: RECONNECTS_PER_S // 100]:
            client = key.fileobj
            assert isinstance(client, socket.socket)
            if is_held and key.data == "connecting" and not _error(client):
                selector.modify(client, selectors.EVENT_READ, "open")
                continue
            selector.unregister(client)
            client.close()
            _connect(port, selector)
        time.sleep(max(0.0, pause_until - time.monotonic()))


def _connect(port: int, selector: selectors.BaseSelector) -> None:
    client = socket.socket()
    client.setblocking(False)
    client.bind((SOURCE, 0))
    with suppress(BlockingIOError):
        client.connect(("127.0.0.1", port))
    selector.register(client, selectors.EVENT_WRITE, "connecting")


def _error(client: socket.socket) -> int:
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


if __name__ == "__main__":
    flood(int(sys.argv[1]), is_held=sys.argv[2] == "1")
