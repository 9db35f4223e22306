"""Sealed bodies of /chat/completions and /completions. Start at `EncryptedCompletions`.

What stands outside the envelope is checked first, and refused as in the plain API: it is in clear,
and nothing sealed has been looked at. From then on there is one refusal for whatever is wrong, also
for messages that are opened but not valid: to say more would tell of a plaintext to whoever sent
it, who need not be whoever wrote it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from tokenplace.api_shim.body import parse_body
from tokenplace.api_shim.encrypted.client_key import parse_client_key
from tokenplace.api_shim.encrypted.envelope import NotOpened, SealedAnswer, open_sealed
from tokenplace.api_shim.encrypted.own_key import OwnKey
from tokenplace.api_shim.envelope import OPEN, Envelope
from tokenplace.api_shim.openai.bodies import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationBody,
)
from tokenplace.api_shim.openai.routes import Completing
from tokenplace.api_shim.refusal import Refusal, Refused
from tokenplace.defaults import (
    API_CLIENT_KEY_MAX_BITS,
    API_CLIENT_KEY_MIN_BITS,
    API_SEALED_REFUSAL_STEP_S,
)

CANNOT_OPEN: Final = Refusal(
    400,
    "The encrypted request could not be opened. It must be sealed to this peer's key of now, which"
    " GET /public-key tells, and come with a client_public_key: RSA of"
    f" {API_CLIENT_KEY_MIN_BITS} to {API_CLIENT_KEY_MAX_BITS} bits. Inside must be what the plain"
    " API takes: a JSON array of messages, or, for /completions, the prompt as a JSON string.",
    "encryption_error",
    kind="encryption_error",
)


class _Flag(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    encrypted: bool | None = None


@dataclass(frozen=True, slots=True)
class _Inside:
    """What an envelope holds: `field` of a plain body of type `body`, as JSON of type `json`.

    anything: some valid value, in place of the one that is not known yet.
    """

    body: type[GenerationBody]
    field: str
    json: type
    anything: object


_MESSAGES: Final = _Inside(
    ChatCompletionRequest, "messages", list, [{"role": "user", "content": "-"}]
)
_PROMPT: Final = _Inside(CompletionRequest, "prompt", str, "-")
_ENVELOPE: Final = "messages"  # of a completion too
_OUTSIDE: Final = frozenset({"encrypted", "client_public_key", _ENVELOPE})


@dataclass(frozen=True, slots=True)
class EncryptedCompletions:
    """Opens what is sealed, has it answered by `plain`, and seals the answer. What is not sealed is
    handed on as it is. Raises as `plain`, and `Refused` for what cannot be opened.
    """

    plain: Completing
    own_key: OwnKey

    async def complete_chat(
        self, body: object, http: Request, envelope: Envelope = OPEN
    ) -> Response:
        """POST /chat/completions."""
        body, envelope = await self._open(body, _MESSAGES, envelope)
        return await self.plain.complete_chat(body, http, envelope)

    async def complete_text(
        self, body: object, http: Request, envelope: Envelope = OPEN
    ) -> Response:
        """POST /completions."""
        body, envelope = await self._open(body, _PROMPT, envelope)
        return await self.plain.complete_text(body, http, envelope)

    async def _open(
        self, body: object, inside: _Inside, envelope: Envelope
    ) -> tuple[object, Envelope]:
        is_encrypted = parse_body(_Flag, body).encrypted
        assert isinstance(body, dict)  # or it would have been refused
        if not is_encrypted:
            # `false` is what those send who can do both.
            return {name: body[name] for name in body if name != "encrypted"}, envelope
        options = {name: value for name, value in body.items() if name not in _OUTSIDE}
        parse_body(inside.body, {**options, inside.field: inside.anything})
        private_key = await self.own_key.get()
        began = trio.current_time()
        try:
            return _open_body(private_key, body, options, inside)
        except NotOpened:
            await trio.sleep_until(refusal_time(began, trio.current_time()))
        raise Refused(CANNOT_OPEN)


def refusal_time(began: float, now: float) -> float:
    """When to answer what could not be opened: the next of the fixed times after `began`."""
    n_steps = math.floor((now - began) / API_SEALED_REFUSAL_STEP_S) + 1
    return began + n_steps * API_SEALED_REFUSAL_STEP_S


def _open_body(
    private_key: RSAPrivateKey, body: dict[str, Any], options: dict[str, Any], inside: _Inside
) -> tuple[GenerationBody, SealedAnswer]:
    """The plain body, and the envelope for its answer; raises `NotOpened`."""
    content = open_sealed(private_key, body.get(_ENVELOPE))
    is_in_clear = options.get(inside.field) is not None
    if is_in_clear or not isinstance(content, inside.json):
        raise NotOpened
    try:
        asked = parse_body(inside.body, {**options, inside.field: content})
        client_key = parse_client_key(body.get("client_public_key"))
        return asked, SealedAnswer(client_key, is_streamed=bool(asked.stream))
    except (Refused, ValueError):
        raise NotOpened from None
