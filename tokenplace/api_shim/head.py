"""A request's head as this server takes it: stricter than h11. Start at `StrictConnection`.

No I/O. What h11 lets pass, because some old client may mean it well, is what requests are smuggled
with where two programs read one connection: bare line ends, folded lines, control characters. None
of today's clients sends any of it. Every error carries the status that the app gets.
"""

from __future__ import annotations

import re
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import h11

from tokenplace.defaults import API_MAX_HEAD_BYTES, API_MAX_HEADERS, API_MAX_TARGET_BYTES

END_OF_HEAD: Final = b"\r\n\r\n"
# Others are no method of HTTP: names are case-sensitive, and Hypercorn makes "get" a GET. Whether
# one is known at a path is for the app to say. CONNECT is for proxies.
_METHOD: Final = re.compile(rb"(?!CONNECT$)[A-Z-]+")
# RFC 9112, sections 2.2 and 5.2; RFC 9110, section 5.5: line ends that are none, folded lines, and
# control characters but for the tab.
_FORBIDDEN: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n|\r\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ABSOLUTE: Final = re.compile(rb"(?i:http)://([^/?#@]+)(/[^#]*|\?[^#]*)?")

Header = tuple[bytes, bytes]


class StrictConnection(h11.Connection):
    """The server's half of a connection. Raises `h11.RemoteProtocolError` with the status in
    `error_status_hint`, as h11 does itself.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=API_MAX_HEAD_BYTES)
        self._held = b""  # half of an empty line
        self.is_head = False  # the request that was read last: its answer has no body

    def receive_data(self, data: bytes) -> None:
        """As h11's, but empty lines before a request are ignored (RFC 9112, section 2.2), and all
        that comes behind an app's last one (section 9.6).
        """
        if self.their_state is h11.MUST_CLOSE:
            return
        if data and self.their_state is h11.IDLE and not self.trailing_data[0]:
            data = self._held + data
            while data.startswith(b"\r\n"):
                data = data[2:]
            self._held = data if data == b"\r" else b""
            if not data or self._held:
                return  # to h11, no data would be the end
        super().receive_data(data)

    def next_event(self) -> Any:
        """As h11's, but strict, and silent about what comes after an app's last request."""
        if self.their_state is h11.MUST_CLOSE:
            # What came with the last request; h11 would call it an error, in mid-answer.
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            _check_bytes(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.is_head = event.method == b"HEAD"
            _check_request(event)
        return event

    def renewed(self) -> StrictConnection:
        """One before its first request that has read what this one has not made use of."""
        connection = StrictConnection()
        if unread := self.trailing_data[0]:
            connection.receive_data(unread)
        return connection

    @property
    def has_begun_head(self) -> bool:
        """Has a part of a head arrived, and not all of it?"""
        return self.their_state is h11.IDLE and bool(self.trailing_data[0].strip(b"\r\n"))


def origin_form(target: bytes, headers: list[Header]) -> tuple[bytes, list[Header]]:
    """Target and headers as if the app had sent path and query alone.

    RFC 9112, section 3.2.2: the host in a target counts, and `Host` does not.
    """
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        return target, headers
    host, path = match[1], match[2] or b"/"
    named = [(name, host if name == b"host" else value) for name, value in headers]
    if not any(name == b"host" for name, _ in headers):
        named.append((b"host", host))
    return path if path.startswith(b"/") else b"/" + path, named


def _check_bytes(data: bytes) -> None:
    head = data.partition(END_OF_HEAD)[0]
    if len(head) > API_MAX_HEAD_BYTES:
        _refuse(431, "the head is too large")
    # The last byte may be a CR whose LF has not come yet.
    if _FORBIDDEN.search(head.removesuffix(b"\r")):
        _refuse(400, "a line end or control character is out of place")


def _check_request(request: h11.Request) -> None:
    target = request.target
    if request.http_version >= b"2":
        _refuse(505, "only HTTP/1.1 is spoken here")
    if not _METHOD.fullmatch(request.method):
        _refuse(501, "the method is unknown")
    if len(target) > API_MAX_TARGET_BYTES:
        _refuse(414, "the target is too long")
    if len(request.headers) > API_MAX_HEADERS:
        _refuse(431, "there are too many headers")
    is_known_form = (
        target.startswith(b"/")
        or (target == b"*" and request.method == b"OPTIONS")
        or _is_absolute(target)
    )
    if not is_known_form or b"#" in target:
        _refuse(400, "the target is no path of this server")


def _is_absolute(target: bytes) -> bool:
    if not _ABSOLUTE.fullmatch(target):
        return False
    try:
        return bool(urlsplit(target).hostname)
    except ValueError:
        return False


def _refuse(status: int, reason: str) -> NoReturn:
    raise h11.RemoteProtocolError(reason, error_status_hint=status)
