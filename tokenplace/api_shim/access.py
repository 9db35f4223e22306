"""Who may use the API over TCP. Start at `Access`.

Pure. A web page in the user's browser reaches every address that the user's programs reach, under
any name (DNS rebinding), and sends what forms and images can. So a request must name this very
address in `Host`, may come from no other site, and shows an API key where there are some. A Unix
socket needs none of this: no browser reaches it, and its file says who may open it.

Differs from other local servers: no origin is trusted for running on this machine, `null` never is
(any page can make its frames send it), and no answer ever says `*`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tokenplace.api_shim.refusal import Refusal
from tokenplace.defaults import API_PREFLIGHT_MAX_AGE_S
from tokenplace.errors import ConfigError

SAME_SITE: Final = frozenset({"none", "same-origin"})  # typed by the user, or our own page
# No page of the web can have an origin of these: a browser opens no window under them. Whoever has
# is a program that the user installed (VS Code's views, Electron's windows), and could call us
# without a browser. `file://` is not among them: its origin is "null", as is any sandboxed frame's.
# Nor are extensions of a browser: people have many, and mean none of them to use their models.
DESKTOP_SCHEMES: Final = frozenset({"app", "vscode-webview"})
EXPOSED_HEADERS: Final = (
    "x-tokenplace-accepted-by, x-tokenplace-model, x-tokenplace-attempts, x-tokenplace-route, "
    "x-tokenplace-request-id, x-request-id, retry-after"
)
PREFLIGHT_METHODS: Final = "GET, HEAD, POST"

_ORIGIN: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^\s/@?#,*\\]{1,253})")
_HOST: Final = re.compile(
    r"[a-z0-9]([a-z0-9._-]{0,252})(:[0-9]{1,5})?|\[[0-9a-f:.]+\](:[0-9]{1,5})?"
)
_TOKENS: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+( *, *[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
_LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class ApiKeys:
    """The keys that count, as digests: of a fixed length, and no log can show them."""

    digests: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, keys: Iterable[str]) -> ApiKeys:
        """From the keys themselves."""
        return cls(tuple(_digest(key.encode()) for key in keys))

    def admit(self, authorization: str) -> bool:
        """Does this header show one of the keys? (RFC 6750, section 2.1) True if there are none.

        Takes the same time whichever key it is, and however much of one was guessed.
        """
        if not self.digests:
            return True
        scheme, _, key = authorization.partition(" ")
        shown = _digest(key.strip().encode("latin-1", "replace"))
        n_equal = sum(hmac.compare_digest(shown, digest) for digest in self.digests)
        return scheme.lower() == "bearer" and n_equal > 0


@dataclass(frozen=True)
class Access:
    """The rules for a request's head. The defaults: programs of this machine, the API's own page,
    and windows of desktop programs.

    hosts: what `Host` may say besides loopback's names and the address that was connected to; each
    from `parse_host`. origins: other web origins that may call; each from `parse_origin`.
    open_paths: what may be read without a key.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    keys: ApiKeys = ApiKeys()
    open_paths: frozenset[str] = frozenset()

    def refuse(
        self, headers: Mapping[str, str], method: str, path: str, address: str, port: int
    ) -> Refusal | None:
        """Why the request may not come in; None: it may.

        headers: names in lower case, each once. path: decoded, as it will be routed. address, port:
        what the app has connected to.
        """
        host = headers.get("host", "").lower()
        if not self._is_own_host(host, address, port):
            names = f"127.0.0.1:{port}, localhost:{port}, [::1]:{port}"
            message = f"This API answers only to the Host {names}, and what --api-allow-host names."
            return Refusal(403, message, "host_not_allowed")
        if not self._may_come_from(headers, host) and not _is_link_to_page(headers, method, path):
            message = (
                "Web pages of other sites may not use this API, but for what --api-allow-origin"
                " names."
            )
            return Refusal(403, message, "origin_not_allowed")
        if is_preflight(headers, method):
            return None  # a browser sends no key with it
        is_open = path in self.open_paths and method in {"GET", "HEAD"}
        if not is_open and not self.keys.admit(headers.get("authorization", "")):
            message = "Incorrect or missing API key: send `Authorization: Bearer KEY`."
            return Refusal(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        return None

    def foreign_origin(self, headers: Mapping[str, str]) -> str | None:
        """The origin to name in the answer, if it is another one that may call."""
        origin = headers.get("origin", "")
        return origin if self._is_allowed(origin) else None

    def _is_own_host(self, host: str, address: str, port: int) -> bool:
        # The address itself is no way for DNS rebinding: a browser that names it has gone to it.
        names = {*_LOOPBACK_NAMES, _in_url(address), *(h for h in self.hosts if not _has_port(h))}
        own = {f"{name}:{port}" for name in names}
        return host in own or host in self.hosts or (port == 80 and host in names)

    def _may_come_from(self, headers: Mapping[str, str], host: str) -> bool:
        origin = headers.get("origin", "").lower()
        if self._is_allowed(origin):
            return True
        # A name of the user's own may stand for a proxy that speaks TLS.
        schemes = ("http", "https") if self._is_named(host) else ("http",)
        is_own = not origin or origin in {f"{scheme}://{host}" for scheme in schemes}
        return is_own and headers.get("sec-fetch-site", "none") in SAME_SITE

    def _is_allowed(self, origin: str) -> bool:
        match = _ORIGIN.fullmatch(origin.lower())
        is_desktop = match is not None and match["scheme"] in DESKTOP_SCHEMES
        return is_desktop or origin.lower() in self.origins

    def _is_named(self, host: str) -> bool:
        return host in self.hosts or host.rpartition(":")[0] in self.hosts


def is_preflight(headers: Mapping[str, str], method: str) -> bool:
    """Does a browser ask whether it may ask? (Fetch standard, "CORS-preflight request")"""
    return method == "OPTIONS" and {"origin", "access-control-request-method"} <= headers.keys()


def preflight_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The answer to the preflight of an origin that may call: yes to what it asks for.

    Every header is allowed, because SDKs send many of their own, and none of them can do harm.
    There is no word about credentials: nothing here depends on cookies.
    """
    allowed = {
        "access-control-allow-methods": PREFLIGHT_METHODS,
        "access-control-max-age": str(API_PREFLIGHT_MAX_AGE_S),
    }
    asked = headers.get("access-control-request-headers", "")
    if _TOKENS.fullmatch(asked):
        allowed["access-control-allow-headers"] = asked
    # Chromium's former rule for addresses that the web cannot reach; now it asks the user instead.
    if headers.get("access-control-request-private-network") == "true":
        allowed["access-control-allow-private-network"] = "true"
    return allowed


def cors_headers(origin: str) -> dict[str, str]:
    """What lets a page of `origin` read an answer, and the headers of ours in it."""
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": EXPOSED_HEADERS,
        "vary": "Origin",
    }


def parse_origin(text: str) -> str:
    """An origin as browsers send it: `https://chat.example`. Raises `ConfigError`."""
    origin = text.lower().removesuffix("/")
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise ConfigError(
            f"--api-allow-origin {text[:64]!r} is not the origin of a web page.",
            hint="Give scheme, host and port alone, such as https://chat.example or"
            " http://localhost:3000; each origin by itself.",
        )
    for scheme, port in (("http", ":80"), ("https", ":443")):
        if match["scheme"] == scheme:
            origin = origin.removesuffix(port)
    return origin


def parse_host(text: str) -> str:
    """A host as `Host` names it: a name, or a name and its port. Raises `ConfigError`."""
    host = text.lower()
    if not _HOST.fullmatch(host):
        raise ConfigError(
            f"--api-allow-host {text[:64]!r} is not the name of a host.",
            hint="Give a name such as llm.example, with :PORT where it is not the API's own.",
        )
    return host


def _is_link_to_page(headers: Mapping[str, str], method: str, path: str) -> bool:
    """Did the user follow a link to the page? Nothing but its files is read by that, and in a
    window of its own: no page can look into it."""
    return (
        method == "GET"
        and path == "/"
        and "origin" not in headers
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _in_url(address: str) -> str:
    """An IP address as `Host` has it."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return f"[{parsed}]" if parsed.version == 6 else str(parsed)


def _has_port(host: str) -> bool:
    return re.search(r":[0-9]+$", host) is not None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
