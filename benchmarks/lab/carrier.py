"""The process that holds a lab's networks and carries its packets. Start at `carry`.

`python -m benchmarks.lab.carrier N_HOSTS SEED` prints one line when all is there, takes one line of
JSON for each change of a link, answers it with one when that is in force, and ends with its input.
With it ends every process in its networks. Only what Python brings is imported: it starts in a
moment, and by then nobody may have started a thread.
"""

from __future__ import annotations

import json
import math
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from benchmarks.lab.namespaces import Namespace, end_inhabitants, make_namespaces
from benchmarks.lab.router import Router, Rule

MAX_PACKET_BYTES: Final = 64 << 10
BURST: Final = 64  # packets of one host before the others have their turn
NICENESS: Final = -10  # a busy machine is not to add to the delays


def carry(namespaces: Sequence[Namespace], router: Router) -> None:
    """Carry packets until the input ends."""
    sources = {namespace.tun_fd: host for host, namespace in enumerate(namespaces)}
    poll = select.poll()
    for fd in (sys.stdin.fileno(), *sources):
        poll.register(fd, select.POLLIN)
    orders = b""
    while True:
        for target, packet in router.arrived(time.monotonic()):
            _deliver(namespaces[target], packet)
        for fd, _ in poll.poll(_wait_ms(router.next_at())):
            if fd in sources:
                _take_burst(router, sources[fd], fd)
                continue
            data = os.read(fd, MAX_PACKET_BYTES)
            if not data:
                return
            *lines, orders = (orders + data).split(b"\n")
            for line in lines:
                _obey(router, json.loads(line))


def _wait_ms(until: float) -> int | None:
    """Rounded up: a packet is rather late by a part of a millisecond than early."""
    return None if until == math.inf else max(0, math.ceil((until - time.monotonic()) * 1000))


def _take_burst(router: Router, source: int, tun_fd: int) -> None:
    now = time.monotonic()
    with suppress(BlockingIOError):
        for _ in range(BURST):
            router.take(source, os.read(tun_fd, MAX_PACKET_BYTES), now)


def _deliver(namespace: Namespace, packet: bytes) -> None:
    with suppress(BlockingIOError):  # a host that is slower than its links: lost, as at a real one
        os.write(namespace.tun_fd, packet)


def _obey(router: Router, order: dict[str, Any]) -> None:
    """Change links, all at the same moment, and tell what was carried so far."""
    for source, target, rule in order["links"]:
        router.set_rule(source, target, Rule(**rule))
    _say(asdict(router.traffic))


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    n_hosts, seed = map(int, sys.argv[1:])
    try:
        namespaces = make_namespaces(n_hosts)
    except OSError as error:
        _say({"error": f"{error.strerror}"})
        sys.exit(1)
    with suppress(PermissionError):
        os.nice(NICENESS)
    _say({"net_fds": [namespace.net_fd for namespace in namespaces]})
    try:
        carry(namespaces, Router(n_hosts, seed))
    finally:
        end_inhabitants(namespaces)


if __name__ == "__main__":
    main()
