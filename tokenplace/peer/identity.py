"""A peer's identity: an Ed25519 key and the peer id made of it. Start at `load_or_create_identity`.

The file holds the raw 32-byte private key and nothing else. It is written whole or not at all,
readable by its owner alone. A requesting host uses `throwaway_identity` instead: nothing a donor
needs depends on who asks (docs/protocol.md, section 1).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from libp2p.crypto.ed25519 import Ed25519PrivateKey, create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID

from tokenplace.errors import ConfigError
from tokenplace.models.files import write_atomically

KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair and its peer id, as base58 text and as bytes."""

    key_pair: KeyPair
    peer_id: str
    peer_id_bytes: bytes

    def __repr__(self) -> str:  # the default would print the private key
        return f"Identity({self.peer_id})"


def throwaway_identity() -> Identity:
    """A new identity that is never stored."""
    return _identity_of(create_new_key_pair())


def load_or_create_identity(path: Path) -> Identity:
    """The identity in `path`; a new one is written there when the file does not exist.

    Raises `ConfigError` naming the file when it is damaged, open to others, or cannot be read or
    written.
    """
    try:
        key = _read_key(path)
    except FileNotFoundError:
        return _create_identity(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    private_key = Ed25519PrivateKey.from_bytes(key)
    return _identity_of(KeyPair(private_key, private_key.get_public_key()))


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is not a file.")
        if status.st_mode & 0o077:
            raise ConfigError(
                f"{path}: others can read or change this private key.", hint=f"chmod 600 {path}"
            )
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{path}: is damaged: it should hold {KEY_BYTES} bytes.",
            hint="Restore it from a copy, or move it away to start with a new peer id.",
        )
    return key


def _create_identity(path: Path) -> Identity:
    key_pair = create_new_key_pair()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, key_pair.private_key.to_bytes(), 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}.") from error
    return _identity_of(key_pair)


def _identity_of(key_pair: KeyPair) -> Identity:
    peer_id = ID.from_pubkey(key_pair.public_key)
    return Identity(key_pair, peer_id.to_base58(), peer_id.to_bytes())
