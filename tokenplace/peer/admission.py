"""How many requests a donor takes at once, and from whom (docs/protocol.md, section 9). Start at
`Admission.open_nowait`.

Pure; `now` is an argument, in seconds of any steady clock. A place is opened before anything is
read, so that one address cannot hold every stream; it counts as queued once the request was opened,
and as running from the first sign that the engine works on it. The engine queues by itself, decides
which queued request runs next, and says how long each will wait; nothing waits here.

Differs from a queue with a fixed length: what bounds it is how long a newcomer would wait here and
now, and a full one makes room for whoever holds less of it than others: the newest request of the
bucket that holds most is shed, before it has begun. All models share the places; the requests of
each artifact wait for each other only.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
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
    SHED = auto()  # it will not run, and is being told so


_HELD: Final = frozenset({_Stage.QUEUED, _Stage.RUNNING})  # places that are shared out


class Admission:
    """All open requests by bucket and stage, and how long the queued ones have to wait.

    n_refused, n_shed: told `busy` since the start, at the door and out of the queue.
    """

    def __init__(self) -> None:
        self.n_refused = 0
        self.n_shed = 0
        self._counts: Counter[tuple[str, _Stage]] = Counter()
        self._totals: Counter[_Stage] = Counter()
        self._held: Counter[tuple[str, str]] = Counter()  # bucket, artifact: queued and running
        self._held_bytes: Counter[str] = Counter()
        self._queue: list[Place] = []  # the newest last

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

    @property
    def n_buckets(self) -> int:
        """Buckets whose requests are queued or running."""
        return len({bucket for bucket, stage in self._counts if stage in _HELD})

    def open_nowait(self, remote_ip: str, now: float) -> Place:
        """A place for a new stream, before anything was read. Raises `DonorBusy`."""
        bucket = bucket_of(remote_ip)
        in_bucket = sum(self._counts[bucket, stage] for stage in _Stage)
        if (
            self._totals.total() >= defaults.MAX_OPEN_EXCHANGES
            or in_bucket >= defaults.OPEN_PER_BUCKET
        ):
            raise self._refusal(now)
        return Place(self, bucket)

    # ------------------------------------------------------------ for places

    def _admit(self, bucket: str, now: float, *, may_shed: bool) -> None:
        """One more of this bucket is to be queued. Raises `DonorBusy`."""
        if (
            self._counts[bucket, _Stage.QUEUED] >= defaults.QUEUED_PER_BUCKET
            or self._counts[bucket, _Stage.RUNNING] >= defaults.RUNNING_PER_BUCKET
        ):
            raise self._refusal(now, bucket)
        if self.n_queued >= defaults.MAX_QUEUED:
            heaviest = self._heaviest(bucket, self._n_held(bucket) + 1) if may_shed else None
            if heaviest is None:
                raise self._refusal(now)
            self._shed(heaviest, now)

    def _check_wait(self, newcomer: Place, now: float) -> None:
        """It is known when this queued request would begin. Turns are fair between buckets, so who
        would wait for too long does so because of its own bucket's requests, or because nobody is
        served sooner. Raises `DonorBusy`.
        """
        too_long_s = newcomer.wait_s(now) - defaults.MAX_QUEUE_WAIT_S
        if too_long_s > 0:
            self.n_refused += 1
            raise _busy(too_long_s)
        artifact = newcomer.artifact  # who waits for another one waits not because of the newcomer
        waits = [place.wait_s(now) for place in self._queue if place.artifact == artifact]
        if max(waits) > defaults.MAX_QUEUE_WAIT_S:
            n_held = self._n_held(newcomer.bucket, artifact)
            heaviest = self._heaviest(newcomer.bucket, n_held, artifact)
            if heaviest is not None:
                self._shed(heaviest, now)

    def _n_held(self, bucket: str, artifact: str | None = None) -> int:
        if artifact is not None:
            return self._held[bucket, artifact]
        return self._counts[bucket, _Stage.QUEUED] + self._counts[bucket, _Stage.RUNNING]

    def _heaviest(self, newcomer: str, n_held: int, artifact: str | None = None) -> Place | None:
        """Who makes room for a bucket that holds so many places with its new one: the newest queued
        request of the bucket that holds most, if that is more; of one artifact only, or of all.

        So no bucket is brought below its part of the places by another one.
        """
        shedable = [
            place
            for place in self._queue
            if place.on_shed is not None and artifact in (None, place.artifact)
        ]
        others = {place.bucket for place in shedable} - {newcomer}
        heaviest = max(others, key=lambda b: (self._n_held(b, artifact), b), default="")
        if not heaviest or self._n_held(heaviest, artifact) <= n_held:
            return None
        return next(place for place in reversed(shedable) if place.bucket == heaviest)

    def _shed(self, place: Place, now: float) -> None:
        assert place.on_shed is not None, "only who can be told is shed"
        busy = _busy(place.wait_s(now) or self._next_start_s(now))
        self.n_shed += 1
        place._go(_Stage.SHED)
        place.on_shed(busy)

    def _refusal(self, now: float, bucket: str | None = None) -> DonorBusy:
        """`busy`, until a place is free: as soon as the next queued request begins, of this bucket
        if it is its own limit.
        """
        self.n_refused += 1
        return _busy(self._next_start_s(now, bucket))

    def _next_start_s(self, now: float, bucket: str | None = None) -> float:
        waits = [
            place.wait_s(now) for place in self._queue if bucket is None or place.bucket == bucket
        ]
        return min((wait_s for wait_s in waits if wait_s > 0), default=defaults.BUSY_RETRY_AFTER_S)

    def _hold(self, bucket: str, n_bytes: int, now: float) -> None:
        if (
            self._held_bytes.total() + n_bytes > defaults.MAX_LARGE_REQUESTS_BYTES
            or self._held_bytes[bucket] + n_bytes > defaults.LARGE_REQUESTS_BYTES_PER_BUCKET
        ):
            raise self._refusal(now)
        self._held_bytes[bucket] += n_bytes

    def _let_go(self, bucket: str, n_bytes: int) -> None:
        self._held_bytes[bucket] -= n_bytes
        if not self._held_bytes[bucket]:
            del self._held_bytes[bucket]

    def _move(self, place: Place, old: _Stage | None, new: _Stage | None) -> None:
        bucket = place.bucket
        if old is not None:
            self._totals[old] -= 1
            self._counts[bucket, old] -= 1
            if not self._counts[bucket, old]:
                del self._counts[bucket, old]  # else every address ever seen would stay
        if new is not None:
            self._totals[new] += 1
            self._counts[bucket, new] += 1
        key = bucket, place.artifact
        self._held[key] += (new in _HELD) - (old in _HELD)
        if not self._held[key]:
            del self._held[key]
        if old is _Stage.QUEUED:
            self._queue.remove(place)
        if new is _Stage.QUEUED:
            self._queue.append(place)


class Place:
    """One exchange's place. `release` never waits, so it is safe in `finally`.

    on_shed: called with the error when it has to make room for somebody else while it is queued;
    never, as long as it is None. artifact: whose queue it is in, once it is queued.
    """

    def __init__(self, admission: Admission, bucket: str) -> None:
        """bucket: whom it counts against, never empty."""
        self.bucket = bucket
        self.artifact = ""
        self.on_shed: Callable[[DonorBusy], None] | None = None
        self._admission = admission
        self._stage: _Stage | None = None
        self._n_bytes = 0
        self._begins_at: float | None = None
        self._reading_s = 0.0
        self._go(_Stage.OPEN)

    def hold(self, n_bytes: int, now: float) -> None:
        """So many more bytes of a large request have come, and are kept until it is queued or over.

        What was only announced costs nothing, so it takes nothing. Raises `DonorBusy`.
        """
        self._admission._hold(self.bucket, n_bytes, now)
        self._n_bytes += n_bytes

    def queue_nowait(self, now: float, *, artifact: str = "", may_shed: bool = True) -> None:
        """The request, for this artifact, was read and opened. Raises `DonorBusy`.

        may_shed: whether another bucket's may go for it if the queue is full.
        """
        assert self._stage is _Stage.OPEN, "queued twice"
        self._admission._admit(self.bucket, now, may_shed=may_shed)
        self.artifact = artifact
        self._go(_Stage.QUEUED)

    def expect(self, wait_s: float, eta_s: float, now: float) -> None:
        """The engine has taken it, and expects it to begin and to have its first token after so
        long. Raises `DonorBusy` if it would begin too late.
        """
        if self._stage is _Stage.QUEUED:
            self._begins_at, self._reading_s = now + wait_s, max(0.0, eta_s - wait_s)
            self._admission._check_wait(self, now)

    def note_eta(self, eta_s: float, now: float) -> None:
        """What the engine expects now."""
        if self._begins_at is not None:
            self._begins_at = now + max(0.0, eta_s - self._reading_s)

    def wait_s(self, now: float) -> float:
        """How long it is still to be queued, as far as that is known."""
        return 0.0 if self._begins_at is None else max(0.0, self._begins_at - now)

    def run(self) -> None:
        """The engine works on it; from the second call on nothing changes."""
        if self._stage is _Stage.QUEUED:
            self._go(_Stage.RUNNING)

    def release(self) -> None:
        """It is over, however it ended."""
        self._go(None)

    def _go(self, stage: _Stage | None) -> None:
        self._admission._move(self, self._stage, stage)
        self._stage = stage
        self._admission._let_go(self.bucket, self._n_bytes)
        self._n_bytes = 0


def _busy(retry_after_s: float) -> DonorBusy:
    least, most = defaults.MIN_BUSY_RETRY_AFTER_S, defaults.MAX_BUSY_RETRY_AFTER_S
    return DonorBusy(retry_after_s=round(min(max(retry_after_s, least), most), 1))
