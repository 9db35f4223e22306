"""Who is let in, who is refused and who is shed. Times are a test's own."""

from __future__ import annotations

from collections import Counter

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


NOW = 100.0
TINY_MODEL, OTHER_MODEL = "a" * 64, "b" * 64
HOG, OTHER, THIRD = "203.0.113.7", "198.51.100.7", "192.0.2.7"


def opened(admission: Admission, remote_ip: str, now: float = NOW) -> Place:
    return admission.open_nowait(remote_ip, now)


def queued(
    admission: Admission,
    remote_ip: str,
    now: float = NOW,
    shed: list[DonorBusy] | None = None,
    artifact: str = TINY_MODEL,
) -> Place:
    place = opened(admission, remote_ip, now)
    place.queue_nowait(now, artifact=artifact)
    if shed is not None:
        place.on_shed = shed.append
    return place


def test_one_bucket_cannot_hold_all_the_memory_for_large_requests() -> None:
    admission = Admission()
    hog, other = opened(admission, "203.0.113.7"), opened(admission, "198.51.100.7")
    hog.hold(defaults.LARGE_REQUESTS_BYTES_PER_BUCKET, NOW)
    with pytest.raises(DonorBusy):
        opened(admission, "203.0.113.8").hold(1, NOW)
    other.hold(1, NOW)
    hog.release()
    opened(admission, "203.0.113.8").hold(defaults.LARGE_REQUESTS_BYTES_PER_BUCKET, NOW)


def test_a_bucket_queues_only_so_many_and_others_still_may() -> None:
    admission = Admission()
    places = [queued(admission, f"203.0.113.{n}") for n in range(defaults.QUEUED_PER_BUCKET)]
    late = opened(admission, "203.0.113.99")
    with pytest.raises(DonorBusy) as busy:
        late.queue_nowait(NOW)
    assert busy.value.retry_after_s == defaults.BUSY_RETRY_AFTER_S, "nobody said how long it takes"
    queued(admission, OTHER)
    places[0].release()
    late.queue_nowait(NOW)


def test_a_bucket_runs_only_so_many() -> None:
    admission = Admission()
    for _ in range(defaults.RUNNING_PER_BUCKET):
        queued(admission, HOG).run()
    assert admission.n_running == defaults.RUNNING_PER_BUCKET
    with pytest.raises(DonorBusy):
        queued(admission, HOG)


def test_one_address_cannot_open_every_stream() -> None:
    admission = Admission()
    for _ in range(defaults.OPEN_PER_BUCKET):
        opened(admission, "203.0.113.7")
    with pytest.raises(DonorBusy):
        opened(admission, "203.0.113.8")
    assert opened(admission, "203.0.114.7")
    assert admission.n_refused == 1


def test_open_streams_are_bounded_over_all() -> None:
    admission = Admission()
    for n in range(defaults.MAX_OPEN_EXCHANGES):
        opened(admission, f"10.0.{n}.1")
    assert admission.n_open == defaults.MAX_OPEN_EXCHANGES
    with pytest.raises(DonorBusy):
        opened(admission, OTHER)


# ---------------------------------------------------------------- how long the queue is


def test_who_would_begin_too_late_is_refused_until_it_would_not() -> None:
    admission = Admission()
    waits = queued(admission, HOG)
    waits.expect(wait_s=defaults.MAX_QUEUE_WAIT_S, eta_s=1e6, now=NOW)  # a prompt may be long
    late = queued(admission, HOG)
    with pytest.raises(DonorBusy) as busy:
        late.expect(
            wait_s=defaults.MAX_QUEUE_WAIT_S + 7, eta_s=defaults.MAX_QUEUE_WAIT_S + 8, now=NOW
        )
    assert busy.value.retry_after_s == 7
    assert (admission.n_refused, admission.n_shed) == (1, 0)


def test_advice_when_to_come_again_is_the_next_start() -> None:
    admission = Admission()
    places = [queued(admission, HOG) for _ in range(defaults.QUEUED_PER_BUCKET)]
    for n, place in enumerate(places):
        place.expect(wait_s=20 + n, eta_s=22 + n, now=NOW)
    places[3].note_eta(9.0, NOW + 5)  # of which 2 s are its prompt's
    with pytest.raises(DonorBusy) as busy:
        queued(admission, HOG, NOW + 6)
    assert busy.value.retry_after_s == 6
    places[3].run()
    queued(admission, HOG, NOW + 6)
    with pytest.raises(DonorBusy) as busy:
        queued(admission, HOG, NOW + 6)
    assert busy.value.retry_after_s == 14


@pytest.mark.parametrize(("wait_s", "advice_s"), [(0.01, 1.0), (1e9, 300.0)])
def test_advice_is_neither_a_hammer_nor_for_ever(wait_s: float, advice_s: float) -> None:
    admission = Admission()
    with pytest.raises(DonorBusy) as busy:
        queued(admission, HOG).expect(defaults.MAX_QUEUE_WAIT_S + wait_s, 1e10, NOW)
    assert busy.value.retry_after_s == advice_s


# ---------------------------------------------------------------- shedding


def full(shed: list[DonorBusy], *remote_ips: str) -> Admission:
    """A queue without room."""
    admission = Admission()
    for remote_ip in remote_ips:
        queued(admission, remote_ip, shed=shed)
    assert admission.n_queued == defaults.MAX_QUEUED
    return admission


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_QUEUED", 4)


@pytest.mark.usefixtures("small")
def test_a_full_queue_makes_room_for_who_holds_less() -> None:
    admission, shed = Admission(), list[DonorBusy]()
    places = [queued(admission, HOG, shed=[]) for _ in range(3)]
    places.append(queued(admission, HOG, shed=shed))
    places[-1].expect(wait_s=30, eta_s=31, now=NOW)
    queued(admission, OTHER, NOW + 10)
    (busy,) = shed
    assert busy.retry_after_s == 20, "when it would have begun"
    assert busy.retry_elsewhere
    assert (admission.n_queued, admission.n_shed, admission.n_buckets) == (4, 1, 2)
    places[-1].run()  # too late
    assert admission.n_running == 0
    places[-1].release()
    with pytest.raises(DonorBusy):
        queued(admission, HOG)


@pytest.mark.usefixtures("small")
def test_who_holds_as_much_makes_no_room() -> None:
    shed: list[DonorBusy] = []
    admission = full(shed, HOG, HOG, OTHER, OTHER)
    for remote_ip in (HOG, OTHER):
        with pytest.raises(DonorBusy):
            queued(admission, remote_ip)
    assert not shed
    queued(admission, THIRD)
    assert len(shed) == 1
    with pytest.raises(DonorBusy):
        queued(admission, THIRD)  # 2 of it, 2 and 1 of the others


@pytest.mark.usefixtures("small")
def test_what_runs_counts_but_is_not_shed() -> None:
    admission = Admission()
    for _ in range(3):
        queued(admission, HOG).run()
    shed, others_shed = list[DonorBusy](), list[DonorBusy]()
    queued(admission, HOG, shed=shed)
    for _ in range(3):
        queued(admission, OTHER, shed=others_shed)
    queued(admission, THIRD)
    assert (len(shed), len(others_shed)) == (1, 0), "HOG has more in all"
    queued(admission, THIRD)
    assert (len(shed), len(others_shed)) == (1, 1), "of HOG only those are left that run"
    assert admission.n_running == 3


@pytest.mark.usefixtures("small")
def test_nobody_is_shed_for_a_hedge() -> None:
    shed: list[DonorBusy] = []
    admission = full(shed, HOG, HOG, HOG, HOG)
    hedge = opened(admission, OTHER)
    with pytest.raises(DonorBusy):
        hedge.queue_nowait(NOW, may_shed=False)
    assert not shed
    hedge.queue_nowait(NOW)
    assert len(shed) == 1


@pytest.mark.usefixtures("small")
def test_who_cannot_be_told_is_not_shed() -> None:
    admission = Admission()
    for _ in range(4):
        queued(admission, HOG)
    with pytest.raises(DonorBusy):
        queued(admission, OTHER)


def test_who_is_pushed_back_for_too_long_is_shed_for_who_holds_less() -> None:
    admission, shed = Admission(), list[DonorBusy]()
    limit_s = defaults.MAX_QUEUE_WAIT_S
    first, last = queued(admission, HOG, shed=[]), queued(admission, HOG, shed=shed)
    first.expect(5, 6, NOW)
    last.expect(limit_s, limit_s + 1, NOW)
    last.note_eta(limit_s + 31, NOW)  # running answers get longer than was expected
    queued(admission, HOG, shed=[]).expect(limit_s - 1, limit_s, NOW)
    assert not shed, "nobody is shed for its own bucket"
    light = queued(admission, OTHER)
    light.expect(5, 6, NOW)
    assert not shed, "the newest of that bucket goes, not who waits for longest"
    assert (admission.n_shed, admission.n_queued) == (1, 3)


def test_nobody_is_shed_for_who_waits_for_another_model() -> None:
    admission, shed = Admission(), list[DonorBusy]()
    too_long_s = defaults.MAX_QUEUE_WAIT_S + 10
    for _ in range(3):
        place = queued(admission, HOG, shed=shed)
        place.expect(5, 6, NOW)
        place.note_eta(too_long_s, NOW)
    for _ in range(3):
        queued(admission, HOG, shed=shed, artifact=OTHER_MODEL)
    queued(admission, OTHER, artifact=OTHER_MODEL).expect(0, 1, NOW)
    assert not shed, "it is not in the way of who waits for too long"
    queued(admission, OTHER).expect(5, 6, NOW)
    assert len(shed) == 1


def test_who_holds_much_of_another_model_does_not_lose_its_part_of_this_one() -> None:
    admission, shed, hogs_shed = Admission(), list[DonorBusy](), list[DonorBusy]()
    for _ in range(5):
        queued(admission, HOG, shed=hogs_shed, artifact=OTHER_MODEL)
    queued(admission, HOG, shed=hogs_shed)
    for _ in range(3):
        queued(admission, OTHER, shed=shed)
    place = queued(admission, OTHER, shed=shed)
    place.expect(5, 6, NOW)
    place.note_eta(defaults.MAX_QUEUE_WAIT_S + 10, NOW)
    queued(admission, THIRD).expect(5, 6, NOW)
    assert (len(hogs_shed), len(shed)) == (0, 1)


@pytest.mark.usefixtures("small")
def test_all_models_share_the_places() -> None:
    admission, shed = Admission(), list[DonorBusy]()
    for artifact in (TINY_MODEL, TINY_MODEL, OTHER_MODEL, OTHER_MODEL):
        queued(admission, HOG, shed=shed, artifact=artifact)
    queued(admission, OTHER)
    assert len(shed) == 1


class AdmissionMachine(RuleBasedStateMachine):
    """Whatever happens to places, the counts are theirs, nothing is left of those released, no
    bound is exceeded, and nobody loses a place that is its bucket's by right.
    """

    MAX_QUEUED, QUEUED_PER_BUCKET, RUNNING_PER_BUCKET, OPEN_PER_BUCKET = 6, 4, 3, 9

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for name in ("MAX_QUEUED", "QUEUED_PER_BUCKET", "RUNNING_PER_BUCKET", "OPEN_PER_BUCKET"):
            self.patch.setattr(defaults, name, getattr(self, name))
        self.admission = Admission()
        self.now = 0.0
        self.places: dict[Place, str] = {}
        self.newcomer: Place | None = None
        self.queue_order: list[Place] = []

    def teardown(self) -> None:
        self.patch.undo()

    def place(self, index: int) -> Place:
        return list(self.places)[index % len(self.places)]

    def n_held(self, bucket: str) -> int:
        stages = [stage for place, stage in self.places.items() if place.bucket == bucket]
        return stages.count("queued") + stages.count("running")

    def on_shed(self, place: Place, busy: DonorBusy) -> None:
        assert self.places[place] == "queued", "a running request was shed"
        assert self.newcomer is not None, "somebody was shed for nobody"
        assert place.bucket != self.newcomer.bucket
        assert busy.retry_after_s is not None
        assert 1 <= busy.retry_after_s <= 300
        n_before, n_newcomer = self.n_held(place.bucket), self.n_held(self.newcomer.bucket)
        n_newcomer += self.places[self.newcomer] == "open"  # it is about to be queued
        assert n_before > n_newcomer, "it had no more than who came"
        held = Counter(
            each.bucket for each, stage in self.places.items() if stage in ("queued", "running")
        )
        held[self.newcomer.bucket] = n_newcomer
        fair = (sum(held.values()) - 1) // len(held)
        assert n_before - 1 >= fair, "its fair part"
        newest = [p for p, s in self.places.items() if p.bucket == place.bucket and s == "queued"]
        assert self.queue_order.index(place) == max(map(self.queue_order.index, newest)), (
            "not the newest"
        )
        self.places[place] = "shed"

    @rule(remote_ip=st.sampled_from([HOG, OTHER, THIRD, "::1"]))
    def open(self, remote_ip: str) -> None:
        try:
            place = opened(self.admission, remote_ip, self.now)
        except DonorBusy:
            open_now = [place for place in self.places if place.bucket == bucket_of(remote_ip)]
            assert len(open_now) == self.OPEN_PER_BUCKET
        else:
            self.places[place] = "open"

    @precondition(lambda self: self.places)
    @rule(index=st.integers(0, 99), can_be_told=st.booleans())
    def queue(self, index: int, can_be_told: bool) -> None:
        place = self.newcomer = self.place(index)
        if self.places[place] != "open":
            return
        mine = [stage for each, stage in self.places.items() if each.bucket == place.bucket]
        others = [
            self.n_held(each.bucket)
            for each, stage in self.places.items()
            if stage == "queued" and each.on_shed and each.bucket != place.bucket
        ]
        try:
            place.queue_nowait(self.now)
        except DonorBusy:
            is_own_limit = (
                mine.count("queued") == self.QUEUED_PER_BUCKET
                or mine.count("running") >= self.RUNNING_PER_BUCKET
            )
            assert is_own_limit or max(others, default=0) <= self.n_held(place.bucket) + 1, (
                "refused, though another bucket has more"
            )
        else:
            self.places[place] = "queued"
            self.queue_order.append(place)
            if can_be_told:
                place.on_shed = lambda busy: self.on_shed(place, busy)

    @precondition(lambda self: self.places)
    @rule(index=st.integers(0, 99), wait_s=st.floats(0, 90), reading_s=st.floats(0, 10))
    def expect(self, index: int, wait_s: float, reading_s: float) -> None:
        place = self.newcomer = self.place(index)
        try:
            place.expect(wait_s, wait_s + reading_s, self.now)
        except DonorBusy:
            assert wait_s > defaults.MAX_QUEUE_WAIT_S - 1e-6
            assert self.places.pop(place) == "queued", "only who is queued can be refused"
            place.release()

    @precondition(lambda self: self.places)
    @rule(index=st.integers(0, 99), eta_s=st.floats(0, 200), passed_s=st.floats(0, 20))
    def hear(self, index: int, eta_s: float, passed_s: float) -> None:
        self.now += passed_s
        self.place(index).note_eta(eta_s, self.now)

    @precondition(lambda self: self.places)
    @rule(index=st.integers(0, 99))
    def run(self, index: int) -> None:
        place = self.place(index)
        place.run()
        if self.places[place] == "queued":
            self.places[place] = "running"

    @precondition(lambda self: self.places)
    @rule(index=st.integers(0, 99))
    def release(self, index: int) -> None:
        place = self.place(index)
        del self.places[place]
        place.release()

    @invariant()
    def the_counts_are_those_of_the_places(self) -> None:
        stages = [*self.places.values()]
        admission = self.admission
        assert (admission.n_open, admission.n_queued, admission.n_running) == (
            stages.count("open"),
            stages.count("queued"),
            stages.count("running"),
        )
        assert admission.n_queued <= self.MAX_QUEUED
        assert sum(admission._counts.values()) == len(self.places)
        assert all(admission._counts.values())
        assert admission.n_shed >= stages.count("shed")


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
