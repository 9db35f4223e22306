"""Attacks before the first stream: on TCP, multistream-select and Noise. Start at `ATTACKS`."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio
from libp2p.security.noise.pb.noise_pb2 import NoiseHandshakePayload

from tests.e2e.hostile.raw_peer import MULTISTREAM, RawPeer, delimited
from tests.e2e.hostile.siege import Attack, Attacker, Ending
from tokenplace import defaults
from tokenplace.peer.identity import throwaway_identity

TLS_HELLO: Final = bytes.fromhex("1603010200010001fc0303") + bytes(506)
TRICKLE_S: Final = 0.05  # between two bytes: a handshake of 200 takes twice the time it has
KEEPALIVE_S: Final = defaults.KEEPALIVE_INTERVAL_S + defaults.KEEPALIVE_TIMEOUT_S
N_SILENT: Final = 300  # more than a host holds connections

Step = Callable[[RawPeer], Awaitable[None]]
"""What is done on a new TCP connection, before it is left as it is."""


def says(data: bytes) -> Step:
    return lambda peer: peer.say(data)


def selects(message: bytes) -> Step:
    """A message of multistream-select after its greeting."""
    return says(delimited(MULTISTREAM) + message)


def trickles(data: bytes) -> Step:
    async def step(peer: RawPeer) -> None:
        for byte in data:
            await peer.say(bytes([byte]))
            await trio.sleep(TRICKLE_S)

    return step


# ---------------------------------------------------------------- Noise


async def stops_after_the_second_message(peer: RawPeer) -> None:
    await peer.begin_noise()


async def garbage_as_third_message(peer: RawPeer) -> None:
    await peer.begin_noise()
    await peer.say_message(os.urandom(200))


async def half_a_third_message(peer: RawPeer) -> None:
    noise = await peer.begin_noise()
    message = bytes(noise.write_message(peer.proof(noise)))
    await peer.say(len(message).to_bytes(2, "big") + message[:-1])


def proves(change: Callable[[NoiseHandshakePayload], None]) -> Step:
    """A whole handshake, in which who it is was changed."""

    async def step(peer: RawPeer) -> None:
        noise = await peer.begin_noise()
        payload = NoiseHandshakePayload.FromString(peer.proof(noise))
        change(payload)
        await peer.say_message(bytes(noise.write_message(payload.SerializeToString())))

    return step


def another_signature(payload: NoiseHandshakePayload) -> None:
    payload.identity_sig = payload.identity_sig[:-1] + bytes([payload.identity_sig[-1] ^ 1])


def another_identity(payload: NoiseHandshakePayload) -> None:
    payload.identity_key = throwaway_identity().key_pair.public_key.serialize()


def no_identity(payload: NoiseHandshakePayload) -> None:
    payload.Clear()


def unknown_kind_of_key(payload: NoiseHandshakePayload) -> None:
    payload.identity_key = b"\x08\x63\x12\x20" + bytes(32)


async def signed_by_somebody_else(peer: RawPeer) -> None:
    noise = await peer.begin_noise()
    proof = peer.proof(noise, signer=throwaway_identity())
    await peer.say_message(bytes(noise.write_message(proof)))


# ---------------------------------------------------------------- behind Noise


async def stops_before_the_muxer(peer: RawPeer) -> None:
    await peer.secure()


async def another_muxer(peer: RawPeer) -> None:
    await peer.secure()
    await peer.send(delimited(MULTISTREAM) + delimited("/mplex/6.7.0"))


async def muxer_of_no_text(peer: RawPeer) -> None:
    await peer.secure()
    await peer.send(delimited(MULTISTREAM) + b"\x03\xff\xfe\n")


async def corrupted_ciphertext_before_the_muxer(peer: RawPeer) -> None:
    await peer.secure()
    await peer.say_message(os.urandom(64))


async def corrupted_ciphertext(peer: RawPeer) -> None:
    await peer.begin_yamux()
    await peer.say_message(os.urandom(64))


async def replayed_ciphertext(peer: RawPeer) -> None:
    await peer.begin_yamux()
    frame = peer.encrypt(bytes(12))
    await peer.say(frame + frame)


async def ciphertext_shorter_than_its_tag(peer: RawPeer) -> None:
    await peer.begin_yamux()
    await peer.say_message(bytes(7))


async def half_a_message(peer: RawPeer) -> None:
    await peer.begin_yamux()
    await peer.say(peer.encrypt(bytes(1000))[:500])


async def message_byte_by_byte(peer: RawPeer) -> None:
    await peer.begin_yamux()
    await trickles(peer.encrypt(bytes(1000)))(peer)


# ---------------------------------------------------------------- the table


def _connecting(name: str, step: Step, within_s: float = defaults.UPGRADE_TIMEOUT_S) -> Attack:
    """What is done on one new connection, which must be closed."""

    async def begin(attacker: Attacker) -> RawPeer:
        peer = await attacker.dial()

        async def go() -> None:
            try:
                await step(peer)
            finally:
                attacker.leave(peer)

        attacker.start(go)  # some take as long as they are let
        return peer

    return Attack(name, begin, Ending.CONNECTION, within_s)


async def asks_for_ever(attacker: Attacker, question: bytes) -> RawPeer:
    """One question of multistream-select after the other, while the handshake may last."""
    peer = attacker.leave(await attacker.dial())
    await peer.say(delimited(MULTISTREAM))

    async def ask() -> None:
        await peer.say(question * 20)
        await trio.sleep(0.02)

    attacker.repeat(ask, for_s=2 * defaults.UPGRADE_TIMEOUT_S)
    return peer


async def silence_of_many(attacker: Attacker) -> RawPeer:
    """All from one address, which is not the bystanders'."""
    source = "127.77.0.1"
    peers = []
    for _ in range(N_SILENT):
        with suppress(ConnectionResetError):  # refused before it was even connected
            peers.append(attacker.leave(await attacker.dial(source)))
    return peers[0]


def _asking(name: str, question: bytes) -> Attack:
    begin = functools.partial(asks_for_ever, question=question)
    return Attack(name, begin, Ending.CONNECTION, defaults.UPGRADE_TIMEOUT_S)


NOISE = delimited(MULTISTREAM) + delimited("/noise")

ATTACKS: Final = (
    _connecting("tcp: silence", says(b"")),
    _connecting("tcp: a byte with all bits set, and again", says(b"\xff" * 4096)),
    _connecting("tcp: random bytes", says(os.urandom(8192))),
    _connecting("tcp: HTTP", says(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")),
    _connecting("tcp: TLS", says(TLS_HELLO)),
    Attack(
        "tcp: many silent connections",
        silence_of_many,
        Ending.CONNECTION,
        defaults.UPGRADE_TIMEOUT_S,
    ),
    _connecting("multistream: no UTF-8", selects(b"\x03\xff\xfe\n")),
    _connecting("multistream: no UTF-8 for a greeting", says(b"\x03\xff\xfe\n")),
    _connecting("multistream: a length that never ends", selects(b"\xff" * 9 + b"\x7f")),
    _connecting("multistream: a length of 2 GiB", selects(b"\x80\x80\x80\x80\x08" + bytes(65536))),
    _connecting("multistream: an empty message", selects(b"\x00")),
    _connecting("multistream: no newline", selects(b"\x06/noise")),
    _connecting("multistream: another version", says(delimited("/multistream/2.0.0"))),
    _connecting("multistream: half a name", selects(b"\x07/noi")),
    _connecting("multistream: plaintext", selects(delimited("/plaintext/2.0.0"))),
    _connecting(
        "multistream: secio and TLS", selects(delimited("/secio/1.0.0") + delimited("/tls/1.0.0"))
    ),
    _connecting("multistream: byte by byte", trickles(NOISE + b"\x00\x20" + os.urandom(160))),
    _asking("multistream: asks for protocols without end", delimited("ls")),
    _asking("multistream: unknown protocols without end", delimited("/unknown/1.0.0")),
    _connecting("noise: silence", says(NOISE)),
    _connecting("noise: half a first message", says(NOISE + b"\x00\x20" + bytes(10))),
    _connecting("noise: a first message of nothing", says(NOISE + b"\x00\x00")),
    _connecting("noise: a key of zeros", says(NOISE + b"\x00\x20" + bytes(32))),
    _connecting("noise: the longest first message", says(NOISE + b"\xff\xff" + bytes(65535))),
    _connecting("noise: stops after the second message", stops_after_the_second_message),
    _connecting("noise: garbage for a third message", garbage_as_third_message),
    _connecting("noise: half a third message", half_a_third_message),
    _connecting("noise: a wrong signature of its static key", proves(another_signature)),
    _connecting("noise: an identity it has no key of", proves(another_identity)),
    _connecting("noise: signed by somebody else", signed_by_somebody_else),
    _connecting("noise: no identity", proves(no_identity)),
    _connecting("noise: an unknown kind of key", proves(unknown_kind_of_key)),
    _connecting("muxer: silence", stops_before_the_muxer),
    _connecting("muxer: mplex", another_muxer),
    _connecting("muxer: no UTF-8", muxer_of_no_text),
    _connecting("muxer: corrupted ciphertext", corrupted_ciphertext_before_the_muxer),
    _connecting("noise: corrupted ciphertext", corrupted_ciphertext),
    _connecting("noise: replayed ciphertext", replayed_ciphertext),
    _connecting("noise: ciphertext shorter than its tag", ciphertext_shorter_than_its_tag),
    _connecting("noise: half a message", half_a_message, KEEPALIVE_S),
    _connecting("noise: a message byte by byte", message_byte_by_byte, KEEPALIVE_S),
)
