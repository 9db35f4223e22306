"""Sends the page: a few files that never change while the peer runs. Start at `page_routes`.

The page is the only part of this API that a browser executes, so each file's headers say that
nothing may be loaded, framed or asked for but what comes from here, and that text never becomes
markup. A browser keeps the files and asks each time whether they are still the same (ETag), so that
a newer peer never runs with an older page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

README: Final = "README.md"
MEDIA_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "md": "text/plain",  # no browser shows text/markdown
}
FILES: Final = (
    "index.html",
    "page.css",
    "page.js",
    "api.js",
    "chat.js",
    "sealing.js",
    "text.js",
    "turn.js",
)
PATHS: Final = frozenset({"/", f"/{README}", *(f"/{name}" for name in FILES[1:])})
POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        # Assigning text where markup is expected (innerHTML and its like) throws.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """Routes of the page at `/` and of its files, and of the README that it refers to."""
    folder = resources.files(__package__)
    bodies = {f"/{name}": folder.joinpath(name).read_bytes() for name in FILES}
    bodies["/"] = bodies.pop("/index.html")
    bodies[f"/{README}"] = readme(Path(__file__).resolve().parents[3]).encode()
    return [
        Route(path, _sender(path, body), methods=["GET"], include_in_schema=False)
        for path, body in bodies.items()
    ]


def readme(root: Path) -> str:
    """The README of the folder `root` that this runs from, or else of the installed package."""
    path = root / README
    # Other packages, too, may have left a README.md in the folder of all packages.
    if path.is_file() and (root / "setup.cfg").is_file():
        return path.read_text("utf-8")
    return str(metadata.metadata("tokenplace").json.get("description", ""))


def is_known(if_none_match: str, etag: str) -> bool:
    """Does the browser have this version already (RFC 9110, section 13.1.2)?"""
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return any(tag in {etag, "*"} for tag in tags)


def _sender(path: str, body: bytes) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that sends `body`, or says that the browser has it."""
    kind = "html" if path == "/" else path.rpartition(".")[2]
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers: Mapping[str, str] = {**HEADERS, "etag": etag}

    async def send(http: Request) -> Response:
        if is_known(http.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=MEDIA_TYPES[kind])

    return send
