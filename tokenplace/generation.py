"""The words that every part shares: a request for tokens, the events that answer it, and who can
produce them.

Start at `Generator`: an engine, a remote donor and the router all are one, so the HTTP API cannot
tell them apart and neither can a test. Nothing here knows HTTP, libp2p or llama.cpp.

Differs from OpenAI's stream: events carry token ids and raw bytes, never text. Text is made once,
by whoever asked (`tokenplace.text`), so it survives a change of donor.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the worker process reads these words too; trio would cost it 0.3 s and 15 MB
    import trio.abc

SEED_BYTES = 8
CACHE_SCOPE_BYTES = 16
PROMPT_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made in an earlier turn. `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation. `role` is system, user, assistant or tool.

    tool_calls: of an assistant's turn. tool_call_id, name: of a tool's turn, which call it answers
    and whose result it is.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is the text of a JSON schema."""

    name: str
    description: str
    parameters: str


class ToolChoice(StrEnum):
    """Whether the model calls tools: as it likes, not at all, or at least one."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The model must call this tool."""

    name: str


@dataclass(frozen=True, slots=True)
class ChatInput:
    """Messages and tools, to be rendered by the model's chat template.

    parallel_tool_calls: whether one answer may hold several forced calls.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | NamedTool = ToolChoice.AUTO
    parallel_tool_calls: bool = True


@dataclass(frozen=True, slots=True)
class TextInput:
    """Raw text to continue, without a template."""

    prompt: str


@dataclass(frozen=True, slots=True)
class IdsInput:
    """Token ids to continue, as the app gave them: nothing is put before them."""

    ids: tuple[int, ...]


Input = ChatInput | TextInput | IdsInput


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn: sampler tp/1 (docs/protocol.md, section 7). Ranges are checked by
    `gen/1`.

    temperature: 0 takes the most likely token; otherwise 0 < t <= 2.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the smallest set of tokens whose probabilities reach this; 0 < top_p <= 1.
    min_p: drop tokens less likely than this share of the most likely one; 0 <= min_p <= 1.
    typical_p: keep the most typical tokens (arXiv:2202.00666) until their probabilities reach this;
    0 < typical_p <= 1, 1 keeps all.
    repeat_penalty: divides positive and multiplies negative logits of tokens among the last
    `repeat_last_n` of prompt and answer (arXiv:1909.05858); 0 < r <= 10, 1 does nothing.
    presence_penalty, frequency_penalty: subtracted once, or once for each time, from the logits of
    tokens that this answer already has; -2 to 2.
    logit_bias: (token id, what is added to its logit, -100 to 100), by ascending id.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def is_in_range(self) -> bool:
        """Are the values such that a sampler can work with them? NaN is in no range."""
        return (
            0 <= self.temperature <= 2
            and self.top_k >= 0
            and 0 < self.top_p <= 1
            and 0 <= self.min_p <= 1
            and 0 < self.typical_p <= 1
            and 0 < self.repeat_penalty <= 10
            and self.repeat_last_n >= 0
            and -2 <= self.presence_penalty <= 2
            and -2 <= self.frequency_penalty <= 2
            and all(-100 <= bias <= 100 for _, bias in self.logit_bias)
        )


@dataclass(frozen=True, slots=True)
class JsonObject:
    """The answer must be a JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer must be JSON that this schema, as JSON text, allows."""

    schema: str


@dataclass(frozen=True, slots=True)
class Wishes:
    """Which donors an app wants, or does not want. Never leaves this peer.

    order: peer ids to be asked first, in this order. only: no others, if not empty. ignore: never
    these. "self" is this peer's own engine. may_fall_back: others than those of `order` may answer
    too. quantizations: as in a GGUF's name, such as Q4_K_M; any, if empty. max_latency_s: no donor
    whose first token is expected later; None sets no limit.
    """

    order: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    may_fall_back: bool = True
    quantizations: tuple[str, ...] = ()
    max_latency_s: float | None = None


NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True)
class Resume:
    """Token ids that another donor already delivered for one choice (docs/protocol.md, section
    6)."""

    choice: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What is asked for. The same value travels every hop; the router fills in what names the
    artifact.

    model: the name as this peer's tables know it; never leaves this peer.
    artifact, template: sha256 in hex of what must run; empty until the router has chosen.
    max_tokens: None leaves it to the donor: what the context still holds.
    stop: strings that end a choice; at most `defaults.MAX_STOP_STRINGS`.
    seed: 8 bytes, always given, so that a resumed answer draws the same numbers.
    cache_scope: 16 random bytes of this requester and app; KV prefixes are shared only within it.
    as_of: the UTC date that the template's clock shows, YYYY-MM-DD.
    attempt: 0 for the first donor asked, counted up by the router. is_hedge: another donor is asked
    at the same time, and lets the request wait.
    streamed: the app sees tokens as they come; if not, an answer may start again on another donor
    at any time.
    ignore_eog: go on after end-of-generation tokens; for benchmarks, as llama.cpp's `ignore_eos`.
    n: how many answers, each a choice of its own; 1 to `defaults.MAX_CHOICES`.
    top_logprobs: with each token its log-probability, and those of so many most likely ones; None
    wants none.
    output: what form each answer must have, if any.
    prompt_digest: with `resume`, what the first donor's `Accepted` said.
    bucket: whose request it is, for fairness between requesters (docs/protocol.md, section 9); set
    by the donor's own peer, never from the wire.
    wishes: which donors may answer; never leaves this peer.
    id: what this peer's journal calls the request; never leaves this peer.
    """

    model: str
    input: Input
    sampling: SamplingParams
    seed: bytes
    cache_scope: bytes
    as_of: str
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eog: bool = False
    artifact: str = ""
    template: str = ""
    attempt: int = 0
    streamed: bool = True
    n: int = 1
    top_logprobs: int | None = None
    output: JsonObject | JsonSchema | None = None
    resume: tuple[Resume, ...] = ()
    prompt_digest: bytes = b""
    is_hedge: bool = False
    bucket: str = ""
    wishes: Wishes = NO_WISHES
    id: str = ""


class Phase(StrEnum):
    """What a donor is doing for a request that has not finished."""

    QUEUED = "queued"
    LOADING = "loading"
    PREFILL = "prefill"
    DECODE = "decode"
    REQUEUED = "requeued"


THINK_TAGS = ("<think>", "[THINK]")
"""What a template may have begun an answer with (`Accepted.begun`)."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """First event: the request was understood and will run.

    prompt_digest: sha256 of the prompt's token ids as little-endian u32.
    n_prompt, n_cached: prompt tokens, and how many of them need no prefill.
    n_ctx, max_new: the context's size, and how many tokens this answer may have at the most.
    eta_ms: expected time to the first token. position: requests ahead of this one. wait_ms: of
    `eta_ms` what passes before it begins; an engine tells its own peer, nobody else.
    begun: which of `THINK_TAGS` the template itself has begun the answer with: whoever asked reads
    the answer as if it stood before the first token; empty for most models.
    donor: peer id of who accepted, filled in by the requester's side; empty for this process's own
    engine. served: what answers, as NAME@sha256:HEX; filled in by the router.
    """

    prompt_digest: bytes
    n_prompt: int
    n_cached: int
    n_ctx: int
    max_new: int
    sampler: str
    eta_ms: int
    position: int
    begun: str = ""
    donor: str = ""
    served: str = ""
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Alive:
    """Proof of life, every 2 s; it proves no progress.

    progress: the share of the phase that is done, 0 to 1. position: requests ahead of this one.
    eta_ms: expected time to the first token from now; 0 once there is one, and where it is unknown.
    """

    phase: Phase
    progress: float
    position: int
    eta_ms: int = 0


@dataclass(frozen=True, slots=True)
class TopToken:
    """One of the most likely tokens at a place: its id, raw bytes and log-probability."""

    id: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely the model found a token: ln of the softmax over its raw logits, before penalties,
    bias, temperature and grammar. `top` has the most likely tokens there, best first.
    """

    logprob: float
    top: tuple[TopToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of one choice. `index` counts the choice's tokens from 0 and is contiguous.

    pieces: the raw bytes of each id; a character may be split between two. logprobs: one for each
    id if they were asked for, else empty.
    """

    choice: int
    index: int
    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class EogStop:
    """The model ended its turn with this end-of-generation id (which is not among the tokens)."""

    id: int


@dataclass(frozen=True, slots=True)
class StringStop:
    """The donor saw this stop string; the requester, who owns the text, finds the cut itself."""

    string: str


@dataclass(frozen=True, slots=True)
class LengthStop:
    """`max_new` tokens were generated."""


@dataclass(frozen=True, slots=True)
class GrammarStop:
    """What `output` or a forced tool call demands is complete: nothing may follow."""


Stop = EogStop | StringStop | LengthStop | GrammarStop


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """Why one choice ended."""

    choice: int
    stop: Stop


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: of the prompt, of them found in the KV cache, and delivered, over all choices.

    What was resumed is not counted as delivered again.
    """

    n_prompt: int
    n_cached: int
    n_completion: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the donor's time went, in milliseconds."""

    queue_ms: int
    prefill_ms: int
    decode_ms: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of an answer that is whole. Nothing follows."""

    choices: tuple[ChoiceEnd, ...]
    usage: Usage
    timings: Timings


Event = Accepted | Alive | Tokens | Finished


class Generator(Protocol):
    """Anything that answers a request with events: `Accepted`, then `Alive` and `Tokens`, then
    `Finished`.

    A router that fails over yields `Accepted` again, of the next donor, also between `Tokens` when
    that one goes on with the answer; the last one counts.

    `generate` opens the answer: `async with generator.generate(request) as events: async for event
    in events: ...`. Leaving the block early cancels the work at every hop. A failure is raised from
    the iteration as a `TokenplaceError`; an answer that ends without `Finished` and without an
    error does not exist. Implementations are async generator methods under `trio.as_safe_channel`.
    """

    def generate(
        self, request: GenerateRequest
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Event]]: ...
