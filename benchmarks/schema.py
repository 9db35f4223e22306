"""The local API against its own document, by schemathesis: `python -m benchmarks.schema`. Start at
`try_document`.

A fake engine stands behind the API, so what is tried is the API alone: no answer of a 5xx status,
none that /openapi.json does not describe, and nothing taken that it forbids. Not asked is that all
is taken which it allows: no schema can say that a name must be among others. Schemathesis runs in
an environment of its own (`scripts/clients.py`).
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.report import Row, parse_arguments, report
from benchmarks.shim_server import Catalog
from scripts.clients import environment_of
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.server import serve_api
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.features import Feature
from tokenplace.operations import Embeddings, EmbedRequest

ROOT: Final = Path(__file__).parents[1]
TESTER: Final = environment_of(ROOT, "openai-3") / "bin" / "schemathesis"
CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
SEED: Final = 20
# What follows from the document itself (nearly 7,000 cases), and what chance adds.
PHASES: Final = ("examples", "coverage", "fuzzing")
N_EXAMPLES: Final = 100  # of chance, for each operation
N_EXAMPLES_QUICK: Final = 10


@dataclass(frozen=True, slots=True)
class Tried:
    """n_cases: requests that were made. output: schemathesis' own words, if something failed."""

    n_cases: int
    is_right: bool
    output: str


class _Embedder:
    """Every text has the same vector."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """See `Operator`."""
        vector = struct.pack("<2f", 0.6, 0.8)
        return Embeddings((vector,) * len(request.inputs), (1,) * len(request.inputs))


class _Counting:
    """Counts what reaches the app."""

    def __init__(self, app: ASGIApp) -> None:
        self.n_requests = 0
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.n_requests += 1
        await self._app(scope, receive, send)


async def try_document(
    n_examples: int, *, phases: Sequence[str] = PHASES, paths: str = "."
) -> Tried:
    """Try so many examples of each operation. paths: a pattern of those to be tried."""
    model = FakeModel(
        features=(Feature.CHAT, Feature.GRAMMAR, Feature.TOOLS),
        n_ctx=256,
        prefill_tps=1e9,
        decode_tps=1e9,
        n_answer=(1, 6),
    )
    app = _Counting(create_app(FakeEngine(model), Catalog(), embedder=_Embedder()))
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_api, app, port=0))
        with TemporaryDirectory() as folder:  # it leaves notes where it runs
            result = await trio.run_process(
                _command(f"http://127.0.0.1:{port}/openapi.json", n_examples, phases, paths),
                cwd=folder,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
        nursery.cancel_scope.cancel()
    return Tried(app.n_requests, result.returncode == 0, result.stdout.decode())


def _command(url: str, n_examples: int, phases: Sequence[str], paths: str) -> list[str]:
    return [
        *(str(TESTER), "run", url, "--checks", ",".join(CHECKS)),
        *("--phases", ",".join(phases), "--max-examples", str(n_examples)),
        *("--seed", str(SEED), "--generation-deterministic", "--suppress-health-check", "all"),
        *("--request-timeout", "30", "--no-color", "--include-path-regex", paths),
    ]


def main() -> None:
    """The whole run takes minutes."""
    arguments = parse_arguments(__doc__.split("\n", maxsplit=1)[0])
    n_examples = N_EXAMPLES_QUICK if arguments.quick else N_EXAMPLES
    tried = trio.run(try_document, n_examples)
    if not tried.is_right:
        print(tried.output, file=sys.stderr)
    row = Row("cases of /openapi.json", tried.n_cases, None, None, None, "", tried.is_right)
    report("The API against its document", [row], arguments.json)
    sys.exit(not tried.is_right)


if __name__ == "__main__":
    main()
