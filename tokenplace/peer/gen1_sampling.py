"""How tokens are drawn, in gen/1 (docs/protocol.md, section 7). Start at `sampling_fields` and
`read_sampling`. Pure.
"""

from __future__ import annotations

import re
from typing import Any, Final

from tokenplace import defaults
from tokenplace.errors import InvalidRequest
from tokenplace.generation import SamplingParams
from tokenplace.peer.gen1_fields import integer, number

_USUAL: Final = SamplingParams()
_ID: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_MAX_ID: Final = (1 << 32) - 1


def sampling_fields(sampling: SamplingParams) -> dict[str, object]:
    """The first four always, of the others those that do something."""
    fields: dict[str, object] = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }
    if sampling.typical_p != 1:
        fields["typical_p"] = sampling.typical_p
    if sampling.repeat_penalty != 1:
        fields["repeat_penalty"] = sampling.repeat_penalty
        fields["repeat_last_n"] = sampling.repeat_last_n
    if sampling.presence_penalty != 0:
        fields["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty != 0:
        fields["frequency_penalty"] = sampling.frequency_penalty
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias}
    return fields


def read_sampling(fields: dict[str, Any]) -> SamplingParams:
    """Those that are not there are as usual. Raises `InvalidRequest`."""
    top_k = integer(fields, "top_k", 0, defaults.MAX_TOP_K)
    last_n = integer(fields, "repeat_last_n", 0, defaults.MAX_REPEAT_LAST_N)
    return SamplingParams(
        temperature=number(fields, "temperature", _USUAL.temperature, lambda t: 0 <= t <= 2),
        top_k=_USUAL.top_k if top_k is None else top_k,
        top_p=number(fields, "top_p", _USUAL.top_p, lambda p: 0 < p <= 1),
        min_p=number(fields, "min_p", _USUAL.min_p, lambda p: 0 <= p <= 1),
        typical_p=number(fields, "typical_p", 1.0, lambda p: 0 < p <= 1),
        repeat_penalty=number(fields, "repeat_penalty", 1.0, lambda r: 0 < r <= 10),
        repeat_last_n=_USUAL.repeat_last_n if last_n is None else last_n,
        presence_penalty=number(fields, "presence_penalty", 0.0, _is_penalty),
        frequency_penalty=number(fields, "frequency_penalty", 0.0, _is_penalty),
        logit_bias=_logit_bias(fields),
    )


def _is_penalty(value: float) -> bool:
    return -2 <= value <= 2


def _logit_bias(fields: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    """By ascending id: JSON objects have no order, and ids one spelling."""
    biases = fields.get("logit_bias", {})
    if type(biases) is not dict or len(biases) > defaults.MAX_LOGIT_BIAS:
        raise InvalidRequest(
            f"logit_bias must be an object of at most {defaults.MAX_LOGIT_BIAS} fields",
            param="logit_bias",
        )
    for token_id, bias in biases.items():
        if (
            not _ID.fullmatch(token_id)
            or int(token_id) > _MAX_ID
            or type(bias) not in (int, float)
            or not -100 <= bias <= 100
        ):
            raise InvalidRequest(
                "logit_bias must have numbers from -100 to 100 by token id", param="logit_bias"
            )
    return tuple(sorted((int(token_id), float(bias)) for token_id, bias in biases.items()))
