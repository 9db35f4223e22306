"""A donor's own model as a `Generator`. Start at `open_engine`.

The parent's side, in trio: checks the request, renders the chat, hands text to the worker process,
and turns what comes back into events. Imports no llama_cpp and no numpy.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.engine.guard import Segment
from tokenplace.engine.launch import EngineSpec as EngineSpec
from tokenplace.engine.messages import Done, NewTokens, Queued, Refused, Submit
from tokenplace.engine.supervisor import Answer, Mail, Supervisor
from tokenplace.engine.supervisor import EngineLoad as EngineLoad
from tokenplace.engine.template import TemplateRenderer, template_hash
from tokenplace.errors import (
    DONOR_ERRORS,
    BadFormat,
    ConfigError,
    ErrorCode,
    InvalidRequest,
    ModelNotOffered,
    TemplateMismatch,
    TokenplaceError,
    Unsupported,
)
from tokenplace.generation import (
    Accepted,
    ChatInput,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    LengthStop,
    Stop,
    StringStop,
    TextInput,
    Timings,
    Tokens,
    Usage,
)

_SAMPLER: Final = "tp/1"
_CHOICE: Final = 0


@dataclass(frozen=True)
class EngineInfo:
    """What a donor may say of its model: the fields of an offer (docs/protocol.md, section 3).

    template is empty, and "chat" not among the features, when the file has no chat template.
    """

    name: str
    artifact: str
    template: str
    profile: str
    n_ctx: int
    features: tuple[str, ...]


class Engine:
    """One loaded model. Made by `open_engine`."""

    def __init__(
        self, info: EngineInfo, supervisor: Supervisor, renderer: TemplateRenderer | None
    ) -> None:
        self.info = info
        self._supervisor = supervisor
        self._renderer = renderer

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
        `TemplateFailed`, `ContextLengthExceeded`, `RequestTooBig`, `DonorBusy`, `Quarantined`,
        `WorkerCrashed`, `DonorInternalError`, `DonorFinishing`.
        """
        self._check(request)
        submit = to_submit(request, await self._segments(request))
        answer = await self._supervisor.submit(submit)
        try:
            while True:
                mail = await _next_mail(answer)
                if mail is None:
                    yield answer.alive()
                    continue
                yield to_event(mail)
                if isinstance(mail, Done):
                    return
        finally:
            self._supervisor.forget(answer)

    def _check(self, request: GenerateRequest) -> None:
        if request.artifact and request.artifact != self.info.artifact:
            raise ModelNotOffered
        if request.resume:
            raise Unsupported("resume")
        if isinstance(request.input, ChatInput):
            if not self.info.template:
                raise Unsupported("chat")
            if request.template and request.template != self.info.template:
                raise TemplateMismatch
        try:
            date.fromisoformat(request.as_of)
        except ValueError:
            raise BadFormat("as_of is not a date") from None

    async def _segments(self, request: GenerateRequest) -> tuple[Segment, ...]:
        """The prompt as text. A raw prompt is the user's own words: no control tokens in it."""
        match request.input:
            case TextInput(prompt):
                _check_text(prompt, "prompt")
                return ((prompt, False),)
            case ChatInput(messages):
                for message in messages:
                    _check_text(message.role, "messages")
                    _check_text(message.content, "messages")
                assert self._renderer is not None, "checked before"
                return await self._renderer.render(messages, request.as_of)


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
            features=("chat",) if renderer else (),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            yield Engine(info, supervisor, renderer)
            nursery.cancel_scope.cancel()
    finally:
        if renderer is not None:
            await renderer.aclose()
        await supervisor.aclose()


def to_submit(request: GenerateRequest, segments: tuple[Segment, ...]) -> Submit:
    """The worker's part of a request; its id is given later."""
    sampling = request.sampling
    return Submit(
        request=0,
        segments=segments,
        temperature=float(sampling.temperature),
        top_k=sampling.top_k,
        top_p=float(sampling.top_p),
        min_p=float(sampling.min_p),
        seed=request.seed,
        cache_scope=request.cache_scope,
        max_tokens=request.max_tokens,
        stop=tuple(stop.encode() for stop in request.stop),
        ignore_eog=request.ignore_eog,
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
            )
        case NewTokens():
            return Tokens(_CHOICE, mail.index, mail.ids, mail.pieces)
        case Done():
            return Finished(
                (ChoiceEnd(_CHOICE, _stop(mail)),),
                Usage(mail.n_prompt, mail.n_cached, mail.n_completion),
                Timings(mail.queue_ms, mail.prefill_ms, mail.decode_ms),
            )
        case Refused():
            raise DONOR_ERRORS[ErrorCode(mail.code)](mail.detail, numbers=dict(mail.numbers))
        case TokenplaceError():
            raise mail


def _stop(done: Done) -> Stop:
    if done.eog_id is not None:
        return EogStop(done.eog_id)
    if done.stop_string is not None:
        return StringStop(done.stop_string.decode("utf-8", "replace"))
    return LengthStop()


async def _next_mail(answer: Answer) -> Mail | None:
    """None when it is time for a heartbeat: only after `Accepted`, which comes first."""
    patience_s = defaults.HEARTBEAT_S if answer.phase is not None else float("inf")
    with trio.move_on_after(patience_s):
        return await answer.receive()
    return None


def _check_text(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("The text is not valid Unicode.", param=param) from None
