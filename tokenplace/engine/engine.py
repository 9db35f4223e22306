"""A donor's own model as a `Generator`. Start at `open_engine`.

The parent's side, in trio: checks the request, renders the chat, hands text to the worker process,
and turns what comes back into events. Imports no llama_cpp and no numpy.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, replace
from datetime import date
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.engine import operating
from tokenplace.engine.constraint import grammar_for, grammar_param
from tokenplace.engine.grammar_check import GrammarChecker
from tokenplace.engine.launch import EngineSpec as EngineSpec
from tokenplace.engine.messages import Done, NewTokens, Queued, Ready, Refused, Submit
from tokenplace.engine.prompt import Prompt, check_text, prompt_of
from tokenplace.engine.supervisor import Answer, Mail, Supervisor
from tokenplace.engine.supervisor import EngineLoad as EngineLoad
from tokenplace.engine.template import TemplateRenderer, template_hash
from tokenplace.engine.tools import ToolFormat
from tokenplace.errors import (
    BadFormat,
    ConfigError,
    ModelNotOffered,
    RequestTooBig,
    TemplateMismatch,
    TokenplaceError,
    Unsupported,
)
from tokenplace.features import Feature
from tokenplace.generation import (
    Accepted,
    Alive,
    ChatInput,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    GrammarStop,
    LengthStop,
    Logprob,
    Stop,
    StringStop,
    Timings,
    Tokens,
    ToolChoice,
    TopToken,
    Usage,
)
from tokenplace.operations import (
    FLOAT_BYTES,
    CountRequest,
    Embeddings,
    EmbedRequest,
    ScoreRequest,
    Scores,
)

_SAMPLER: Final = "tp/1"


@dataclass(frozen=True)
class EngineInfo:
    """What a donor may say of its model: the fields of an offer (docs/protocol.md, section 3).

    template is empty, and "chat" not among the features, when the file has no chat template.
    n_slots: requests that run at once. n_dimensions: of its vectors; 0 for a model that generates.
    """

    name: str
    artifact: str
    template: str
    profile: str
    n_ctx: int
    features: tuple[str, ...]
    n_slots: int = 1
    n_dimensions: int = 0


class Engine:
    """One loaded model. Made by `open_engine`."""

    def __init__(
        self,
        info: EngineInfo,
        supervisor: Supervisor,
        renderer: TemplateRenderer | None,
        checker: GrammarChecker,
    ) -> None:
        self.info = info
        self._supervisor = supervisor
        self._renderer = renderer
        self._checker = checker
        self._tool_format = ToolFormat.JSON if renderer is None else renderer.tool_format
        self._control_texts = frozenset(supervisor.ready.control_texts)

    @property
    def load(self) -> EngineLoad:
        """How busy it is, and how fast."""
        return self._supervisor.load

    @property
    def worker_pid(self) -> int:
        """Process id of the worker, for people and for tests that kill it."""
        return self._supervisor.worker_pid

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Answer a request: see `generation.Generator`.

        Raises `ModelNotOffered`, `TemplateMismatch`, `Unsupported`, `InvalidRequest`, `BadFormat`,
        `TemplateFailed`, `ContextLengthExceeded`, `RequestTooBig`, `PromptMismatch`,
        `ResumeRejected`, `DonorBusy`, `Quarantined`, `WorkerCrashed`, `DonorInternalError`,
        `DonorFinishing`.
        """
        self._check_generates()
        self._check(request)
        grammar = grammar_for(request, self._tool_format, self._control_texts)
        prompt = await self._prompt(request)
        if grammar:
            await self._checker.check(grammar, grammar_param(request), request.bucket)
        answer = await self._supervisor.submit(to_submit(request, prompt, grammar))
        try:
            while True:
                mail = await _next_mail(answer)
                if mail is None:
                    yield answer.alive(trio.current_time())
                    continue
                event = to_event(mail)
                if isinstance(event, Accepted):
                    event = replace(event, begun=prompt.begun)
                yield event
                if isinstance(mail, Done):
                    return
        finally:
            self._supervisor.forget(answer)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors of texts, if this model is made for that.

        Raises `ModelNotOffered`, `Unsupported`, `InvalidRequest`, `ContextLengthExceeded`,
        `RequestTooBig`, `DonorBusy`, `Quarantined`, `WorkerCrashed`, `DonorInternalError`,
        `DonorFinishing`.
        """
        self._check_artifact(request.artifact)
        if not self.info.n_dimensions:
            raise Unsupported(Feature.EMBEDDINGS)
        for text in request.inputs:
            if isinstance(text, str):
                check_text(text, "input")
        n_numbers = min(request.dimensions or defaults.MAX_EMBED_DIMENSIONS, self.info.n_dimensions)
        n_bytes = FLOAT_BYTES * n_numbers * len(request.inputs)
        if n_bytes > defaults.MAX_VECTORS_BYTES:
            raise RequestTooBig(
                f"Vectors of {n_bytes} bytes; {defaults.MAX_VECTORS_BYTES} are made at once."
            )
        return await operating.embed(self._supervisor, request)

    async def count(self, request: CountRequest) -> int:
        """How many tokens a prompt has. Nothing is computed.

        Raises as `generate`, but for what only generating can raise.
        """
        self._check(request)
        return await operating.count(self._supervisor, await self._prompt(request))

    async def score(self, request: ScoreRequest) -> Scores:
        """How likely this model finds given ids after a prompt.

        Raises as `generate`, but for what only generating can raise.
        """
        self._check_generates()
        self._check(request)
        return await operating.score(self._supervisor, request, await self._prompt(request))

    def _check_generates(self) -> None:
        if self.info.n_dimensions:
            raise Unsupported("generate")

    def _check_artifact(self, artifact: str) -> None:
        if artifact and artifact != self.info.artifact:
            raise ModelNotOffered

    def _check(self, request: GenerateRequest | CountRequest | ScoreRequest) -> None:
        self._check_artifact(request.artifact)
        if isinstance(request.input, ChatInput):
            if self._renderer is None:
                raise Unsupported("chat")
            if request.template and request.template != self.info.template:
                raise TemplateMismatch
            has_tools = request.input.tools and request.input.tool_choice is not ToolChoice.NONE
            if has_tools and not self._renderer.has_tools:
                raise Unsupported("tools")
        try:
            date.fromisoformat(request.as_of)
        except ValueError:
            raise BadFormat("as_of is not a date") from None

    async def _prompt(self, request: GenerateRequest | CountRequest | ScoreRequest) -> Prompt:
        return await prompt_of(request.input, request.as_of, self._renderer)


@asynccontextmanager
async def open_engine(spec: EngineSpec) -> AsyncIterator[Engine]:
    """Load a model, and serve until the block exits; inside it, the model has generated already.

    Raises `ConfigError`, naming the file and the reason. An error inside the block leaves it in an
    `ExceptionGroup`, as from a nursery.
    """
    if spec.n_threads < 1:
        raise ConfigError(f"{spec.n_threads} threads cannot run a model.")
    supervisor = await Supervisor.start(spec)
    renderer = None
    checker = GrammarChecker(supervisor.ready.control_texts)
    try:
        ready = supervisor.ready
        if ready.template:
            renderer = TemplateRenderer(ready.template, ready.bos, ready.eos, ready.control_texts)
            try:
                await renderer.start()
            except ConfigError as error:
                raise ConfigError(f"{spec.path}: {error.detail}") from None
        info = EngineInfo(
            name=spec.name,
            artifact=spec.artifact,
            template=template_hash(ready.template) if renderer else "",
            profile=ready.profile,
            n_ctx=ready.n_ctx,
            features=_features(ready, renderer),
            n_slots=ready.n_slots,
            n_dimensions=ready.n_dimensions,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            yield Engine(info, supervisor, renderer, checker)
            nursery.cancel_scope.cancel()
    finally:
        if renderer is not None:
            await renderer.aclose()
        await checker.aclose()
        await supervisor.aclose()


def _features(ready: Ready, renderer: TemplateRenderer | None) -> tuple[str, ...]:
    """What an offer says that the model can do, beside continuing a text."""
    if ready.n_dimensions:
        return (Feature.EMBEDDINGS,)
    if renderer is None:
        return ("grammar",)
    return ("chat", "tools", "grammar") if renderer.has_tools else ("chat", "grammar")


def to_submit(request: GenerateRequest, prompt: Prompt, grammar: str) -> Submit:
    """The worker's part of a request; its id is given later."""
    return Submit(
        request=0,
        bucket=request.bucket,
        segments=prompt.segments,
        sampling=astuple(request.sampling),
        n=request.n,
        seed=request.seed,
        cache_scope=request.cache_scope,
        max_tokens=request.max_tokens,
        stop=tuple(stop.encode() for stop in request.stop),
        ignore_eog=request.ignore_eog,
        top_logprobs=request.top_logprobs,
        grammar=grammar,
        resume=tuple((resume.choice, resume.ids) for resume in request.resume),
        prompt_digest=request.prompt_digest,
        prompt_ids=prompt.ids,
    )


def to_event(mail: Mail) -> Event:
    """A worker's message as an event. Raises the `TokenplaceError` that it stands for."""
    match mail:
        case Queued():
            return Accepted(
                prompt_digest=mail.prompt_digest,
                n_prompt=mail.n_prompt,
                n_cached=mail.n_cached,
                n_ctx=mail.n_ctx,
                max_new=mail.max_new,
                sampler=_SAMPLER,
                eta_ms=mail.eta_ms,
                position=mail.position,
                wait_ms=mail.wait_ms,
            )
        case NewTokens():
            logprobs = tuple(
                Logprob(own, tuple(TopToken(*token) for token in top)) for own, top in mail.logprobs
            )
            return Tokens(mail.choice, mail.index, mail.ids, mail.pieces, logprobs)
        case Alive():
            return mail
        case Done():
            return Finished(
                tuple(ChoiceEnd(choice, _stop(end)) for choice, end in mail.ends),
                Usage(mail.n_prompt, mail.n_cached, mail.n_completion),
                Timings(mail.queue_ms, mail.prefill_ms, mail.decode_ms),
            )
        case Refused():
            raise operating.error_of(mail)
        case TokenplaceError():
            raise mail
        case _:
            raise AssertionError(f"{type(mail).__name__} answers another question")


def _stop(end: int | bytes | str) -> Stop:
    """What ended a choice: see `messages.Done`."""
    if isinstance(end, int):
        return EogStop(end)
    if isinstance(end, bytes):
        return StringStop(end.decode("utf-8", "replace"))
    return GrammarStop() if end == "grammar" else LengthStop()


async def _next_mail(answer: Answer) -> Mail | None:
    """None when it is time for a heartbeat: only after `Accepted`, which comes first."""
    patience_s = defaults.HEARTBEAT_S if answer.phase is not None else float("inf")
    with trio.move_on_after(patience_s):
        return await answer.receive()
    return None
