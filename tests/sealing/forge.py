"""docs/protocol.md, sections 4 and 5, written a second time from the page: seals right and wrong.

Nothing here uses `tokenplace.sealing` but its key objects, so that both can be checked against each
other. Start at `seal_request` and `Answer`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.suites import PrivateKey

SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
WEAK_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
X25519_KEM = 0x0020
NETWORK = "test"
BOB_ID = bytes.fromhex("002408011220") + b"B" * 32
KEY_ID = 7
RESP_SECRET = bytes(range(32))

# Fixed keys, so that the vectors can name them: a 64-byte ML-KEM seed and a 32-byte X25519 key.
DONOR_SEEDS = (b"donor".ljust(64, b"."), b"donor".ljust(32, b"."))
REPLY_SEEDS = (b"reply".ljust(64, b"."), b"reply".ljust(32, b"."))


def library_keys(
    seeds: tuple[bytes, bytes],
) -> tuple[mlkem.MLKEM768PrivateKey, x25519.X25519PrivateKey]:
    return (
        mlkem.MLKEM768PrivateKey.from_seed_bytes(seeds[0]),
        x25519.X25519PrivateKey.from_private_bytes(seeds[1]),
    )


DONOR_KEY = PrivateKey(*library_keys(DONOR_SEEDS))
REPLY_KEY = PrivateKey(*library_keys(REPLY_SEEDS))
NOW = 1000.0


def ring_of(key: PrivateKey = DONOR_KEY, key_id: int = KEY_ID) -> KeyRing:
    """A donor's ring whose one key was made at `NOW`."""
    ring = KeyRing(lambda: key, first_id=key_id)
    ring.advertised(NOW)
    return ring


RING = ring_of()


def header(
    form: int = 1, key_id: int = KEY_ID, kem: int = 0x647A, kdf: int = 1, aead: int = 3
) -> bytes:
    return struct.pack(">BBHHH", form, key_id, kem, kdf, aead)


def request_info(head: bytes, network: str = NETWORK, donor_id: bytes = BOB_ID) -> bytes:
    name = network.encode()
    return (
        b"tokenplace/request/1\x00"
        + struct.pack(">H", len(name))
        + name
        + struct.pack(">H", len(donor_id))
        + donor_id
        + head
    )


def pad(payload: bytes) -> bytes:
    plaintext = struct.pack(">I", len(payload)) + payload
    size = 2048
    while size < len(plaintext):
        size *= 2
    return plaintext + bytes(size - len(plaintext))


def seal_request(plaintext: bytes, head: bytes | None = None) -> bytes:
    """Seal a plaintext as it is, padded by the caller, rightly or not."""
    head = header() if head is None else head
    public = hpke.MLKEM768X25519PrivateKey(*library_keys(DONOR_SEEDS)).public_key()
    return head + SUITE.encrypt(plaintext, public, info=request_info(head))


def seal_weakly(plaintext: bytes, head: bytes | None = None) -> bytes:
    """Seal to the X25519 half of the donor's key alone: everything right but the suite."""
    head = header(kem=X25519_KEM) if head is None else head
    _, private = library_keys(DONOR_SEEDS)
    return head + WEAK_SUITE.encrypt(plaintext, private.public_key(), info=request_info(head))


def open_request(sealed: bytes) -> bytes:
    private = hpke.MLKEM768X25519PrivateKey(*library_keys(DONOR_SEEDS))
    plaintext = SUITE.decrypt(sealed[8:], private, info=request_info(sealed[:8]))
    (length,) = struct.unpack_from(">I", plaintext)
    return plaintext[4 : 4 + length]


def varint(value: int) -> bytes:
    for size, prefix in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if value < 1 << (8 * size - 2):
            return (value | prefix << (8 * size - 2)).to_bytes(size, "big")
    raise ValueError(value)


def frames_plaintext(frames: bytes) -> bytes:
    plaintext = struct.pack(">H", len(frames)) + frames
    return plaintext + bytes(-len(plaintext) % 128)


@dataclass
class Answer:
    """An answer's bytes, chunk by chunk, in any order and as wrong as a test wants."""

    digest: bytes
    shared: bytes = b"S" * 32
    nonce: bytes = b"N" * 32
    count: int = 0
    opening: bytes = field(init=False)

    def __post_init__(self) -> None:
        public = hpke.MLKEM768X25519PrivateKey(*library_keys(REPLY_SEEDS)).public_key()
        enc = SUITE.encrypt(self.shared, public, info=b"tokenplace/reply/1")
        self.opening = b"\x01" + struct.pack(">H", len(enc)) + enc + self.nonce

    def ciphertext(self, plaintext: bytes, aad: bytes = b"") -> bytes:
        prk = hmac.digest(self.digest + self.nonce, RESP_SECRET + self.shared, "sha256")
        key = HKDFExpand(hashes.SHA256(), 32, b"key").derive(prk)
        base = HKDFExpand(hashes.SHA256(), 12, b"nonce").derive(prk)
        nonce = (int.from_bytes(base, "big") ^ self.count).to_bytes(12, "big")
        self.count += 1
        return ChaCha20Poly1305(key).encrypt(nonce, plaintext, aad)

    def chunk(self, frames: bytes) -> bytes:
        ciphertext = self.ciphertext(frames_plaintext(frames))
        return varint(len(ciphertext)) + ciphertext

    def final(self, frames: bytes) -> bytes:
        return varint(0) + self.ciphertext(frames_plaintext(frames), b"final")


def digest_of(sealed: bytes) -> bytes:
    return hashlib.sha256(sealed).digest()
