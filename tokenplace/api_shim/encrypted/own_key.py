"""The key that apps seal their requests to. Start at `OwnKey`.

In memory only: a key on disk would open every request recorded in its life, and nobody needs an old
one, for apps fetch the key before they ask. After a restart an app's first request is refused, and
the refusal says to fetch the key.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

OWN_KEY_BITS: Final = 2048  # what token.place's clients know
PUBLIC_EXPONENT: Final = 65_537


class OwnKey:
    """RSA-2048, drawn when it is first wanted: it may take a second, and no start waits for it."""

    def __init__(self) -> None:
        self._drawing = trio.Lock()
        self._key: rsa.RSAPrivateKey | None = None

    async def get(self) -> rsa.RSAPrivateKey:
        """The one key of this run, however many ask at once."""
        async with self._drawing:
            if self._key is None:
                self._key = await trio.to_thread.run_sync(_draw)
        return self._key


def _draw() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(PUBLIC_EXPONENT, OWN_KEY_BITS)


def public_pem(key: rsa.RSAPrivateKey) -> str:
    """The public half as PEM (SubjectPublicKeyInfo)."""
    form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form).decode("ascii")


def public_pem_base64(key: rsa.RSAPrivateKey) -> str:
    """The public half as base64 of its PEM, as GET /public-key gives it."""
    return b64encode(public_pem(key).encode()).decode("ascii")
