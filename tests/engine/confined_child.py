"""Takes rights from itself, tries everything, and prints what came of it as JSON:
`python -m tests.engine.confined_child LAYER`.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401  # what a host's name needs when somebody connects
import errno
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Final

import numpy as np

from tokenplace import defaults
from tokenplace.engine import confine, sandbox

PARENT: Final = os.getppid()
LIBC: Final = ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: int) -> None:
    if LIBC.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def run_a_thread() -> None:
    thread = threading.Thread(target=np.dot, args=(np.ones(64), np.ones(64)))
    thread.start()
    thread.join()


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def attempts(kept_fd: int, pipe: socket.socket) -> dict[str, Callable[[], object]]:
    growth = defaults.WORKER_GROWTH_BYTES
    stacks = 2 * (8 << 20) * (os.cpu_count() or 1)  # more than are allowed for
    return {
        "read a file": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
        "write a file": lambda: os.close(os.open("/tmp/tokenplace-test", os.O_CREAT | os.O_RDWR)),
        "look at a file": lambda: os.stat("/etc/passwd"),
        "list a folder": lambda: os.listdir("/"),
        "TCP": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        "connect": lambda: socket.create_connection(("127.0.0.1", 9), 1),
        "UDP": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
        "Unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "program": lambda: os.execv("/nowhere", ["nowhere"]),
        "process": fork,
        "signal": lambda: os.kill(PARENT, 0),
        "others' limits": lambda: resource.prlimit(PARENT, resource.RLIMIT_CORE),
        "others' memory": lambda: call(getattr(sandbox._NEVER[-2], os.uname().machine), PARENT),
        "pipe": lambda: pipe.send(b"x"),
        "what is open": lambda: os.pread(kept_fd, 4, 0),
        "thread": run_a_thread,
        "random": lambda: os.urandom(8),
        "own limits": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        "some memory": lambda: np.empty(growth // 2, np.uint8),
        "much memory": lambda: np.empty(growth + stacks, np.uint8),
    }


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    except MemoryError:
        return "ENOMEM"
    return "ok"


def main(layer: str) -> None:
    defaults.WORKER_GROWTH_BYTES = 256 << 20  # type: ignore[misc]  # less to fill
    kept_fd = os.open("/etc/passwd", os.O_RDONLY)
    pipe, _other = socket.socketpair()
    sandbox.refuse_privileges()
    in_force: object = None
    match layer:
        case "worker":
            in_force = confine.confine_worker()
        case "gpu":
            in_force = confine.confine_worker(has_gpu=True)
        case "seccomp":
            in_force = sandbox.refuse_calls(has_gpu=False)
        case "landlock":
            in_force = sandbox.refuse_files()
    tried = {what: outcome(attempt) for what, attempt in attempts(kept_fd, pipe).items()}
    print(json.dumps([in_force, tried]), flush=True)
    signal.raise_signal(signal.SIGABRT)


if __name__ == "__main__":
    main(sys.argv[1])
