"""A donor whose key or epoch is another one by now: it is sealed once more, and once only."""

from __future__ import annotations

import dataclasses

import pytest
import trio
import trio.abc
from trio.testing import MockClock

from tests.peer.exchange_lab import (
    SIGNED_KEYS,
    SIGNED_LIVE,
    Lab,
    make_request,
    text_of,
)
from tokenplace import defaults
from tokenplace.errors import (
    DonorBusy,
    StaleEpoch,
    UnknownKey,
)
from tokenplace.peer.requester import SealTarget


class Renewal:
    """What the directory does with a refusal's envelopes, without the envelopes."""

    def __init__(self, lab: Lab, *, is_valid: bool = True) -> None:
        self.lab = lab
        self.is_valid = is_valid
        self.seen: list[tuple[bytes | None, bytes | None]] = []

    async def __call__(self, keys: bytes | None, live: bytes | None) -> SealTarget | None:
        self.seen.append((keys, live))
        return self.lab.target() if self.is_valid else None


async def test_a_stale_epoch_is_mended_by_sealing_once_more() -> None:
    async with Lab().running() as lab:
        renewal = Renewal(lab)
        stale = SealTarget(lab.target().key, bytes(8))
        remote = lab.remote(stale, renewal)
        assert text_of(await lab.ask(make_request("once"), remote)) == b"once"
        assert renewal.seen == [(SIGNED_KEYS, SIGNED_LIVE)]
        assert len(lab.streams) == 2
        # What was learned is kept for the next request.
        assert text_of(await lab.ask(make_request("again"), remote)) == b"again"
        assert len(lab.streams) == 3


async def test_a_restarted_donors_new_key_is_learned() -> None:
    async with Lab().running() as lab:
        key = lab.target().key
        old = dataclasses.replace(key, id=(key.id + 1) % 256)
        renewal = Renewal(lab)
        remote = lab.remote(SealTarget(old, bytes(8)), renewal)
        assert text_of(await lab.ask(make_request("once"), remote)) == b"once"
        assert renewal.seen == [(SIGNED_KEYS, SIGNED_LIVE)]


async def test_a_refusal_that_does_not_verify_is_final() -> None:
    async with Lab().running() as lab:
        renewal = Renewal(lab, is_valid=False)
        with pytest.raises(StaleEpoch):
            await lab.ask(
                make_request(), lab.remote(SealTarget(lab.target().key, bytes(8)), renewal)
            )
        assert len(lab.streams) == 1


async def test_it_is_sealed_again_only_once() -> None:
    async with Lab().running() as lab:
        stale = SealTarget(lab.target().key, bytes(8))

        async def renew(keys: bytes | None, live: bytes | None) -> SealTarget:
            return stale

        with pytest.raises(StaleEpoch):
            await lab.ask(make_request(), lab.remote(stale, renew))
        assert len(lab.streams) == 2


async def test_a_renewal_that_hangs_is_none(autojump_clock: MockClock) -> None:
    async def renew(keys: bytes | None, live: bytes | None) -> SealTarget | None:
        await trio.sleep_forever()
        raise AssertionError

    async with Lab().running() as lab:
        stale = SealTarget(lab.target().key, bytes(8))
        with pytest.raises(StaleEpoch):
            await lab.ask(make_request(), lab.remote(stale, renew))
        assert trio.current_time() == defaults.CONNECT_TIMEOUT_S


async def test_other_refusals_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "QUEUED_PER_BUCKET", 0)
    async with Lab().running() as lab:
        renewal = Renewal(lab)
        with pytest.raises(DonorBusy) as busy:
            await lab.ask(make_request(), lab.remote(renew=renewal))
        assert busy.value.retry_after_s == defaults.BUSY_RETRY_AFTER_S
        assert renewal.seen == []


async def test_an_unknown_key_is_named_so() -> None:
    async with Lab().running() as lab:
        key = lab.target().key
        stranger = dataclasses.replace(key, id=(key.id + 1) % 256)
        with pytest.raises(UnknownKey):
            await lab.ask(make_request(), lab.remote(SealTarget(stranger, bytes(8))))
