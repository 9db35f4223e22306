"""Writes tests/vectors/tp1.json: run as a module, `python -m`.

Tokens are those of the slow reference, by hand from docs/protocol.md, section 7. The file is part
of the specification: run it only when the sampler changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.engine import tp1
from tokenplace.generation import SamplingParams

PATH = Path(__file__).resolve().parent.parent / "vectors" / "tp1.json"
SEED = "0001020304050607"
ZEROS = "00" * 8
ONES = "ff" * 8
LARGEST = tp1.LARGEST

SHORT = [1.5, -0.25, 3.0, 2.0, -4.0, 0.5, 2.75, 1.0]
LONG = [tp1.float32(i * 37 % 101 / 10) for i in range(64)]
LONGER = [tp1.float32(i * 53 % 97 / 12) for i in range(64)]
TIED = [1.0, 2.0, 1.0, 1.0, 0.0, 1.0]
PEAKED = [4.0, *(1.0 + i / 64 for i in range(30))]
EDGE = [LARGEST, 3e38, -3e38, 0.0]

# name, logits, (temperature, top_k, top_p, min_p), seed, choice, index
PLAIN: list[tuple[str, list[float], tuple[float, int, float, float], str, int, int]] = [
    ("greedy", SHORT, (0, 40, 0.95, 0.05), SEED, 0, 0),
    ("greedy-equals-take-the-lowest-id", [0.0, 2.0, 1.0, 2.0, 2.0], (0, 0, 1, 0), SEED, 0, 0),
    ("plain-softmax", SHORT, (1, 0, 1, 0), SEED, 0, 0),
    ("plain-softmax-next-index", SHORT, (1, 0, 1, 0), SEED, 0, 1),
    ("plain-softmax-other-choice", SHORT, (1, 0, 1, 0), SEED, 1, 0),
    ("largest-choice-and-index", SHORT, (1, 0, 1, 0), ONES, 0xFFFFFFFF, 0xFFFFFFFF),
    ("temperature-flattens", SHORT, (2, 0, 1, 0), SEED, 0, 1),
    ("temperature-sharpens", SHORT, (0.25, 0, 1, 0), SEED, 0, 0),
    ("top-k", SHORT, (1, 2, 1, 0), SEED, 0, 0),
    ("top-k-equals-keep-the-lowest-ids", TIED, (1, 3, 1, 0), SEED, 0, 0),
    ("top-k-one", SHORT, (1, 1, 1, 0), SEED, 0, 0),
    ("top-k-above-the-vocabulary", SHORT, (1, 1 << 20, 1, 0), SEED, 0, 5),
    ("top-p", SHORT, (1, 0, 0.6, 0), SEED, 0, 0),
    ("exact-top-p-reached-by-equality", [0.0] * 4, (1, 0, 0.5, 0), SEED, 0, 0),
    ("top-p-keeps-at-least-one", SHORT, (1, 0, 1e-6, 0), SEED, 0, 0),
    ("top-p-is-of-what-top-k-kept", SHORT, (1, 3, 0.8, 0), SEED, 0, 0),
    ("top-p-before-temperature", SHORT, (2, 0, 0.8, 0), SEED, 0, 1),
    ("min-p", SHORT, (1, 0, 1, 0.4), SEED, 0, 0),
    ("min-p-one-keeps-equals", [3.0, 1.0, 3.0, 2.0], (1, 0, 1, 1), SEED, 0, 0),
    ("min-p-before-temperature", SHORT, (2, 0, 1, 0.5), SEED, 0, 0),
    ("defaults", LONG, (0.8, 40, 0.95, 0.05), SEED, 0, 7),
    ("everything-at-once", LONGER, (1.3, 30, 0.9, 0.1), ZEROS, 2, 100),
    ("one-token-vocabulary", [-7.5], (0.8, 40, 0.95, 0.05), ZEROS, 0, 0),
    ("equal-logits-in-order-of-ids", [0.0] * 16, (1, 0, 1, 0), ONES, 0, 3),
]

# name, logits, (temperature, top_k, top_p, min_p), index, typical_p
TYPICAL: list[tuple[str, list[float], tuple[float, int, float, float], int, float]] = [
    ("typical-p", SHORT, (1, 0, 1, 0), 1, 0.5),
    ("typical-p-drops-the-likeliest", PEAKED, (1, 0, 1, 0), 4, 0.4),
    ("typical-p-keeps-at-least-one", SHORT, (1, 0, 1, 0), 3, 1e-6),
    ("exact-typical-p-equals-keep-the-lowest-ids", [0.0] * 4, (1, 0, 1, 0), 5, 0.5),
    ("typical-p-is-of-what-top-k-kept", SHORT, (1, 4, 1, 0), 1, 0.6),
    ("typical-p-before-top-p", PEAKED, (1, 0, 0.5, 0), 5, 0.6),
    ("typical-p-before-min-p", SHORT, (1, 0, 1, 0.5), 5, 0.3),
    ("typical-p-before-temperature", SHORT, (2, 0, 1, 0), 5, 0.6),
]

# name, logits, the highest adjusted one is taken: sampling fields, prompt, answer
GREEDY: list[tuple[str, list[float], dict[str, Any], list[int], list[int]]] = [
    ("logit-bias", SHORT, {"logit_bias": [[2, -0.5], [7, 2.5]]}, [], []),
    ("logit-bias-of-minus-100-is-no-ban", [-250.0, 2.0], {"logit_bias": [[1, -100]]}, [], []),
    ("logit-bias-of-unknown-ids", SHORT, {"logit_bias": [[8, 100], [0xFFFFFFFF, 100]]}, [], []),
    ("logit-bias-rounds-to-float32", [1.0, 1.0], {"logit_bias": [[0, -1e-9]]}, [], []),
    ("repeat-penalty-divides", SHORT, {"repeat_penalty": 1.5}, [2], []),
    ("repeat-penalty-multiplies", [-1.0, -2.0, -1.5], {"repeat_penalty": 1.6}, [0], []),
    ("repeat-penalty-counts-once", SHORT, {"repeat_penalty": 1.05}, [2, 2, 2], [2]),
    ("repeat-penalty-below-one", SHORT, {"repeat_penalty": 0.5}, [3], []),
    ("repeat-window-ends", SHORT, {"repeat_penalty": 2, "repeat_last_n": 2}, [2, 3, 4], []),
    ("repeat-window-moves-on", SHORT, {"repeat_penalty": 2, "repeat_last_n": 2}, [2, 6], [0]),
    ("repeat-window-of-the-answer", SHORT, {"repeat_penalty": 2, "repeat_last_n": 2}, [6], [2, 4]),
    ("repeat-window-of-none", SHORT, {"repeat_penalty": 2, "repeat_last_n": 0}, [2], [2]),
    ("repeat-window-counts-repeats", SHORT, {"repeat_penalty": 2, "repeat_last_n": 3}, [2, 3], [3]),
    ("presence-penalty", SHORT, {"presence_penalty": 0.3}, [], [2, 2]),
    ("presence-penalty-spares-the-prompt", SHORT, {"presence_penalty": 2}, [2], [0]),
    ("presence-penalty-below-zero", SHORT, {"presence_penalty": -2}, [], [3]),
    ("frequency-penalty", SHORT, {"frequency_penalty": 0.1}, [], [2, 2, 2]),
    ("frequency-penalty-once", SHORT, {"frequency_penalty": 0.1}, [2, 2], [2]),
    ("frequency-penalty-below-zero", SHORT, {"frequency_penalty": -0.5}, [], [3, 3, 3]),
    ("bias-before-repeat", [-1.0, 0.3], {"logit_bias": [[0, 2]], "repeat_penalty": 2}, [0], []),
    ("repeat-before-presence", [3.0, 0.75], {"repeat_penalty": 2, "presence_penalty": 1}, [], [0]),
    ("largest-stays-finite", EDGE, {"repeat_penalty": 0.5}, [1, 2], []),
    ("lowest-stays-finite", [-3e38, -LARGEST], {"repeat_penalty": 10}, [0, 1], []),
]

# name, (temperature, top_k, top_p, min_p), more sampling fields, prompt, answer, allowed ids
DRAWN: list[
    tuple[
        str,
        tuple[float, int, float, float],
        dict[str, Any],
        list[int],
        list[int],
        list[int] | None,
    ]
] = [
    ("bias-before-top-k", (1, 1, 1, 0), {"logit_bias": [[7, 5]]}, [], [], None),
    ("penalties-before-softmax", (1, 0, 1, 0), {"presence_penalty": 2}, [], [2, 6], None),
    ("grammar-allows-it", (1, 0, 1, 0), {}, [], [0], [1, 3, 4]),
    ("grammar-forbids-it", (1, 0, 1, 0), {}, [], [], [1, 3, 5, 7]),
    ("grammar-greedy", (0, 0, 1, 0), {}, [], [], [1, 3, 5, 7]),
    ("grammar-before-top-k", (1, 1, 1, 0), {}, [], [], [4, 5]),
    ("grammar-before-min-p", (1, 0, 1, 0.9), {}, [], [], [0, 1, 4]),
    ("grammar-after-penalties", (0, 0, 1, 0), {"presence_penalty": 2}, [], [3], [3, 7]),
    ("grammar-leaves-one", (2, 0, 1, 0), {}, [], [2], [4]),
]
ALL_FIELDS = {
    "typical_p": 0.9,
    "repeat_penalty": 1.1,
    "repeat_last_n": 4,
    "presence_penalty": 0.25,
    "frequency_penalty": 0.5,
    "logit_bias": [[3, -1.5], [60, 0.75]],
}


def vectors() -> Iterator[dict[str, Any]]:
    for name, logits, usual, seed, choice, index in PLAIN:
        yield vector(name, logits, usual, {}, seed, choice, index)
    for name, logits, usual, index, typical_p in TYPICAL:
        yield vector(name, logits, usual, {"typical_p": typical_p}, SEED, 0, index)
    before: dict[str, Any]
    for name, logits, fields, prompt, answer in GREEDY:
        before = {"prompt": prompt, "answer": answer}
        yield vector(name, logits, (0, 0, 1, 0), fields, SEED, 0, len(answer), before)
    for name, usual, fields, prompt, answer, allowed in DRAWN:
        before = {"prompt": prompt, "answer": answer, "allowed": allowed}
        yield vector(name, SHORT, usual, fields, SEED, 0, len(answer), before)
    before = {"prompt": [60, 57, 50], "answer": [50, 60, 19], "allowed": [*range(0, 64, 2)]}
    yield vector("all-fields", LONG, (0.8, 40, 0.95, 0.05), ALL_FIELDS, SEED, 3, 3, before)
    bias = {"logit_bias": [[2, -100]]}
    before = {"prompt": [], "answer": [], "n_top": 3}
    yield vector("logprob-of-raw-logits", SHORT, (0.5, 2, 1, 0), bias, SEED, 0, 0, before)
    before = {"prompt": [], "answer": [], "n_top": 4}
    yield vector("logprob-equals-by-id", TIED, (1, 0, 1, 0), {}, SEED, 0, 0, before)


def vector(
    name: str,
    logits: list[float],
    usual: tuple[float, int, float, float],
    fields: dict[str, Any],
    seed: str,
    choice: int,
    index: int,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    before = {key: value for key, value in (before or {}).items() if value is not None}
    sampling = dict(zip(("temperature", "top_k", "top_p", "min_p"), usual, strict=True)) | fields
    made: dict[str, Any] = {"name": name, "logits": logits, **sampling}
    made |= {"seed": seed, "choice": choice, "index": index, **before}
    made["u"] = tp1.number(bytes.fromhex(seed), choice, index)
    if "allowed" in before:
        made["u_again"] = tp1.number_again(bytes.fromhex(seed), choice, index)
    drawn = draw(made)
    made["token"] = drawn.token
    if "n_top" in before:
        assert drawn.token is not None
        top = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: before["n_top"]]
        made["logprob"] = tp1.log_probability(logits, drawn.token)
        made["top"] = [[i, tp1.log_probability(logits, i)] for i in top]
    return made | {"expect": "success"}


def sampling_params(made: dict[str, Any]) -> SamplingParams:
    """The vector's sampling fields; what is absent does nothing."""
    names = SamplingParams.__dataclass_fields__.keys() & made.keys()
    fields = {name: made[name] for name in names}
    fields["logit_bias"] = tuple((token, bias) for token, bias in made.get("logit_bias", ()))
    return SamplingParams(**fields)


def draw(made: dict[str, Any]) -> tp1.Drawn:
    """What the slow reference draws for a vector."""
    params, seed = sampling_params(made), bytes.fromhex(made["seed"])
    if "answer" not in made:
        return tp1.choose(made["logits"], params, made["u"])
    before = made["prompt"], made["answer"], made.get("allowed")
    return tp1.draw(made["logits"], params, seed, made["choice"], *before)


def main() -> None:
    lines = ",\n".join(f"  {json.dumps(made)}" for made in vectors())
    PATH.write_text(f"[\n{lines}\n]\n", "utf-8")


if __name__ == "__main__":
    main()
