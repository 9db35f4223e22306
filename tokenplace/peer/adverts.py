"""A donor's three signed statements (docs/protocol.md, section 3). Start at `Advert`.

Pure: `now` (unix seconds) is an argument. Each statement is a libp2p signed envelope (RFC 0002)
around a msgpack map. Differs from libp2p's own use of envelopes: its `validate` checks the
signature alone; who signed, what for, when, and in which order is checked here. Only Ed25519
signers and canonical envelopes are taken: the same statement never has two forms, so comparing
bytes or hashes is enough to see that a donor contradicts itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgpack
from google.protobuf.message import DecodeError
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.envelope import Envelope, make_unsigned
from libp2p.peer.id import ID
from libp2p.peer.pb.crypto_pb2 import KeyType
from libp2p.peer.pb.envelope_pb2 import Envelope as EnvelopeMessage

from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError
from tokenplace.models.syntax import MAX_NAME_CHARS, is_model_name, is_sha256
from tokenplace.peer.fields import Fields
from tokenplace.peer.identity import Identity
from tokenplace.sealing.epochs import EPOCH_BYTES
from tokenplace.sealing.suites import PublicKey

VERSION: Final = 1
HASH_BYTES: Final = 32
QUEUE_STEPS: Final = (0, 1, 2, 4, 8)  # the lower ends of 0, 1, 2-3, 4-7, 8+
_ED25519_KEY_BYTES: Final = 32
_ED25519_SIGNATURE_BYTES: Final = 64
_MAX_INT: Final = (1 << 63) - 1


class Kind(StrEnum):
    """Which of the three statements; part of the domain and of the payload type."""

    KEYS = "keys"
    OFFER = "offer"
    LIVE = "live"


LIFETIME_S: Final = {
    Kind.KEYS: defaults.KEYS_LIFETIME_S,
    Kind.OFFER: defaults.OFFER_LIFETIME_S,
    Kind.LIVE: defaults.LIVE_LIFETIME_S,
}


class DonorState(StrEnum):
    """Does a donor take requests? Yes; not while its owner needs the machine; no, it stops."""

    ACCEPTING = "accepting"
    YIELDING = "yielding"
    FINISHING = "finishing"


@dataclass(frozen=True, slots=True)
class Advert:
    """What all three have in common. Both times are unix seconds by the signer's clock."""

    peer_id: str
    seq: int
    not_before: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Keys(Advert):
    """The public keys that requests may be sealed to, best first."""

    keys: tuple[PublicKey, ...]


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """One model that a donor serves. The name is only the donor's word; the artifact counts.

    artifact: sha256 in hex. template: sha256 in hex, empty if the model has no chat template.
    profile: what else changes the output, e.g. llama.cpp's build. n_ctx: tokens. features: e.g.
    "chat". quant: as in a GGUF's name, e.g. "Q4_K_M"; empty if the donor does not say.
    """

    name: str
    artifact: str
    template: str
    profile: str
    n_ctx: int
    features: tuple[str, ...] = ()
    quant: str = ""


@dataclass(frozen=True, slots=True)
class Offer(Advert):
    """Where a donor is and what it serves. `keys_hash`: sha256 of its current keys envelope."""

    addrs: tuple[str, ...]
    models: tuple[OfferedModel, ...]
    keys_hash: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a donor says it is. `queue`: requests ahead. Speeds: tokens/s, 0 if unknown."""

    state: DonorState
    queue: int
    prefill_tps: float
    decode_tps: float


@dataclass(frozen=True, slots=True)
class Live(Advert):
    """The donor's current epoch and load."""

    epoch: bytes
    load: Load


def next_seq(last: int, now: float) -> int:
    """The next sequence number after `last`: unix milliseconds, so it also grows over restarts."""
    return max(last + 1, int(now * 1000))


def queue_step(n_queued: int) -> int:
    """`n_queued` as the wire says it: the lower end of its step."""
    return max(step for step in QUEUE_STEPS if step <= max(n_queued, 0))


def two_digits(value: float) -> float:
    """`value` to two significant digits."""
    return float(f"{value:.2g}")


# ---------------------------------------------------------------- signing


def sign_keys(
    identity: Identity,
    network: str,
    keys: Sequence[PublicKey],
    *,
    seq: int,
    now: float,
    lifetime_s: int = defaults.KEYS_LIFETIME_S,
) -> bytes:
    """The keys envelope, valid from `now` for `lifetime_s`: no longer than the private halves are
    there.
    """
    listed = [
        {"id": key.id, "kem": key.kem, "kdf": key.kdf, "aead": key.aead, "public": key.public}
        for key in keys
    ]
    return _sign(identity, network, Kind.KEYS, {"keys": listed}, seq, now, lifetime_s)


def sign_offer(
    identity: Identity,
    network: str,
    addrs: Sequence[str],
    models: Sequence[OfferedModel],
    keys_hash: bytes,
    *,
    seq: int,
    now: float,
) -> bytes:
    """The offer envelope. Raises `ValueError` if it would be larger than a verifier takes."""
    listed = [
        {
            "name": model.name,
            "artifact": model.artifact,
            "template": model.template,
            "profile": model.profile,
            "n_ctx": model.n_ctx,
            "features": list(model.features),
            **({"quant": model.quant} if model.quant else {}),
        }
        for model in models
    ]
    fields = {"addrs": list(addrs), "models": listed, "keys_hash": keys_hash}
    return _sign(identity, network, Kind.OFFER, fields, seq, now)


def sign_live(
    identity: Identity, network: str, epoch: bytes, load: Load, *, seq: int, now: float
) -> bytes:
    """The live envelope; queue and speeds are rounded here, to what the protocol says."""
    fields: dict[str, object] = {
        "epoch": epoch,
        "state": load.state.value,
        "queue": queue_step(load.queue),
        "prefill_tps": two_digits(load.prefill_tps),
        "decode_tps": two_digits(load.decode_tps),
    }
    return _sign(identity, network, Kind.LIVE, fields, seq, now)


def _sign(
    identity: Identity,
    network: str,
    kind: Kind,
    fields: dict[str, object],
    seq: int,
    now: float,
    lifetime_s: int | None = None,
) -> bytes:
    common = {
        "v": VERSION,
        "peer": identity.peer_id_bytes,
        "seq": seq,
        "nbf": int(now),
        "exp": int(now) + (LIFETIME_S[kind] if lifetime_s is None else lifetime_s),
    }
    payload = msgpack.packb(common | fields)
    payload_type = _payload_type(kind)
    key_pair = identity.key_pair
    signature = key_pair.private_key.sign(
        make_unsigned(_domain(network, kind), payload_type, payload)
    )
    envelope = Envelope(key_pair.public_key, payload_type, payload, signature).marshal_envelope()
    if len(envelope) > defaults.MAX_ADVERT_BYTES:
        raise ValueError(f"{kind} of {len(envelope)} bytes: at most {defaults.MAX_ADVERT_BYTES}")
    return envelope


def _domain(network: str, kind: Kind) -> str:
    return f"tokenplace/1/{network}/{kind}"


def _payload_type(kind: Kind) -> bytes:
    return f"/tokenplace/{kind}".encode()


# ---------------------------------------------------------------- verifying


def verify_keys(
    envelope: bytes, *, peer_id: str, network: str, now: float, floor_seq: int = 0
) -> Keys:
    """The keys of `peer_id`. Raises `RemoteProtocolError` with the reason if anything is wrong.

    floor_seq: the highest seq seen of this peer and kind in a statement that still lives; lower
    ones are refused.
    """
    advert, fields = _verify(envelope, Kind.KEYS, peer_id, network, floor_seq, now)
    keys = tuple(map(_read_key, fields.maps("keys", defaults.MAX_KEYS)))
    if not keys:
        raise fields.fault("keys")  # nothing could be sealed to this donor
    return Keys(*advert, keys=keys)


def verify_offer(
    envelope: bytes, *, peer_id: str, network: str, now: float, floor_seq: int = 0
) -> Offer:
    """The offer of `peer_id`; as `verify_keys`. Its addresses are text that nobody checked yet."""
    advert, fields = _verify(envelope, Kind.OFFER, peer_id, network, floor_seq, now)
    keys_hash = fields.data("keys_hash", HASH_BYTES)
    if len(keys_hash) != HASH_BYTES:
        raise fields.fault("keys_hash")
    return Offer(
        *advert,
        addrs=fields.texts("addrs", defaults.MAX_ADDRS, defaults.MAX_ADDR_CHARS),
        models=tuple(map(_read_model, fields.maps("models", defaults.MAX_OFFERED_MODELS))),
        keys_hash=keys_hash,
    )


def verify_live(
    envelope: bytes,
    *,
    peer_id: str,
    network: str,
    now: float,
    floor_seq: int = 0,
    from_donor: bool = False,
) -> Live:
    """The live of `peer_id`; as `verify_keys`.

    from_donor: it came from the donor itself just now, so it is fresh whatever the donor's clock
    says.
    """
    clock = None if from_donor else now
    advert, fields = _verify(envelope, Kind.LIVE, peer_id, network, floor_seq, clock)
    epoch = fields.data("epoch", EPOCH_BYTES)
    state = fields.text("state", 16)
    queue = fields.integer("queue", QUEUE_STEPS[-1])
    if len(epoch) != EPOCH_BYTES:
        raise fields.fault("epoch")
    if state not in set(DonorState):
        raise fields.fault("state")
    if queue not in QUEUE_STEPS:
        raise fields.fault("queue")
    speeds = (fields.number(name, defaults.MAX_TPS) for name in ("prefill_tps", "decode_tps"))
    return Live(*advert, epoch=epoch, load=Load(DonorState(state), queue, *speeds))


def signer_of(envelope: bytes) -> str:
    """The peer id that an envelope claims as its signer; proven only once it was verified for it.

    Raises `RemoteProtocolError` if the envelope cannot be read.
    """
    return ID.from_pubkey(_parse_envelope(envelope, "envelope").public_key).to_base58()


def _verify(
    envelope: bytes, kind: Kind, peer_id: str, network: str, floor_seq: int, now: float | None
) -> tuple[tuple[str, int, int, int], Fields]:
    """What the three have in common; `now` is None where the signer's clock does not matter."""
    parsed = _parse_envelope(envelope, kind)
    signer = ID.from_pubkey(parsed.public_key)
    if signer.to_base58() != peer_id:
        raise RemoteProtocolError(f"{kind}: signed by {signer.to_base58()}, not by {peer_id}")
    if parsed.payload_type != _payload_type(kind):
        raise RemoteProtocolError(f"{kind}: another payload type")
    unsigned = make_unsigned(_domain(network, kind), parsed.payload_type, parsed.raw_payload)
    if not parsed.public_key.verify(unsigned, parsed.signature):
        raise RemoteProtocolError(f"{kind}: the signature is wrong, or made for another network")
    fields = Fields(kind, _unpack(parsed.raw_payload, kind))
    if fields.integer("v", _MAX_INT) != VERSION:
        raise fields.fault("v")
    if fields.data("peer", defaults.MAX_ADVERT_BYTES) != signer.to_bytes():
        raise fields.fault("peer")
    seq, not_before, expires_at = (fields.integer(name, _MAX_INT) for name in ("seq", "nbf", "exp"))
    if not 0 < expires_at - not_before <= LIFETIME_S[kind]:
        raise RemoteProtocolError(f"{kind}: a lifetime that is not allowed")
    if now is not None and now < not_before - defaults.CLOCK_SKEW_S:
        raise RemoteProtocolError(f"{kind}: not valid yet; is a clock wrong?")
    if now is not None and now > expires_at + defaults.CLOCK_SKEW_S:
        raise RemoteProtocolError(f"{kind}: expired")
    if seq < floor_seq:
        raise RemoteProtocolError(f"{kind}: older than one already seen")
    return (peer_id, seq, not_before, expires_at), fields


def _parse_envelope(data: bytes, kind: str) -> Envelope:
    if len(data) > defaults.MAX_ADVERT_BYTES:
        raise RemoteProtocolError(f"{kind}: larger than {defaults.MAX_ADVERT_BYTES} bytes")
    message = EnvelopeMessage()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise RemoteProtocolError(f"{kind}: not an envelope") from None
    # Checked before the library parses the key: its parsers of other key types raise whatever they
    # like.
    if (
        message.public_key.Type != KeyType.Ed25519
        or len(message.public_key.Data) != _ED25519_KEY_BYTES
        or len(message.signature) != _ED25519_SIGNATURE_BYTES
    ):
        raise RemoteProtocolError(f"{kind}: not signed with an Ed25519 key")
    key = Ed25519PublicKey.from_bytes(message.public_key.Data)
    envelope = Envelope(key, message.payload_type, message.payload, message.signature)
    if envelope.marshal_envelope() != data:
        raise RemoteProtocolError(f"{kind}: not in canonical form")
    return envelope


def _unpack(payload: bytes, kind: str) -> dict[object, object]:
    try:
        unpacked = msgpack.unpackb(payload, max_ext_len=0)
    except (ValueError, msgpack.UnpackException):
        raise RemoteProtocolError(f"{kind}: the payload is not msgpack") from None
    if not isinstance(unpacked, dict):
        raise RemoteProtocolError(f"{kind}: the payload is not a map")
    return unpacked


def _read_key(fields: Fields) -> PublicKey:
    id, kem, kdf, aead = (
        fields.integer(name, most)
        for name, most in (("id", 0xFF), ("kem", 0xFFFF), ("kdf", 0xFFFF), ("aead", 0xFFFF))
    )
    return PublicKey(id, kem, kdf, aead, fields.data("public", defaults.MAX_PUBLIC_KEY_BYTES))


def _read_model(fields: Fields) -> OfferedModel:
    model = OfferedModel(
        name=fields.text("name", MAX_NAME_CHARS),
        artifact=fields.text("artifact", 64),
        template=fields.text("template", 64),
        profile=fields.text("profile", defaults.MAX_PROFILE_CHARS),
        n_ctx=fields.integer("n_ctx", defaults.MAX_N_CTX),
        features=fields.texts("features", defaults.MAX_FEATURES, defaults.MAX_FEATURE_CHARS),
        quant=fields.optional_text("quant", defaults.MAX_QUANT_CHARS),
    )
    if not is_model_name(model.name):
        raise fields.fault("name")
    if not is_sha256(model.artifact):
        raise fields.fault("artifact")
    if model.template and not is_sha256(model.template):
        raise fields.fault("template")
    return model
