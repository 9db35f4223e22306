"""The process that runs one model: `python -m tokenplace.engine.worker`, started by `process.py`.

Start at `serve`. One thread: take what the parent sent, compute one step, send what came of it.
Between steps it never waits, when idle always. Whatever goes wrong in here costs this process and
nothing else, so there is no clean-up.
"""

from __future__ import annotations

import sys
import time
from dataclasses import astuple
from typing import Final

from tokenplace import defaults
from tokenplace.engine.batching import TokenBatcher
from tokenplace.engine.blackbox import BlackBox
from tokenplace.engine.confine import ParentGone, ParentPipe, confine_worker, enter_child
from tokenplace.engine.embedder import EmbeddingRunner
from tokenplace.engine.llama import LlamaContext
from tokenplace.engine.llama_embed import LlamaEmbedder, is_for_embeddings
from tokenplace.engine.llama_model import LlamaModel, LoadError
from tokenplace.engine.messages import (
    Cancel,
    Count,
    Done,
    Embed,
    Embedded,
    FromWorker,
    Load,
    LoadFailed,
    Queued,
    Ready,
    Score,
    Submit,
    ToWorker,
    from_value,
    to_value,
)
from tokenplace.engine.runner import Runner
from tokenplace.generation import SamplingParams

AnyRunner = Runner | EmbeddingRunner

_PROOF_PROMPT: Final = "The quick brown fox jumps over the lazy dog. " * 6  # about 64 tokens
_PROOF_TOKENS: Final = 8
_PROOF_TEXT: Final = "The quick brown fox."
_PROOF_TEXTS: Final = 32  # some steps: the first one is slow
_PROOF_REQUEST: Final = -1


def main() -> None:
    """Load what the first message names, prove that it generates, then serve until the parent is
    gone.
    """
    pipe = enter_child(sys.argv[1:])
    load = from_value(pipe.receive())
    assert isinstance(load, Load), "the first message is Load"
    box = BlackBox.open(load.box_fd)
    try:
        model = LlamaModel(load.path, load.n_gpu_layers)
        load_runner = load_embedder if is_for_embeddings(model) else load_generator
        runner, ready = load_runner(model, load, box)
    except LoadError as error:
        pipe.send([to_value(LoadFailed(str(error)))])
        return
    model.log.stop()
    pipe.send([to_value(ready)])
    serve(pipe, runner, box)


def load_generator(model: LlamaModel, load: Load, box: BlackBox) -> tuple[AnyRunner, Ready]:
    """For a model that generates. Raises `LoadError`."""
    context = LlamaContext(model, load)
    vocabulary = model.vocabulary
    runner = Runner(
        context,
        vocabulary,
        time.monotonic,
        load.n_threads,
        box.note,
        is_owner_first=load.is_owner_first,
    )
    confinement = _confine(model, load)
    prove(runner, context.n_ctx)
    return runner, Ready(
        context.n_ctx,
        context.size.n_running,
        model.template,
        vocabulary.bos,
        vocabulary.eos,
        vocabulary.control_texts,
        context.profile,
        runner.pace.prefill_tps,
        runner.pace.decode_tps,
        confinement,
    )


def load_embedder(model: LlamaModel, load: Load, box: BlackBox) -> tuple[AnyRunner, Ready]:
    """For a model made for embeddings. Its chat template, if any, is of what it was made from.

    Raises `LoadError`.
    """
    embedder = LlamaEmbedder(model, load)
    runner = EmbeddingRunner(embedder, time.monotonic, box.note, is_owner_first=load.is_owner_first)
    confinement = _confine(model, load)
    prove_embedder(runner)
    return runner, Ready(
        embedder.n_ctx,
        defaults.MAX_EMBED_BATCH,
        "",
        model.vocabulary.bos,
        model.vocabulary.eos,
        model.vocabulary.control_texts,
        embedder.profile,
        runner.pace.prefill_tps,
        0.0,
        confinement,
        embedder.n_dimensions,
    )


def _confine(model: LlamaModel, load: Load) -> tuple[str, ...]:
    """Before the proof, which so shows that the model works as confined."""
    return confine_worker(has_gpu=model.has_gpu and load.n_gpu_layers != 0)


def serve(pipe: ParentPipe, runner: AnyRunner, box: BlackBox) -> None:
    """Answer the parent's messages until it is gone."""
    batcher = TokenBatcher()
    mail = _Mail(pipe)
    while True:
        if runner.is_idle:
            box.clear()
        events: list[FromWorker] = []
        for message in mail.take(waits=runner.is_idle):
            if isinstance(message, Cancel):
                batcher.forget(message.request)
            events += take(message, runner)
        if events:  # before the step: a newcomer's deadlines count from its `accepted`
            pipe.send(map(to_value, events))
        done = runner.step(mail.has_cancel) if isinstance(runner, Runner) else runner.step()
        if events := batcher.put(done, time.monotonic()):
            pipe.send(map(to_value, events))


class _Mail:
    """What the parent sent and was not yet taken."""

    def __init__(self, pipe: ParentPipe) -> None:
        self._pipe = pipe
        self._messages: list[ToWorker | FromWorker] = []

    def take(self, *, waits: bool) -> list[ToWorker | FromWorker]:
        """All of it; if there is nothing it may wait for some. Raises `ParentGone`."""
        if waits and not self._messages:
            self._messages.append(from_value(self._pipe.receive()))
        self._look()
        taken, self._messages = self._messages, []
        return taken

    def has_cancel(self, computed: frozenset[int]) -> bool:
        """Is one of these requests cancelled, or nobody left to work for? For a step that may be
        stopped: for who only waits nobody's is.
        """
        try:
            self._look()
        except ParentGone:
            return True  # said again by the next look
        return any(isinstance(m, Cancel) and m.request in computed for m in self._messages)

    def _look(self) -> None:
        while (value := self._pipe.receive_nowait()) is not None:
            self._messages.append(from_value(value))


def take(message: ToWorker | FromWorker, runner: AnyRunner) -> list[FromWorker]:
    """Hand a message to the runner; what is to be said at once."""
    match message, runner:
        case Submit() as submit, Runner():
            return runner.submit(submit)
        case Score() as score, Runner():
            return runner.score(score)
        case Embed() as embed, EmbeddingRunner():
            return runner.submit(embed)
        case Count() as count, _:
            return runner.count(count)
        case Cancel(request), _:
            return runner.cancel(request)
        case _:
            raise AssertionError(f"{type(message).__name__} is not for this worker")


def prove(runner: Runner, n_ctx: int) -> None:
    """Generate a few tokens, as a request would, so that a broken model is found now and the speeds
    are known.

    Raises `LoadError`.
    """
    submit = Submit(
        request=_PROOF_REQUEST,
        bucket="",
        segments=((_PROOF_PROMPT, False),),
        sampling=astuple(SamplingParams(temperature=0.0)),
        n=1,
        seed=bytes(8),
        cache_scope=b"",
        max_tokens=_PROOF_TOKENS,
        stop=(),
        ignore_eog=True,
        top_logprobs=None,
        grammar="",
        resume=(),
        prompt_digest=b"",
    )
    (queued,) = runner.submit(submit)
    if not isinstance(queued, Queued):
        raise LoadError(f"a context of {n_ctx} tokens is too small")
    last: list[FromWorker] = []
    while not runner.is_idle:
        last = runner.step()
    if not last or not isinstance(last[-1], Done):
        raise LoadError("it loads, but it cannot generate")


def prove_embedder(runner: EmbeddingRunner) -> None:
    """The same, for a model that makes vectors. Raises `LoadError`."""
    texts = (_PROOF_TEXT,) * _PROOF_TEXTS
    events = runner.submit(Embed(_PROOF_REQUEST, "", texts, None))
    while not runner.is_idle:
        events += runner.step()
    if not events or not isinstance(events[-1], Embedded):
        raise LoadError("it loads, but it cannot make vectors")


if __name__ == "__main__":
    try:
        main()
    except ParentGone:
        sys.exit(0)
