"""A Hugging Face Hub in a thread: the two requests that a download consists of, with its redirect
and its faults.

`FakeHub.files` are what it has. It answers HEAD and GET of `/OWNER/REPO/resolve/REVISION/FILE` with
a redirect that carries the size and sha256, and GET of the redirect's target with ranges, as the
real one does.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """
    stop_after: bytes of a file after which an answer stalls until `go_on` is set, and is then cut.
    corrupt: flip a byte of what is sent. etag: said instead of the sha256. status: answered to
    everything.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.stop_after: int | None = None
        self.go_on = threading.Event()
        self.corrupt = False
        self.etag: str | None = None
        self.status: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def cdn_url(self) -> str:
        """Another host, as the real one's is: the client takes size and hash from the redirect
        itself.
        """
        return f"http://localhost:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(self.path.split("?")[0])

    def do_GET(self) -> None:
        self._answer(self.path.split("?")[0])

    def _answer(self, path: str) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        data = self.server.files.get(f"{found[1]}/{found[2]}" if found else path[len("/cdn/") :])
        if self.server.status is not None or data is None:
            self._head(self.server.status or 404, {} if data else {"X-Error-Code": "EntryNotFound"})
        elif found:
            etag = self.server.etag or hashlib.sha256(data).hexdigest()
            self._head(
                302,
                {
                    "Location": f"{self.server.cdn_url}/cdn/{found[1]}/{found[2]}",
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Etag": f'"{etag}"',
                    "X-Linked-Size": str(len(data)),
                },
            )
        else:
            self._send(data)

    def _head(self, status: int, headers: dict[str, str], n_bytes: int = 0) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(n_bytes))
        self.end_headers()

    def _send(self, data: bytes) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        end = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if asked else {}
        self._head(206 if asked else 200, end, len(data) - start)
        if self.server.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        stop = self.server.stop_after
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[start : stop if stop is not None else len(data)])
            if stop is not None:
                self.server.go_on.wait(timeout=30)
                self.close_connection = True


@contextlib.contextmanager
def open_hub() -> Iterator[FakeHub]:
    """The hub, serving until the block ends."""
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            hub.go_on.set()
            hub.shutdown()
            thread.join()
