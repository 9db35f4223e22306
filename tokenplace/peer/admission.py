"""How many requests a donor takes at once, and from whom (docs/protocol.md, section 9). Start at
`Admission.open_nowait`.

Pure. A place is opened before anything is read, so that one address cannot hold every stream; it
counts as queued once the request was opened, and as running from the first sign that the engine
works on it. The engine queues by itself and decides which queued request runs next; nothing waits
here.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from enum import Enum, auto
from typing import Final

from tokenplace import defaults
from tokenplace.errors import DonorBusy

_PRIVATE: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",  # link-local
        "::1/128",
        "fc00::/7",  # RFC 4193
        "fe80::/10",
    )
)
_IPV4_PREFIX: Final = 24
_IPV6_PREFIX: Final = 48


def bucket_of(remote_ip: str) -> str:
    """Whom a request counts against: the /24 or /48 of its address; on loopback and private
    networks the address itself.

    An address that cannot be read shares one bucket with all such. The empty bucket is this peer's
    own (`GenerateRequest.bucket`).
    """
    try:
        address = ipaddress.ip_address(remote_ip)
    except ValueError:
        return "?"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in _PRIVATE):
        return str(address)
    prefix = _IPV4_PREFIX if address.version == 4 else _IPV6_PREFIX
    return str(ipaddress.ip_network((int(address), prefix), strict=False))


class _Stage(Enum):
    OPEN = auto()
    QUEUED = auto()
    RUNNING = auto()


class Admission:
    """Counts of all open requests, by bucket and stage."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, _Stage]] = Counter()
        self._totals: Counter[_Stage] = Counter()
        self._held_bytes: Counter[str] = Counter()

    @property
    def n_open(self) -> int:
        """Exchanges whose request has not been taken yet."""
        return self._totals[_Stage.OPEN]

    @property
    def n_queued(self) -> int:
        return self._totals[_Stage.QUEUED]

    @property
    def n_running(self) -> int:
        return self._totals[_Stage.RUNNING]

    def open_nowait(self, remote_ip: str) -> Place:
        """A place for a new stream, before anything was read. Raises `DonorBusy`."""
        bucket = bucket_of(remote_ip)
        in_bucket = sum(self._counts[bucket, stage] for stage in _Stage)
        if (
            self._totals.total() >= defaults.MAX_OPEN_EXCHANGES
            or in_bucket >= defaults.OPEN_PER_BUCKET
        ):
            raise DonorBusy(retry_after_s=defaults.BUSY_RETRY_AFTER_S)
        return Place(self, bucket)

    def _check_queue(self, bucket: str) -> None:
        if (
            self.n_queued >= defaults.MAX_QUEUED
            or self._counts[bucket, _Stage.QUEUED] >= defaults.QUEUED_PER_BUCKET
            or self._counts[bucket, _Stage.RUNNING] >= defaults.RUNNING_PER_BUCKET
        ):
            raise DonorBusy(retry_after_s=defaults.BUSY_RETRY_AFTER_S)

    def _hold(self, bucket: str, n_bytes: int) -> None:
        if (
            self._held_bytes.total() + n_bytes > defaults.MAX_LARGE_REQUESTS_BYTES
            or self._held_bytes[bucket] + n_bytes > defaults.LARGE_REQUESTS_BYTES_PER_BUCKET
        ):
            raise DonorBusy(retry_after_s=defaults.BUSY_RETRY_AFTER_S)
        self._held_bytes[bucket] += n_bytes

    def _let_go(self, bucket: str, n_bytes: int) -> None:
        self._held_bytes[bucket] -= n_bytes
        if not self._held_bytes[bucket]:
            del self._held_bytes[bucket]

    def _move(self, bucket: str, old: _Stage | None, new: _Stage | None) -> None:
        if old is not None:
            self._totals[old] -= 1
            self._counts[bucket, old] -= 1
            if not self._counts[bucket, old]:
                del self._counts[bucket, old]  # else every address ever seen would stay
        if new is not None:
            self._totals[new] += 1
            self._counts[bucket, new] += 1


class Place:
    """One exchange's place. `release` never waits, so it is safe in `finally`."""

    def __init__(self, admission: Admission, bucket: str) -> None:
        """bucket: whom it counts against, never empty."""
        self.bucket = bucket
        self._admission = admission
        self._stage: _Stage | None = None
        self._n_bytes = 0
        self._go(_Stage.OPEN)

    def hold(self, n_bytes: int) -> None:
        """So many more bytes of a large request have come, and are kept until it is queued or over.

        What was only announced costs nothing, so it takes nothing. Raises `DonorBusy`.
        """
        self._admission._hold(self.bucket, n_bytes)
        self._n_bytes += n_bytes

    def queue_nowait(self) -> None:
        """The request was read and opened. Raises `DonorBusy`."""
        assert self._stage is _Stage.OPEN, "queued twice"
        self._admission._check_queue(self.bucket)
        self._go(_Stage.QUEUED)

    def run(self) -> None:
        """The engine works on it; from the second call on nothing changes."""
        if self._stage is _Stage.QUEUED:
            self._go(_Stage.RUNNING)

    def release(self) -> None:
        """It is over, however it ended."""
        self._go(None)

    def _go(self, stage: _Stage | None) -> None:
        self._admission._move(self.bucket, self._stage, stage)
        self._stage = stage
        self._admission._let_go(self.bucket, self._n_bytes)
        self._n_bytes = 0
