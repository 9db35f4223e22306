"""A peer whose donated model is the deterministic engine, and which is an ordinary one in all else:
`python -m benchmarks.drills.fake_peer --home FOLDER --model FILE ...`. Start at `main`.

Hosts, DHT, directory, sealing, donor, HTTP and control socket are those of `tokenplace up`; only
what computes is `engine.fake`. So two of them give the same answer to the same request, whoever
began it, and a peer is there in a second or two.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tokenplace import defaults
from tokenplace.cli.output import explain
from tokenplace.cli.up import run_up
from tokenplace.engine.fake import FakeEngine, Faults
from tokenplace.engine.fake_model import FakeModel
from tokenplace.engine.launch import EngineSpec
from tokenplace.settings import Settings

PROGRAM: Final = ("-m", "benchmarks.drills.fake_peer")
N_CTX: Final = 65_536  # long prompts are what makes a prefill slow here


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What peers donate: a real GGUF file, of a few hundred bytes."""

    path: Path
    artifact: str

    @property
    def called(self) -> str:
        """How an app asks for it: no catalogue has it, so by its artifact."""
        return f"{self.path.stem.lower()}@sha256:{self.artifact}"


def write_model(path: Path) -> ModelFile:
    """Write the file; its bytes, and so its artifact, are always the same for the same name."""
    # These bring numpy, which a peer would only be slowed down by.
    import numpy
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_context_length(N_CTX)
    writer.add_token_list(["<unk>", "a", "b"])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("output.weight", numpy.zeros((4, 8), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelFile(path, hashlib.sha256(path.read_bytes()).hexdigest())


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags called as those of `tokenplace up` mean the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", "--donate", type=Path, required=True, help="see write_model")
    parser.add_argument("--listen", action="append", default=[])
    parser.add_argument("--bootstrap", action="append", default=[])
    parser.add_argument("--network", default=defaults.NETWORK)
    parser.add_argument("--allow-private", action="store_true")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--api-port", type=int, default=None, help="without it there is no API")
    parser.add_argument("--until-eof", action="store_true")
    parser.add_argument("--prefill-tps", type=float, default=1000.0)
    parser.add_argument("--decode-tps", type=float, default=100.0, help="of one answer alone")
    parser.add_argument("--stream-cost", type=float, default=0.0, help="see FakeModel")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=64, help="if the app sets no length")
    parser.add_argument("--crash-after", type=int, default=None, help="see Faults")
    parser.add_argument("--stall-after", type=int, default=None, help="see Faults")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the peer until a signal, or the end of stdin, ends it."""
    flags = parse()
    settings = Settings(
        home=flags.home.absolute(),
        network=flags.network,
        donate=(str(flags.model.absolute()),),
        bootstrap=tuple(flags.bootstrap),
        listen=tuple(flags.listen),
        serve=flags.serve,
        has_api=flags.api_port is not None,
        api_port=flags.api_port or 0,
        allow_private=flags.allow_private,
    )
    model = FakeModel(
        n_ctx=N_CTX,
        n_slots=flags.slots,
        n_queued=flags.queue,
        prefill_tps=flags.prefill_tps,
        decode_tps=flags.decode_tps,
        stream_cost=flags.stream_cost,
        n_answer=(flags.answer_tokens, flags.answer_tokens),
    )
    faults = Faults(crash_after=flags.crash_after, stall_after=flags.stall_after)

    @asynccontextmanager
    async def open_fake(spec: EngineSpec) -> AsyncIterator[FakeEngine]:
        yield FakeEngine(replace(model, name=spec.name, artifact=spec.artifact), faults)

    run_up(settings, may_fetch=False, until_eof=flags.until_eof, open_engine=open_fake)


if __name__ == "__main__":
    try:
        main()
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        explain(error)
