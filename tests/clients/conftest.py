"""One peer for all clients: it donates a model for chats and one for embeddings, and its own apps
are answered by them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.clients import LOCKS, environment_of, is_made
from tests.conftest import ROOT

MODEL = "smollm2-135m-instruct"
PROGRAMS = Path(__file__).parent / "programs"
START_TIMEOUT_S = 120.0
PROGRAM_TIMEOUT_S = 120.0  # LlamaIndex alone takes seconds to import on a busy machine

Program = Callable[[str, str], dict[str, Any]]


@dataclass(frozen=True)
class Shim:
    """A running peer's API. embedder: what it calls its model for embeddings."""

    base_url: str
    embedder: str


@pytest.fixture(scope="package")
def shim(tiny_model: Path, embedding_model: Path) -> Iterator[Shim]:
    """A peer that offers both models; all its processes are gone when the tests end."""
    home = Path(tempfile.mkdtemp(prefix="tp-"))  # short: a Unix socket's path may have 107 bytes
    donated = ["--donate", MODEL, "--donate", str(embedding_model), "--yes"]
    size = ["--ctx", "2048", "--parallel", "2", "--listen", "/ip4/127.0.0.1/tcp/0"]
    command = [sys.executable, "-m", "tokenplace", "up", "--home", str(home), "--api-port", "0"]
    environment = {**os.environ, "TOKENPLACE_MODELS_DIR": str(tiny_model.parent)}
    environment["TOKENPLACE_CONFIG"] = os.devnull
    with (
        (home / "output.log").open("wb") as log,
        subprocess.Popen(
            [*command, "--until-eof", *donated, *size],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        ) as process,
    ):
        try:
            yield _wait_offering(home, process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
    shutil.rmtree(home)


def _wait_offering(home: Path, process: subprocess.Popen[bytes]) -> Shim:
    control = home / "control.sock"
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(control))) as client:
        while time.monotonic() < deadline and process.poll() is None:
            # It is there once it is listened on; before, httpx would leave its own socket open.
            models = client.get("http://peer/status").json()["models"] if control.exists() else []
            assert "failed" not in [model["state"] for model in models], models
            if [model["state"] for model in models] == ["offered"] * 2:
                api_url = client.get("http://peer/status").json()["api"]["url"]
                return Shim(api_url, models[1]["name"])
            time.sleep(0.1)
    raise AssertionError((home / "output.log").read_text("utf-8", "replace"))


@pytest.fixture(scope="package")
def run_program(shim: Shim, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Runs a program of `programs/` in the environment of that name; what it printed."""

    def run(environment: str, program: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(program)
        result = subprocess.run(
            [str(python_of(environment)), str(PROGRAMS / f"{program}.py")],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),  # where some keep caches, and look for keys
                "LLM_USER_PATH": str(folder),
                "OPENAI_BASE_URL": shim.base_url,
                "OPENAI_API_KEY": "anything",
                "MODEL": MODEL,
                "EMBEDDER": shim.embedder,
            },
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        got: dict[str, Any] = json.loads(result.stdout)
        return got

    return run


def python_of(environment: str) -> Path:
    """The interpreter that has the clients of requirements/clients/`environment`.lock."""
    folder = environment_of(ROOT, environment)
    made = is_made(folder, ROOT / LOCKS / f"{environment}.lock")
    assert made, f"{folder} is missing or old: run `make setup-test`"
    return folder / "bin" / "python"
