"""Objects of the API that are not OpenAI's, for the API's document. Start at `Health`.

Models of what is read and written by hand elsewhere, as `openai.answer_schemas`; none is ever
filled, so a body may have another type under a name than the body it comes from.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from tokenplace.api_shim.openai import bodies
from tokenplace.api_shim.openai.answer_schemas import ClosedObject, Error


class Health(ClosedObject):
    """timestamp: unix seconds."""

    status: Literal["ok"]
    version: Literal["v1"]
    service: Literal["token.place"]
    timestamp: int


class Version(ClosedObject):
    """The release of tokenplace that answers."""

    version: str


# ---------------------------------------------------------------- the encrypted API


class ChatCompletionRequest(bodies.ChatCompletionRequest):
    """Body of POST /chat/completions, in clear."""

    encrypted: Literal[False] | None = None


class CompletionRequest(bodies.CompletionRequest):
    """Body of POST /completions, in clear."""

    encrypted: Literal[False] | None = None


class Sealed(BaseModel):
    """What only this peer can open; each in base64. cipherkey: RSA of the base64 text of an AES-256
    key, which with the IV opens the ciphertext (AES-256-CBC).
    """

    ciphertext: str
    cipherkey: str
    iv: str


class SealedChatCompletionRequest(bodies.ChatCompletionRequest):
    """The same with sealed messages. client_public_key: RSA, as base64 of PEM or of DER, or PEM."""

    encrypted: Literal[True]
    client_public_key: str
    messages: Sealed  # type: ignore[assignment]


class SealedCompletionRequest(bodies.CompletionRequest):
    """The same with a sealed prompt, under the name that it has in chats."""

    encrypted: Literal[True]
    client_public_key: str
    prompt: None = None  # type: ignore[assignment]
    messages: Sealed


class PublicKey(ClosedObject):
    """The key of this peer's present run."""

    public_key: str


class SealedPart(ClosedObject):
    """A piece of an answer. cipherkey: in the first piece."""

    encrypted: Literal[True]
    ciphertext: str
    iv: str
    cipherkey: str = ""
    stream_session_id: str = ""


class SealedAnswer(ClosedObject):
    """The answer in clear is inside."""

    encrypted: Literal[True]
    data: SealedPart


class SealedEvent(ClosedObject):
    """Event of a stream; that of the stream in clear is inside."""

    event: Literal["delta"]
    encrypted: Literal[True]
    stream_session_id: str
    data: SealedPart


class SealedStreamError(Error):
    """The event of a failure in mid-stream, which is not sealed."""

    event: Literal["error"]
