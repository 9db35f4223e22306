from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenplace import defaults
from tokenplace.errors import DonorBusy
from tokenplace.peer.admission import Admission, Place, bucket_of


@pytest.mark.parametrize(
    ("remote_ip", "bucket"),
    [
        ("203.0.113.7", "203.0.113.0/24"),
        ("203.0.113.255", "203.0.113.0/24"),
        ("203.0.114.7", "203.0.114.0/24"),
        ("::ffff:203.0.113.7", "203.0.113.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("2001:db8:1:ffff::", "2001:db8:1::/48"),
        ("0:0:1::", "0:0:1::/48"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("10.1.2.3", "10.1.2.3"),
        ("172.16.0.1", "172.16.0.1"),
        ("172.32.0.1", "172.32.0.0/24"),
        ("192.168.1.2", "192.168.1.2"),
        ("::ffff:192.168.1.2", "192.168.1.2"),
        ("169.254.1.2", "169.254.1.2"),
        ("fd00::1", "fd00::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", "?"),
        ("not an address", "?"),
    ],
)
def test_the_bucket_of_an_address(remote_ip: str, bucket: str) -> None:
    assert bucket_of(remote_ip) == bucket


def test_one_bucket_cannot_hold_all_the_memory_for_large_requests() -> None:
    admission = Admission()
    hog, other = admission.open_nowait("203.0.113.7"), admission.open_nowait("198.51.100.7")
    hog.hold(defaults.LARGE_REQUESTS_BYTES_PER_BUCKET)
    with pytest.raises(DonorBusy):
        admission.open_nowait("203.0.113.8").hold(1)
    other.hold(1)
    hog.release()
    admission.open_nowait("203.0.113.8").hold(defaults.LARGE_REQUESTS_BYTES_PER_BUCKET)


def queued(admission: Admission, remote_ip: str) -> Place:
    place = admission.open_nowait(remote_ip)
    place.queue_nowait()
    return place


def test_a_bucket_queues_only_so_many_and_others_still_may() -> None:
    admission = Admission()
    places = [queued(admission, f"203.0.113.{n}") for n in range(defaults.QUEUED_PER_BUCKET)]
    late = admission.open_nowait("203.0.113.99")
    with pytest.raises(DonorBusy) as busy:
        late.queue_nowait()
    assert busy.value.retry_after_s == defaults.BUSY_RETRY_AFTER_S
    queued(admission, "198.51.100.1")
    places[0].release()
    late.queue_nowait()


def test_a_bucket_runs_only_so_many() -> None:
    admission = Admission()
    for _ in range(defaults.RUNNING_PER_BUCKET):
        queued(admission, "203.0.113.7").run()
    assert admission.n_running == defaults.RUNNING_PER_BUCKET
    with pytest.raises(DonorBusy):
        queued(admission, "203.0.113.7")


def test_all_buckets_together_queue_only_so_many() -> None:
    admission = Admission()
    for n in range(defaults.MAX_QUEUED):
        queued(admission, f"203.0.{n}.7")
    assert admission.n_queued == defaults.MAX_QUEUED
    with pytest.raises(DonorBusy):
        queued(admission, "198.51.100.1")


def test_one_address_cannot_open_every_stream() -> None:
    admission = Admission()
    for _ in range(defaults.OPEN_PER_BUCKET):
        admission.open_nowait("203.0.113.7")
    with pytest.raises(DonorBusy):
        admission.open_nowait("203.0.113.8")
    assert admission.open_nowait("203.0.114.7")


def test_open_streams_are_bounded_over_all() -> None:
    admission = Admission()
    for n in range(defaults.MAX_OPEN_EXCHANGES):
        admission.open_nowait(f"10.0.{n}.1")
    assert admission.n_open == defaults.MAX_OPEN_EXCHANGES
    with pytest.raises(DonorBusy):
        admission.open_nowait("198.51.100.1")


class AdmissionMachine(RuleBasedStateMachine):
    """Whatever happens to places, the counts are theirs, and nothing is left of those released."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission()
        self.places: list[tuple[str, Place, str]] = []

    def move(self, index: int, stage: str) -> Place:
        remote_ip, place, _ = self.places[index % len(self.places)]
        self.places[index % len(self.places)] = (remote_ip, place, stage)
        return place

    @rule(remote_ip=st.sampled_from(["203.0.113.7", "198.51.100.1", "::1"]))
    def open(self, remote_ip: str) -> None:
        try:
            place = self.admission.open_nowait(remote_ip)
        except DonorBusy:
            assert [ip for ip, _, _ in self.places].count(remote_ip) == defaults.OPEN_PER_BUCKET
        else:
            self.places.append((remote_ip, place, "open"))

    @precondition(lambda self: self.places)
    @rule(index=st.integers(0, 99))
    def queue(self, index: int) -> None:
        remote_ip, place, stage = self.places[index % len(self.places)]
        if stage != "open":
            return
        try:
            place.queue_nowait()
        except DonorBusy:
            stages = [stage for ip, _, stage in self.places if ip == remote_ip]
            assert (
                stages.count("queued") == defaults.QUEUED_PER_BUCKET
                or stages.count("running") >= defaults.RUNNING_PER_BUCKET
            )
        else:
            self.move(index, "queued")

    @precondition(lambda self: self.places)
    @rule(index=st.integers(0, 99))
    def run(self, index: int) -> None:
        if self.places[index % len(self.places)][2] != "open":
            self.move(index, "running").run()

    @precondition(lambda self: self.places)
    @rule(index=st.integers(0, 99))
    def release(self, index: int) -> None:
        self.places.pop(index % len(self.places))[1].release()

    @invariant()
    def the_counts_are_those_of_the_places(self) -> None:
        stages = [stage for _, _, stage in self.places]
        admission = self.admission
        assert (admission.n_open, admission.n_queued, admission.n_running) == (
            stages.count("open"),
            stages.count("queued"),
            stages.count("running"),
        )
        assert sum(admission._counts.values()) == len(self.places)
        assert all(admission._counts.values())


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=40)
