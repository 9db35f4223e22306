"""GET /public-key. Start at `add_public_key_route`.

The other routes of the encrypted API are those of the plain one, with `completions` between.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokenplace.api_shim.encrypted.own_key import OwnKey, public_pem, public_pem_base64
from tokenplace.api_shim.refusal import Refusal, Refused

NOT_STORED = {"cache-control": "no-store"}  # the next start has another key


def add_public_key_route(router: APIRouter, own_key: OwnKey) -> None:
    """GET /public-key: base64 of PEM; with `?format=pem` the PEM itself."""

    @router.get("/public-key")
    async def get_public_key(http: Request) -> Response:
        form = http.query_params.get("format", "base64")
        if form not in {"base64", "pem"}:
            message = "Invalid value for 'format'. Supported: base64, pem."
            raise Refused(Refusal(400, message, "invalid_value", "format"))
        key = await own_key.get()
        text = public_pem(key) if form == "pem" else public_pem_base64(key)
        return JSONResponse({"public_key": text}, headers=NOT_STORED)
