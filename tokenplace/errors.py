"""One family of errors. The class says whose fault it was, its docstring is what the user reads.

Start at `TokenplaceError`. Each class knows its HTTP status, its code (one closed list,
docs/protocol.md, section 8), the scope of the fault, and whether another donor could do better: the
router retries by that alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar


class Scope(StrEnum):
    """Whose fault an error is."""

    DONOR = "donor"
    PATH = "path"
    RELAY = "relay"
    SELF = "self"
    APP = "app"


class ErrorCode(StrEnum):
    """The closed list of end reasons. The first block crosses the wire, the second is only ever
    said locally."""

    BUSY = "busy"
    TOO_BIG = "too_big"
    BAD_FORMAT = "bad_format"
    UNKNOWN_KEY = "unknown_key"
    STALE_EPOCH = "stale_epoch"
    UNSUPPORTED = "unsupported"
    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    MODEL_NOT_OFFERED = "model_not_offered"
    TEMPLATE_MISMATCH = "template_mismatch"
    TEMPLATE_FAILED = "template_failed"
    PROMPT_MISMATCH = "prompt_mismatch"
    RESUME_REJECTED = "resume_rejected"
    WORKER_CRASHED = "worker_crashed"
    QUARANTINED = "quarantined"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    FINISHING = "finishing"
    INTERNAL = "internal"

    CONNECT_FAILED = "connect_failed"
    CONNECTION_LOST = "connection_lost"
    DONOR_SILENT = "donor_silent"
    PROTOCOL_ERROR = "protocol_error"
    MODEL_NOT_FOUND = "model_not_found"
    NO_DONOR_FOR_MODEL = "no_donor_for_model"
    SEARCH_INCOMPLETE = "search_incomplete"
    OWN_NETWORK_DOWN = "own_network_down"
    UNTRUSTED_DONOR_TOOLS = "untrusted_donor_tools"
    STOPPING = "stopping"
    CONFIG = "config"


class TokenplaceError(Exception):
    """Something went wrong inside tokenplace."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    http_status: ClassVar[int] = 500
    scope: ClassVar[Scope] = Scope.SELF
    retry_elsewhere: ClassVar[bool] = False

    def __init__(
        self,
        detail: str = "",
        *,
        hint: str = "",
        param: str | None = None,
        retry_after_s: float | None = None,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        """
        detail: what happened this time, for the user; never text of a prompt or an answer.
        hint: what to do about it. param: the request's field at fault.
        retry_after_s: when asking again makes sense. numbers: the donor's own figures, e.g.
        {"n_ctx": 2048}.
        """
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s
        self.numbers = dict(numbers or {})

    @property
    def user_text(self) -> str:
        """The class's sentence, what happened this time, and what to do about it."""
        general = inspect.cleandoc(type(self).__doc__ or "").split("\n\n")[0].replace("\n", " ")
        return " ".join(part for part in (general, self.detail, self.hint) if part)

    def __str__(self) -> str:
        return self.user_text


# ---------------------------------------------------------------- said by a donor


class DonorBusy(TokenplaceError):
    """The donor has no room for this request now."""

    code, http_status, scope, retry_elsewhere = ErrorCode.BUSY, 503, Scope.DONOR, True


class DonorFinishing(TokenplaceError):
    """The donor is finishing its last answers before it stops."""

    code, http_status, scope, retry_elsewhere = ErrorCode.FINISHING, 503, Scope.DONOR, True


class RequestTooBig(TokenplaceError):
    """The request is larger than a donor takes."""

    code, http_status, scope = ErrorCode.TOO_BIG, 413, Scope.APP


class BadFormat(TokenplaceError):
    """The donor could not read the request."""

    code, http_status, scope, retry_elsewhere = ErrorCode.BAD_FORMAT, 502, Scope.PATH, True


class UnknownKey(TokenplaceError):
    """The donor no longer has the key that the request was sealed to."""

    code, http_status, scope, retry_elsewhere = ErrorCode.UNKNOWN_KEY, 503, Scope.DONOR, True


class StaleEpoch(TokenplaceError):
    """The donor did not know the epoch that the request named."""

    code, http_status, scope, retry_elsewhere = ErrorCode.STALE_EPOCH, 503, Scope.DONOR, True


class Unsupported(TokenplaceError):
    """The donor does not support something that the request requires."""

    code, http_status, scope, retry_elsewhere = ErrorCode.UNSUPPORTED, 503, Scope.DONOR, True


class InvalidRequest(TokenplaceError):
    """The request is not valid."""

    code, http_status, scope = ErrorCode.INVALID_REQUEST, 400, Scope.APP


class ContextLengthExceeded(TokenplaceError):
    """The prompt is longer than the model's context."""

    code, http_status, scope = ErrorCode.CONTEXT_LENGTH_EXCEEDED, 400, Scope.APP

    @property
    def small_ctx(self) -> int:
        """A context of so many tokens is too small, by the donor's figures; 0 if it told none."""
        return max(self.numbers.get("n_ctx", 0), self.numbers.get("n_prompt", 0), 0)


class ModelNotOffered(TokenplaceError):
    """The donor does not offer this model any more."""

    code, http_status, scope, retry_elsewhere = ErrorCode.MODEL_NOT_OFFERED, 503, Scope.DONOR, True


class TemplateMismatch(TokenplaceError):
    """The donor renders chats with another template than the one asked for."""

    code, http_status, scope, retry_elsewhere = ErrorCode.TEMPLATE_MISMATCH, 503, Scope.DONOR, True


class TemplateFailed(TokenplaceError):
    """The model's chat template could not render these messages."""

    code, http_status, scope = ErrorCode.TEMPLATE_FAILED, 400, Scope.APP


class PromptMismatch(TokenplaceError):
    """The donor computed another prompt than the one being resumed."""

    code, http_status, scope, retry_elsewhere = ErrorCode.PROMPT_MISMATCH, 502, Scope.DONOR, True


class ResumeRejected(TokenplaceError):
    """The donor cannot continue from the tokens delivered so far."""

    code, http_status, scope, retry_elsewhere = ErrorCode.RESUME_REJECTED, 502, Scope.DONOR, True


class WorkerCrashed(TokenplaceError):
    """The process that ran the model died; it is being restarted."""

    code, http_status, scope, retry_elsewhere = ErrorCode.WORKER_CRASHED, 502, Scope.DONOR, True


class Quarantined(TokenplaceError):
    """This request crashed the donor's model before and is not tried again."""

    code, http_status, scope = ErrorCode.QUARANTINED, 400, Scope.APP


class DeadlineExceeded(TokenplaceError):
    """The answer took longer than is allowed."""

    code, http_status, scope, retry_elsewhere = ErrorCode.DEADLINE_EXCEEDED, 504, Scope.DONOR, True


class DonorInternalError(TokenplaceError):
    """The donor failed for a reason that it does not know."""

    code, http_status, scope, retry_elsewhere = ErrorCode.INTERNAL, 502, Scope.DONOR, True


# ---------------------------------------------------------------- found on this side


class ConnectFailed(TokenplaceError):
    """The donor could not be reached."""

    code, http_status, scope, retry_elsewhere = ErrorCode.CONNECT_FAILED, 503, Scope.PATH, True


class ConnectionLost(TokenplaceError):
    """The connection to the donor ended before its answer did."""

    code, http_status, scope, retry_elsewhere = ErrorCode.CONNECTION_LOST, 502, Scope.PATH, True


class DonorSilent(TokenplaceError):
    """The donor stopped answering."""

    code, http_status, scope, retry_elsewhere = ErrorCode.DONOR_SILENT, 504, Scope.PATH, True


class RemoteProtocolError(TokenplaceError):
    """The other peer broke the protocol. It was dropped."""

    code, http_status, scope, retry_elsewhere = ErrorCode.PROTOCOL_ERROR, 502, Scope.DONOR, True


class ModelNotFound(TokenplaceError):
    """No model of that name is known here."""

    code, http_status, scope = ErrorCode.MODEL_NOT_FOUND, 404, Scope.APP


class NoDonorForModel(TokenplaceError):
    """Nobody offers this model now."""

    code, http_status, scope = ErrorCode.NO_DONOR_FOR_MODEL, 503, Scope.SELF


class NoDonorAsWished(NoDonorForModel):
    """Donors offer this model now, but none as the request wishes."""


class UntrustedDonorTools(TokenplaceError):
    """A request with tools goes only to donors that this peer's user trusts: a donor writes the
    tool calls that a program then carries out."""

    code, http_status, scope = ErrorCode.UNTRUSTED_DONOR_TOOLS, 403, Scope.APP


class SearchIncomplete(TokenplaceError):
    """No donor was found yet, but not everybody has been asked."""

    code, http_status, scope = ErrorCode.SEARCH_INCOMPLETE, 503, Scope.SELF


class OwnNetworkDown(TokenplaceError):
    """No donor can be reached: this machine's own network seems to be down, or all are gone at
    once."""

    code, http_status, scope = ErrorCode.OWN_NETWORK_DOWN, 503, Scope.SELF


class PeerStopping(TokenplaceError):
    """This peer is being stopped."""

    code, http_status, scope = ErrorCode.STOPPING, 503, Scope.SELF


class ModelFetchFailed(TokenplaceError):
    """The model could not be fetched."""

    # Nobody asked over HTTP and no donor is at fault: the code and status of the base class stand.


class ConfigError(TokenplaceError):
    """A setting, file or flag cannot be used."""

    code, http_status, scope = ErrorCode.CONFIG, 500, Scope.SELF

    @property
    def user_text(self) -> str:
        """What is wrong and what to do about it; the class's sentence would add nothing."""
        return " ".join(part for part in (self.detail, self.hint) if part) or super().user_text


DONOR_ERRORS: dict[ErrorCode, type[TokenplaceError]] = {
    error.code: error
    for error in (
        DonorBusy,
        DonorFinishing,
        RequestTooBig,
        BadFormat,
        UnknownKey,
        StaleEpoch,
        Unsupported,
        InvalidRequest,
        ContextLengthExceeded,
        ModelNotOffered,
        TemplateMismatch,
        TemplateFailed,
        PromptMismatch,
        ResumeRejected,
        WorkerCrashed,
        Quarantined,
        DeadlineExceeded,
        DonorInternalError,
    )
}
"""Every code that a donor may send, and the error it becomes on the requester's side."""


def first_error(error: BaseException) -> BaseException:
    """The first error inside groups of groups: one is enough for a person."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
