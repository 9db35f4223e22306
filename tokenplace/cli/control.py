"""Asks the running peer over its Unix socket. Start at `ask_peer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tokenplace.cli.output import fail

CONTROL_TIMEOUT_S: Final = 5.0


def ask_peer(home: Path, path: str) -> dict[str, Any]:
    """The answer of the peer that runs in `home`, as parsed JSON. Ends the command when none runs
    there."""
    import httpx  # here: `--help` must not pay for it

    socket = home / "control.sock"
    try:
        with httpx.Client(
            # Without certificates, which take 60 ms to load and which nobody shows here.
            transport=httpx.HTTPTransport(verify=False, uds=str(socket)),
            timeout=CONTROL_TIMEOUT_S,
        ) as client:
            response = client.get(f"http://peer{path}")
            response.raise_for_status()
            answer: dict[str, Any] = response.json()
            return answer
    except (httpx.ConnectError, FileNotFoundError):
        fail(f"no peer runs in {home}", "start one with: tokenplace up")
    except httpx.HTTPError as error:
        fail(
            f"the peer in {home} does not answer ({type(error).__name__})",
            "it may be starting or stopping: try again in a few seconds",
        )
