"""The process that runs one model: `python -m tokenplace.engine.worker`, started by `process.py`.

Start at `serve`. One thread: take what the parent sent, compute one step, send what came of it.
Between steps it never waits, when idle always. Whatever goes wrong in here costs this process and
nothing else, so there is no clean-up.
"""

from __future__ import annotations

import sys
import time
from typing import Final

from tokenplace.engine.batching import TokenBatcher
from tokenplace.engine.confine import ParentGone, ParentPipe, enter_child
from tokenplace.engine.llama import LlamaContext, LlamaModel, LoadError
from tokenplace.engine.messages import (
    Cancel,
    Done,
    FromWorker,
    Load,
    LoadFailed,
    Ready,
    Submit,
    ToWorker,
    from_value,
    to_value,
)
from tokenplace.engine.scheduler import Scheduler
from tokenplace.engine.sequence import Sequence, Vocabulary, admit

_PROOF_PROMPT: Final = "The quick brown fox jumps over the lazy dog. " * 6  # about 64 tokens
_PROOF_TOKENS: Final = 8
_PROOF_REQUEST: Final = -1


def main() -> None:
    """Load what the first message names, prove that it generates, then serve until the parent is
    gone.
    """
    pipe = enter_child(sys.argv[1:])
    load = from_value(pipe.receive())
    assert isinstance(load, Load), "the first message is Load"
    try:
        model = LlamaModel(load.path)
        context = LlamaContext(model, load.n_ctx, load.n_threads)
        scheduler = Scheduler(context, model.vocabulary, time.monotonic)
        prove(scheduler, model.vocabulary, context.n_ctx)
    except LoadError as error:
        pipe.send([to_value(LoadFailed(str(error)))])
        return
    model.log.stop()
    vocabulary = model.vocabulary
    ready = Ready(
        context.n_ctx,
        model.template,
        vocabulary.bos,
        vocabulary.eos,
        vocabulary.control_texts,
        context.profile,
        scheduler.prefill.tps,
        scheduler.decode.tps,
    )
    pipe.send([to_value(ready)])
    serve(pipe, scheduler, vocabulary, context.n_ctx)


def serve(pipe: ParentPipe, scheduler: Scheduler, vocabulary: Vocabulary, n_ctx: int) -> None:
    """Answer the parent's messages until it is gone."""
    batcher = TokenBatcher()
    while True:
        value = pipe.receive() if scheduler.is_idle else pipe.receive_nowait()
        events: list[FromWorker] = []
        while value is not None:
            message = from_value(value)
            if isinstance(message, Cancel):
                batcher.forget(message.request)
            events += _take(message, scheduler, vocabulary, n_ctx)
            value = pipe.receive_nowait()
        if events:  # before the step: a newcomer's deadlines count from its `accepted`
            pipe.send(map(to_value, events))
        if events := batcher.put(scheduler.step(), time.monotonic()):
            pipe.send(map(to_value, events))


def _take(
    message: ToWorker | FromWorker, scheduler: Scheduler, vocabulary: Vocabulary, n_ctx: int
) -> list[FromWorker]:
    match message:
        case Submit() as submit:
            sequence = admit(submit, vocabulary, n_ctx, time.monotonic())
            if isinstance(sequence, Sequence):
                return [scheduler.submit(sequence)]
            return [sequence]
        case Cancel(request):
            return scheduler.cancel(request)
        case _:
            raise AssertionError(f"{type(message).__name__} is not for a worker")


def prove(scheduler: Scheduler, vocabulary: Vocabulary, n_ctx: int) -> None:
    """Generate a few tokens, as a request would, so that a broken model is found now and the speeds
    are known.

    Raises `LoadError`.
    """
    submit = Submit(
        request=_PROOF_REQUEST,
        segments=((_PROOF_PROMPT, False),),
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        seed=bytes(8),
        cache_scope=b"",
        max_tokens=_PROOF_TOKENS,
        stop=(),
        ignore_eog=True,
    )
    sequence = admit(submit, vocabulary, n_ctx, time.monotonic())
    if not isinstance(sequence, Sequence):
        raise LoadError(f"a context of {n_ctx} tokens is too small")
    scheduler.submit(sequence)
    last: list[FromWorker] = []
    while not scheduler.is_idle:
        last = scheduler.step()
    if not last or not isinstance(last[-1], Done):
        raise LoadError("it loads, but it cannot generate")


if __name__ == "__main__":
    try:
        main()
    except ParentGone:
        sys.exit(0)
