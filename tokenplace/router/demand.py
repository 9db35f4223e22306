"""What a request asks of whoever answers it, and who can, may and is wanted to. Start at `screen`.

Pure. `policy` orders those who pass. Each step knows why it leaves somebody out, so that a request
which nobody passes is refused with the reason, and with what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tokenplace import defaults
from tokenplace.errors import InvalidRequest, NoDonorAsWished, UntrustedDonorTools
from tokenplace.features import Feature
from tokenplace.generation import (
    NO_WISHES,
    ChatInput,
    GenerateRequest,
    Input,
    NamedTool,
    ToolChoice,
    Wishes,
)
from tokenplace.operations import CountRequest, EmbedRequest, ScoreRequest
from tokenplace.router.policy import OWN_ENGINE, Candidate, expected_first_token_s, expected_total_s
from tokenplace.router.trust import ToolsFrom, Trust


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a model must be able to do. param: the request's field that asks for it."""

    feature: Feature
    param: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks.

    writes_text: a model made for embeddings cannot. has_tools: the answer may be a tool call, so a
    trusted donor must write it. Tools that were called before do not count, nor those that may not
    be called: whoever asked takes nothing in such an answer for a call.
    """

    needs: tuple[Need, ...] = ()
    writes_text: bool = True
    has_tools: bool = False
    wishes: Wishes = NO_WISHES

    @property
    def features(self) -> frozenset[str]:
        """All that a model must be able to do."""
        return frozenset(need.feature for need in self.needs)


@dataclass(frozen=True, slots=True)
class Sought:
    """Who could answer, as far as a search can tell: donors of a model with all of `features`, and
    if `peers` is not empty only these.
    """

    features: frozenset[str] = frozenset()
    peers: frozenset[str] = frozenset()


def demand_of(request: GenerateRequest | EmbedRequest | CountRequest | ScoreRequest) -> Demand:
    """What this request asks."""
    match request:
        case EmbedRequest():
            vectors = (Need(Feature.EMBEDDINGS, "model"),)
            return Demand(vectors, writes_text=False, wishes=request.wishes)
        case GenerateRequest():
            chat = request.input if isinstance(request.input, ChatInput) else None
            has_tools = chat is not None and may_call(chat)
            is_forced = chat is not None and (
                chat.tool_choice is ToolChoice.REQUIRED or isinstance(chat.tool_choice, NamedTool)
            )
            needs = _chat(request.input)
            if has_tools:
                needs += (Need(Feature.TOOLS, "tools"),)
            if request.output is not None:
                needs += (Need(Feature.GRAMMAR, "response_format"),)
            elif is_forced:
                needs += (Need(Feature.GRAMMAR, "tool_choice"),)
            return Demand(needs, has_tools=has_tools, wishes=request.wishes)
        case CountRequest():
            return Demand(_chat(request.input), writes_text=False)
        case ScoreRequest():
            return Demand(_chat(request.input))


def may_call(chat: ChatInput) -> bool:
    """May the answer be a tool call?"""
    return bool(chat.tools) and chat.tool_choice is not ToolChoice.NONE


def _chat(asked: Input) -> tuple[Need, ...]:
    return (Need(Feature.CHAT, "messages"),) if isinstance(asked, ChatInput) else ()


# ---------------------------------------------------------------- who passes


def screen(candidates: Sequence[Candidate], demand: Demand, trust: Trust) -> list[Candidate]:
    """Those that can, may and are wanted to answer, as they came; none only if there were none.

    Raises `InvalidRequest` if no model can, `NoDonorAsWished` if none is wanted, and
    `UntrustedDonorTools` if none may.
    """
    return _trusted(_wished(_able(candidates, demand), demand.wishes), demand, trust)


def sought(demand: Demand, trust: Trust) -> Sought | None:
    """Whom to look for when nobody passes of those who are known; None if nobody else could."""
    wishes = demand.wishes
    circles = []
    if wishes.only:
        circles.append(frozenset(wishes.only))
    if wishes.order and not wishes.may_fall_back:
        circles.append(frozenset(wishes.order))
    if demand.has_tools and trust.tools_from is ToolsFrom.TRUSTED:
        circles.append(frozenset(trust.peers))
    if not circles:
        return Sought(demand.features)
    peers = frozenset.intersection(*circles) - {OWN_ENGINE, *wishes.ignore}
    return Sought(demand.features, peers) if peers else None


def _able(candidates: Sequence[Candidate], demand: Demand) -> Sequence[Candidate]:
    left = candidates
    for need in demand.needs:
        able = [c for c in left if need.feature in c.features]
        if left and not able:
            raise InvalidRequest(f"{_models(left)} {_LACKS[need.feature]}.", param=need.param)
        left = able
    if demand.writes_text:
        able = [c for c in left if Feature.EMBEDDINGS not in c.features]
        if left and not able:
            raise InvalidRequest(f"{_models(left)} makes embeddings, no text.", param="model")
        left = able
    return left


_LACKS: Final = {
    Feature.CHAT: "takes no messages, only a raw prompt",
    Feature.TOOLS: "cannot call tools",
    Feature.GRAMMAR: "cannot be held to a form",
    Feature.EMBEDDINGS: "makes no embeddings",
}


def _models(candidates: Sequence[Candidate]) -> str:
    names = list(dict.fromkeys(c.name for c in candidates))
    if len(names) == 1:
        return f"The model {names[0]}, as it is offered now,"
    shown = ", ".join(names[: defaults.MAX_NAMES_IN_HINT])
    return f"Each of the {len(names)} models offered now ({shown})"


# By what an app calls them: OpenRouter's names.
_WISHES: Final[tuple[tuple[str, Callable[[Candidate, Wishes], bool]], ...]] = (
    ("only", lambda c, wishes: not wishes.only or c.called in wishes.only),
    ("ignore", lambda c, wishes: c.called not in wishes.ignore),
    (
        "order",
        lambda c, wishes: wishes.may_fall_back or not wishes.order or c.called in wishes.order,
    ),
    (
        "quantizations",
        lambda c, wishes: (
            not wishes.quantizations
            or c.quantization.lower() in {wish.lower() for wish in wishes.quantizations}
        ),
    ),
    (
        "max_latency",
        lambda c, wishes: (
            wishes.max_latency_s is None or expected_first_token_s(c) <= wishes.max_latency_s
        ),
    ),
)


def _wished(candidates: Sequence[Candidate], wishes: Wishes) -> Sequence[Candidate]:
    if wishes == NO_WISHES:
        return candidates
    left = candidates
    excluded = []
    for name, is_wanted in _WISHES:
        n_before = _n_donors(left)
        left = [c for c in left if is_wanted(c, wishes)]
        if n_gone := n_before - _n_donors(left):
            excluded.append(f"`{name}` excludes {n_gone}")
    if candidates and not left:
        n_donors = _n_donors(candidates)
        raise NoDonorAsWished(
            f"Of {n_donors} that could answer, {', '.join(excluded)}.",
            hint="`tokenplace peer status` shows who they are.",
        )
    return left


def _n_donors(candidates: Sequence[Candidate]) -> int:
    return len({c.donor for c in candidates})


def _trusted(candidates: Sequence[Candidate], demand: Demand, trust: Trust) -> list[Candidate]:
    if not demand.has_tools or trust.tools_from is ToolsFrom.ANY:
        return list(candidates)
    left = [c for c in candidates if c.is_own or c.donor in trust.peers]
    if candidates and not left:
        raise _untrusted(candidates, trust)
    return left


def _untrusted(candidates: Sequence[Candidate], trust: Trust) -> UntrustedDonorTools:
    """The refusal, with the commands that mend it: the best donors first."""
    best = sorted(candidates, key=lambda c: (c.rank, expected_total_s(c), c.donor))
    donors = list(dict.fromkeys(c.donor for c in best))
    commands = " or ".join(trust.command(donor) for donor in donors[: defaults.MAX_DONORS_IN_HINT])
    who = "1 donor that is not trusted" if len(donors) == 1 else f"{len(donors)}, none trusted"
    return UntrustedDonorTools(
        f"Who could answer now: {who}.",
        hint=f"Trust a donor that you know: {commands}. Or take tool calls from anybody: "
        f"{trust.command(f'--tools-from {ToolsFrom.ANY}')}.",
    )
