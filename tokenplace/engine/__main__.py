"""Try a model without a network: `python -m tokenplace.engine PATH --prompt "..." [--threads N]`.

The answer goes to stdout as it comes; what it took goes to stderr. A tool for people who debug the
engine.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

import trio

from tokenplace.engine.engine import EngineSpec, open_engine
from tokenplace.errors import TokenplaceError
from tokenplace.generation import (
    CACHE_SCOPE_BYTES,
    SEED_BYTES,
    Accepted,
    Alive,
    ChatInput,
    ChatMessage,
    Finished,
    GenerateRequest,
    SamplingParams,
    TextInput,
    Tokens,
)


async def answer(path: Path, prompt: str, n_threads: int, temperature: float) -> None:
    """Load, ask, print. Raises `TokenplaceError`s, in a group when they come from the answer."""
    spec = EngineSpec(path=path, name=path.stem, artifact="", n_threads=n_threads)
    async with open_engine(spec) as engine:
        is_chat = "chat" in engine.info.features
        request = GenerateRequest(
            model=spec.name,
            input=ChatInput((ChatMessage("user", prompt),)) if is_chat else TextInput(prompt),
            sampling=SamplingParams(temperature=temperature),
            seed=secrets.token_bytes(SEED_BYTES),
            cache_scope=secrets.token_bytes(CACHE_SCOPE_BYTES),
            as_of=datetime.now(UTC).date().isoformat(),
        )
        async with engine.generate(request) as events:
            async for event in events:
                match event:
                    case Tokens():
                        sys.stdout.buffer.write(b"".join(event.pieces))
                        sys.stdout.buffer.flush()
                    case Accepted() | Alive():
                        print(event, file=sys.stderr)
                    case Finished():
                        print(f"\n{event}", file=sys.stderr)


def main() -> None:
    """Parse the command line and run; errors are one line each."""
    parser = argparse.ArgumentParser(prog="python -m tokenplace.engine", description=__doc__)
    parser.add_argument("path", type=Path, help="a GGUF file")
    parser.add_argument("--prompt", required=True, help="what the user says")
    parser.add_argument("--threads", type=int, default=1, help="processor cores (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0")
    args = parser.parse_args()
    try:
        trio.run(answer, args.path, args.prompt, args.threads, args.temperature)
    except* TokenplaceError as group:
        sys.exit("\n".join(map(str, group.exceptions)))
    except* KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
