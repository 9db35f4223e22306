"""llama.cpp for models made for embeddings. Start at `LlamaEmbedder.embed`.

Such a model computes each text at once and keeps nothing, so there is no cache to manage: several
texts make one batch, and the rows that llama.cpp pools out of it are the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.embedder import EmbedFailed
from tokenplace.engine.llama import context_params, kv_bytes_per_token, new_context
from tokenplace.engine.llama_model import LlamaModel, LoadError
from tokenplace.engine.messages import Load
from tokenplace.engine.sequence import Ids
from tokenplace.engine.sizing import NoRoom, size_context

_POOLINGS: Final = (
    lib.LLAMA_POOLING_TYPE_MEAN,
    lib.LLAMA_POOLING_TYPE_CLS,
    lib.LLAMA_POOLING_TYPE_LAST,
)


def is_for_embeddings(model: LlamaModel) -> bool:
    """Does its file say how a text's vector is made of its tokens'? Raises `LoadError`."""
    pooling = model.number("pooling_type")
    if pooling == lib.LLAMA_POOLING_TYPE_RANK:
        raise LoadError("it ranks texts, and neither generates nor embeds any")
    return pooling in _POOLINGS


class LlamaEmbedder:
    """A model and the context that its vectors are computed in."""

    def __init__(self, model: LlamaModel, load: Load) -> None:
        """Raises `LoadError`."""
        self.n_dimensions = int(lib.llama_model_n_embd_out(model.handle))
        if not 0 < self.n_dimensions <= defaults.MAX_EMBED_DIMENSIONS:
            raise LoadError(f"its vectors have {self.n_dimensions} dimensions")
        try:
            size = size_context(
                n_ctx_train=model.n_ctx_train,
                wanted_n_ctx=load.n_ctx,
                wanted_slots=1,
                bytes_per_token=kv_bytes_per_token(model, load),
                kv_bytes=load.kv_bytes,
            )
        except NoRoom as error:
            raise LoadError(str(error)) from None
        self.n_ctx = size.n_ctx
        self.n_tokens = model.vocabulary.n_tokens
        params = context_params(load)
        # A text is computed as a whole: its first tokens look at its last ones. A batch that is no
        # multiple of the texts in it would abort the process.
        params.n_seq_max = n_texts = min(defaults.MAX_EMBED_BATCH, self.n_ctx)
        n_batch = -(-self.n_ctx // n_texts) * n_texts
        params.n_ctx = params.n_batch = params.n_ubatch = n_batch
        params.kv_unified = True  # one text may fill the context
        params.embeddings = True
        self._handle = new_context(model, params)
        self._memory = lib.llama_get_memory(self._handle)
        self._vocabulary = model.vocabulary
        self._batch = lib.llama_batch_init(self.n_ctx, 0, 1)
        self._tokens = np.ctypeslib.as_array(self._batch.token, (self.n_ctx,))
        self._positions = np.ctypeslib.as_array(self._batch.pos, (self.n_ctx,))
        np.ctypeslib.as_array(self._batch.n_seq_id, (self.n_ctx,))[:] = 1
        np.ctypeslib.as_array(self._batch.logits, (self.n_ctx,))[:] = 1  # every token is pooled
        self.profile = f"llama-cpp-python {lib.__version__}, context {self.n_ctx}"

    def tokenise(self, text: str) -> list[int]:
        """The ids of a text, with those that the model wants around it."""
        return self._vocabulary.tokenise(text, parse_special=False, add_special=True)

    def embed(self, texts: Sequence[Ids]) -> NDArray[np.float32]:
        """One row for each text's ids. Raises `EmbedFailed`."""
        assert sum(map(len, texts)) <= self.n_ctx, "llama.cpp would abort the process"
        n = 0
        for number, ids in enumerate(texts):
            self._tokens[n : n + len(ids)] = ids
            self._positions[n : n + len(ids)] = np.arange(len(ids))
            for i in range(n, n + len(ids)):
                self._batch.seq_id[i][0] = number
            n += len(ids)
        self._batch.n_tokens = n
        if self._memory:  # a model that could generate has a cache
            lib.llama_memory_clear(self._memory, False)
        if lib.llama_decode(self._handle, self._batch) != 0:
            raise EmbedFailed
        return np.stack([self._vector(number) for number in range(len(texts))])

    def _vector(self, number: int) -> NDArray[np.float32]:
        row = lib.llama_get_embeddings_seq(self._handle, number)
        if not row:
            raise EmbedFailed
        return np.ctypeslib.as_array(row, (self.n_dimensions,))
