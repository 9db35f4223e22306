"""Signed statements: the published vectors, and that nothing but the real thing is believed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from tests.peer import write_advert_vectors as vectors
from tests.peer.mutations import ANYTHING, damaged
from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError
from tokenplace.peer.adverts import (
    LIFETIME_S,
    QUEUE_STEPS,
    DonorState,
    Keys,
    Kind,
    Live,
    Load,
    Offer,
    OfferedModel,
    next_seq,
    queue_step,
    sign_keys,
    sign_live,
    sign_offer,
    signer_of,
    two_digits,
    verify_keys,
    verify_live,
    verify_offer,
)
from tokenplace.peer.identity import Identity
from tokenplace.sealing.suites import PublicKey, best_key

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "adverts.json").read_text("utf-8"))
NOW = VECTORS["now"]
NETWORK = VECTORS["network"]
BIT = st.integers(0, 7)


def identity_of(seed: bytes) -> Identity:
    key_pair = create_new_key_pair(seed)
    peer_id = ID.from_pubkey(key_pair.public_key)
    return Identity(key_pair, peer_id.to_base58(), peer_id.to_bytes())


ALICE = identity_of(bytes.fromhex(VECTORS["seed"]))
BOB = identity_of(b"bob".ljust(32, b"."))


def verify(
    kind: str,
    envelope: bytes,
    *,
    peer_id: str = ALICE.peer_id,
    network: str = NETWORK,
    now: float = NOW,
    floor_seq: int = 0,
    from_donor: bool = False,
) -> Keys | Offer | Live:
    common: dict[str, Any] = {
        "peer_id": peer_id,
        "network": network,
        "now": now,
        "floor_seq": floor_seq,
    }
    if kind == "keys":
        return verify_keys(envelope, **common)
    if kind == "offer":
        return verify_offer(envelope, **common)
    return verify_live(envelope, **common, from_donor=from_donor)


ENVELOPES = {kind: bytes.fromhex(VECTORS[kind]["envelope"]) for kind in ("keys", "offer", "live")}
KINDS = st.sampled_from(sorted(ENVELOPES))


def test_vectors_are_signed_byte_for_byte() -> None:
    assert VECTORS["peer_id"] == ALICE.peer_id
    keys, offer, live = VECTORS["keys"], VECTORS["offer"], VECTORS["live"]
    public_keys = [
        PublicKey(**key | {"public": bytes.fromhex(key["public"])}) for key in keys["keys"]
    ]
    models = [
        OfferedModel(**model | {"features": tuple(model["features"])}) for model in offer["models"]
    ]
    load = Load(DonorState(live["state"]), live["queue"], live["prefill_tps"], live["decode_tps"])
    signed_keys = sign_keys(ALICE, NETWORK, public_keys, seq=keys["seq"], now=NOW)
    signed_offer = sign_offer(
        ALICE,
        NETWORK,
        offer["addrs"],
        models,
        hashlib.sha256(signed_keys).digest(),
        seq=offer["seq"],
        now=NOW,
    )
    signed_live = sign_live(
        ALICE, NETWORK, bytes.fromhex(live["epoch"]), load, seq=live["seq"], now=NOW
    )

    assert [signed_keys, signed_offer, signed_live] == list(ENVELOPES.values())
    read_keys, read_offer = verify("keys", signed_keys), verify("offer", signed_offer)
    assert isinstance(read_keys, Keys)
    assert read_keys.keys == tuple(public_keys)
    assert isinstance(read_offer, Offer)
    assert read_offer.models == tuple(models)
    assert read_offer.addrs == tuple(offer["addrs"])
    assert read_offer.keys_hash == hashlib.sha256(signed_keys).digest()
    assert verify("live", signed_live) == Live(
        ALICE.peer_id, live["seq"], NOW, NOW + defaults.LIVE_LIFETIME_S,
        bytes.fromhex(live["epoch"]), Load(DonorState.ACCEPTING, 2, 310.0, 7.2),
    )  # fmt: skip


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: str(case["name"]))
def test_vectors_are_judged_as_published(case: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        name: case[name] for name in ("peer_id", "network", "now", "floor_seq")
    }
    arguments["from_donor"] = case["from_donor"]
    envelope = bytes.fromhex(case["envelope"])
    if case["expect"] == "success":
        assert verify(case["kind"], envelope, **arguments).peer_id == ALICE.peer_id
        assert signer_of(envelope) == ALICE.peer_id
    else:
        with pytest.raises(RemoteProtocolError, match=case["reason"]) as refused:
            verify(case["kind"], envelope, **arguments)
        assert refused.value.code == case["expect"]


@pytest.mark.parametrize("choice", VECTORS["choices"], ids=lambda choice: str(choice["name"]))
def test_the_key_is_chosen_as_published(choice: dict[str, Any]) -> None:
    keys = [PublicKey(**key | {"public": bytes.fromhex(key["public"])}) for key in choice["keys"]]
    chosen = best_key(keys)
    assert (chosen and chosen.id) == choice["expect"]


@given(kind=KINDS, where=st.floats(0, 1, exclude_max=True), bit=BIT)
def test_any_flipped_bit_is_refused(kind: str, where: float, bit: int) -> None:
    damaged = bytearray(ENVELOPES[kind])
    damaged[int(where * len(damaged))] ^= 1 << bit
    with pytest.raises(RemoteProtocolError):
        verify(kind, bytes(damaged))


@given(kind=KINDS, keep=st.floats(0, 1, exclude_max=True), tail=st.binary(max_size=20))
def test_any_truncation_and_any_tail_is_refused(kind: str, keep: float, tail: bytes) -> None:
    envelope = ENVELOPES[kind]
    changed = envelope[: int(keep * len(envelope))] + tail
    for candidate in (changed, envelope + tail):
        if candidate != envelope:
            with pytest.raises(RemoteProtocolError):
                verify(kind, candidate)


SIGNED = {"keys": vectors.KEYS, "offer": vectors.OFFER, "live": vectors.LIVE}


@st.composite
def wrong_payloads(draw: st.DrawFn) -> tuple[str, bytes]:
    """Rightly signed by ALICE; what was signed is damaged, or has a value of any type in it."""
    right = SIGNED[draw(KINDS)]
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(right.fields)))
        return right.kind, right.but(**{name: draw(ANYTHING)}).envelope()
    payload = draw(damaged(msgpack.packb(right.fields)))
    return right.kind, replace(right, payload=payload).envelope()


@given(wrong_payloads())
def test_whatever_a_donor_signs_is_a_statement_or_a_declared_error(
    statement: tuple[str, bytes],
) -> None:
    kind, envelope = statement
    try:
        advert = verify(kind, envelope)
    except RemoteProtocolError:
        return
    assert advert.peer_id == ALICE.peer_id
    assert 0 < advert.expires_at - advert.not_before <= LIFETIME_S[Kind(kind)]


@given(data=st.data(), kind=KINDS)
def test_a_damaged_envelope_is_refused(data: st.DataObject, kind: str) -> None:
    changed = data.draw(damaged(ENVELOPES[kind]))
    if changed != ENVELOPES[kind]:
        with pytest.raises(RemoteProtocolError):
            verify(kind, changed)


@given(data=st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        signer_of(data)
    for kind in ENVELOPES:
        with pytest.raises(RemoteProtocolError):
            verify(kind, data)


@given(
    kind=KINDS,
    network=st.text(max_size=10).filter(lambda text: text != NETWORK),
    now=st.floats(0, 1e11),
)
def test_another_network_peer_or_kind_is_refused_at_any_time(
    kind: str, network: str, now: float
) -> None:
    envelope = ENVELOPES[kind]
    wrongs: list[dict[str, Any]] = [{"network": network}, {"peer_id": BOB.peer_id}]
    for from_donor in (False, True):
        for wrong in wrongs:
            with pytest.raises(RemoteProtocolError):
                verify(kind, envelope, now=now, from_donor=from_donor, **wrong)
        for other in ENVELOPES.keys() - {kind}:
            with pytest.raises(RemoteProtocolError):
                verify(other, envelope, now=now, from_donor=from_donor)


@given(kind=KINDS, now=st.floats(0, 1e11), ahead=st.integers(-3, 3))
def test_time_and_order_decide_and_nothing_else(kind: str, now: float, ahead: int) -> None:
    envelope = ENVELOPES[kind]
    advert = verify(kind, envelope)
    is_in_time = (
        advert.not_before - defaults.CLOCK_SKEW_S
        <= now
        <= advert.expires_at + defaults.CLOCK_SKEW_S
    )
    if is_in_time and ahead <= 0:
        assert verify(kind, envelope, now=now, floor_seq=advert.seq + ahead) == advert
    else:
        with pytest.raises(RemoteProtocolError):
            verify(kind, envelope, now=now, floor_seq=advert.seq + ahead)


NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=32)
MODELS = st.builds(
    OfferedModel,
    name=NAMES,
    artifact=HASHES,
    template=HASHES | st.just(""),
    profile=PRINTABLE,
    n_ctx=st.integers(0, defaults.MAX_N_CTX),
    features=st.lists(PRINTABLE, max_size=defaults.MAX_FEATURES).map(tuple),
    quant=st.sampled_from(["", "Q4_K_M"]),
)


@given(
    models=st.lists(MODELS, max_size=4),
    addrs=st.lists(PRINTABLE, max_size=defaults.MAX_ADDRS),
    seq=st.integers(0, (1 << 63) - 1),
)
def test_what_is_signed_is_what_is_read(
    models: list[OfferedModel], addrs: list[str], seq: int
) -> None:
    envelope = sign_offer(ALICE, NETWORK, addrs, models, bytes(32), seq=seq, now=NOW)
    offer = verify_offer(envelope, peer_id=ALICE.peer_id, network=NETWORK, now=NOW)
    assert (offer.models, offer.addrs, offer.seq) == (tuple(models), tuple(addrs), seq)


def test_an_offer_too_large_to_be_read_is_never_signed() -> None:
    model = OfferedModel("m" * 64, "0" * 64, "0" * 64, "p" * 256, 1)
    with pytest.raises(ValueError, match="at most 8192"):
        sign_offer(ALICE, NETWORK, [], [model] * 32, bytes(32), seq=1, now=NOW)


@pytest.mark.parametrize(
    "field",
    [
        {"name": "UPPER"}, {"name": ""}, {"name": "a" * 65}, {"name": "-a"},
        {"artifact": "0" * 63}, {"artifact": "A" * 64}, {"template": "x"},
        {"profile": "\x1b[2J"}, {"profile": "p" * 257}, {"n_ctx": -1}, {"n_ctx": 1 << 40},
        {"features": ("f",) * 17}, {"features": ("f" * 33,)}, {"features": ("\n",)},
        {"quant": "Q" * 17}, {"quant": "\x1b"},
    ],
)  # fmt: skip
def test_a_model_described_wrongly_is_refused(field: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "name": "tiny-model", "artifact": "0" * 64, "template": "", "profile": "", "n_ctx": 1,
    }  # fmt: skip
    envelope = sign_offer(
        ALICE, NETWORK, [], [OfferedModel(**good | field)], bytes(32), seq=1, now=NOW
    )
    with pytest.raises(RemoteProtocolError, match=f"'{next(iter(field))}'"):
        verify("offer", envelope)


@given(last=st.integers(0, 1 << 62), now=st.floats(0, 1e11))
def test_seq_always_grows(last: int, now: float) -> None:
    assert next_seq(last, now) > last
    assert next_seq(last, now) >= int(now * 1000)


@given(n=st.integers(-1, 1000))
def test_queue_is_rounded_down_to_its_step(n: int) -> None:
    step = queue_step(n)
    assert step in QUEUE_STEPS
    assert step <= max(n, 0)
    assert n < 1 or step * 2 > n or step == QUEUE_STEPS[-1]


@given(value=st.floats(0.01, 1e6))
def test_speeds_keep_two_digits(value: float) -> None:
    assert two_digits(value) == pytest.approx(value, rel=0.051)
    assert len(f"{two_digits(value):e}".split("e")[0].rstrip("0").replace(".", "")) <= 2
