"""The only file that imports llama_cpp: a model, its vocabulary, one sequence's KV cache.

Start at `LlamaContext.decode`.

The low-level API, because the `Llama` class serves one sequence and is built around its own
sampling. Every call here keeps clear of the arguments that make llama.cpp abort the process:
batches over n_batch, ids that do not exist, bytes that are no UTF-8. What still kills it costs one
worker process.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.scheduler import DecodeFailed

_LOG_ERROR: Final = 4
_SEQUENCE: Final = 0  # one sequence at a time
_MAX_PIECE_BYTES: Final = 1 << 12
_MAX_REASON_CHARS: Final = 200


class LoadError(Exception):
    """llama.cpp cannot use this file; `str()` is its reason, without control characters."""


class _Log:
    """Takes what llama.cpp would print.

    Errors are kept while loading, before any prompt exists; the rest is dropped.
    """

    def __init__(self) -> None:
        self._errors: list[str] = []
        self._is_loading = True
        self._callback = lib.llama_log_callback(self._receive)  # must live as long as the library
        lib.llama_log_set(self._callback, None)

    def _receive(self, level: int, text: bytes, _user_data: object) -> None:
        if self._is_loading and level == _LOG_ERROR:
            self._errors = [*self._errors[-2:], text.decode("utf-8", "replace").strip()]

    def first_error(self) -> str:
        """The earliest of the last errors: those after it only say that loading failed."""
        text = self._errors[0] if self._errors else "llama.cpp gave no reason"
        reason = text.split(": ", 1)[-1]  # without the C function's name
        return "".join(c if c.isprintable() else "?" for c in reason)[:_MAX_REASON_CHARS]

    def stop(self) -> None:
        self._is_loading = False
        self._errors.clear()


class LlamaModel:
    """A loaded GGUF: its weights, vocabulary and chat template."""

    def __init__(self, path: str) -> None:
        """Raises `LoadError`."""
        self.log = _Log()
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP  # pages are shared between processes
        self.handle: Any = lib.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise LoadError(self.log.first_error())
        self.vocabulary = LlamaVocabulary(lib.llama_model_get_vocab(self.handle))
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self.handle)
        if not lib.llama_model_has_decoder(self.handle):
            raise LoadError("it does not generate text")
        template: bytes = lib.llama_model_chat_template(self.handle, None) or b""
        if len(template) > defaults.MAX_TEMPLATE_BYTES:
            raise LoadError(f"its chat template has {len(template)} bytes")
        try:
            self.template = template.decode()
        except UnicodeDecodeError:
            raise LoadError("its chat template is not valid UTF-8") from None


class LlamaVocabulary:
    """Text to token ids and back to bytes."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.n_tokens: int = lib.llama_vocab_n_tokens(handle)
        if self.n_tokens == 0:
            raise LoadError("it has no vocabulary")
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(_MAX_PIECE_BYTES)
        self.bos = self._text(lib.llama_vocab_bos(handle))
        self.eos = self._text(lib.llama_vocab_eos(handle))
        has_bos = bool(self.bos) and lib.llama_vocab_get_add_bos(handle)
        self.first_id: int | None = lib.llama_vocab_bos(handle) if has_bos else None
        # Every id that ends a turn, not only "eos": SmolLM2 has three.
        self.eog_ids = frozenset(
            token_id
            for token_id in range(self.n_tokens)
            if lib.llama_vocab_is_eog(handle, token_id)
        )
        self.control_texts = self._control_texts()

    def tokenise(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text`, without BOS.

        With `parse_special`, the text of a control token becomes that token.
        """
        data = text.encode()
        size = len(data) + 16
        while True:
            ids = (ctypes.c_int32 * size)()
            n = lib.llama_tokenize(self._handle, data, len(data), ids, size, False, parse_special)
            if n >= 0:
                return ids[:n]
            size = -n

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token adds to the text; none for a control token. The id must exist."""
        piece = self._pieces.get(token_id)
        if piece is None:
            n = lib.llama_token_to_piece(
                self._handle, token_id, self._buffer, _MAX_PIECE_BYTES, 0, False
            )
            piece = self._pieces[token_id] = self._buffer.raw[: max(n, 0)]
        return piece

    def _text(self, token_id: int) -> str:
        if token_id < 0:  # the vocabulary has no such token
            return ""
        text: bytes = lib.llama_vocab_get_text(self._handle, token_id)
        return text.decode("utf-8", "replace")

    def _control_texts(self) -> tuple[str, ...]:
        """What a user must not be able to say: the texts that `parse_special` makes tokens."""
        control = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        texts = (
            self._text(token_id)
            for token_id in range(self.n_tokens)
            if token_id in self.eog_ids
            or lib.llama_vocab_get_attr(self._handle, token_id) & control
        )
        return tuple(text for text in texts if text)


class LlamaContext:
    """The KV cache of one sequence, and the logits after its last token."""

    def __init__(self, model: LlamaModel, n_ctx: int | None, n_threads: int) -> None:
        """`n_ctx` None: what the model was trained for, at most `DEFAULT_N_CTX`.

        Raises `LoadError`.
        """
        trained = model.n_ctx_train or defaults.DEFAULT_N_CTX
        wanted = min(n_ctx or defaults.DEFAULT_N_CTX, trained)
        params = lib.llama_context_default_params()
        params.n_ctx = wanted
        params.n_batch = params.n_ubatch = defaults.MAX_PREFILL_CHUNK
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = n_threads
        params.no_perf = True
        self._handle: Any = lib.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise LoadError(
                f"no memory for a context of {wanted} tokens: {model.log.first_error()}"
            )
        self._memory = lib.llama_get_memory(self._handle)
        # llama.cpp rounds the context up; what was asked for is what is promised.
        self.n_ctx = min(wanted, int(lib.llama_n_ctx(self._handle)))
        self._n_batch = int(lib.llama_n_batch(self._handle))
        self._batch = _Batch(self._n_batch)
        self._row_type = ctypes.c_float * model.vocabulary.n_tokens
        self.profile = f"llama-cpp-python {lib.__version__}, KV f16, context {self.n_ctx}"

    def decode(self, ids: Any, position: int) -> None:
        """Compute `ids`, the first at `position`; logits are kept for the last.

        Raises `DecodeFailed`.
        """
        assert 0 < len(ids) <= self._n_batch, "llama.cpp would abort the process"
        assert position + len(ids) <= self.n_ctx, "there is no room in the KV cache"
        if lib.llama_decode(self._handle, self._batch.fill(ids, position)) != 0:
            raise DecodeFailed

    def logits(self) -> NDArray[np.float32]:
        """The row after the last decoded token, where it lies; valid until the next `decode`."""
        row = lib.llama_get_logits_ith(self._handle, -1)
        if not row:
            raise DecodeFailed
        address = ctypes.addressof(row.contents)
        return np.frombuffer(memoryview(self._row_type.from_address(address)), np.float32)

    def keep(self, n: int) -> int:
        """Forget all but the first `n` tokens.

        Models with a recurrent state cannot, and forget all.
        """
        if n > 0 and lib.llama_memory_seq_rm(self._memory, _SEQUENCE, n, -1):
            return n
        lib.llama_memory_clear(self._memory, True)
        return 0


class _Batch:
    """llama.cpp's batch over arrays of ours, so that filling it is a few vector stores."""

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._n_sequences = np.ones(size, np.int32)
        self._wants_logits = np.zeros(size, np.int8)
        self._sequence = np.array([_SEQUENCE], np.int32)
        self._sequences = np.full(size, self._sequence.ctypes.data, np.uintp)
        batch = self._batch = lib.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._n_sequences),
            ("logits", self._wants_logits),
            ("seq_id", self._sequences),
        ):
            field_type = type(getattr(batch, name))
            setattr(batch, name, ctypes.cast(array.ctypes.data, field_type))

    def fill(self, ids: Any, position: int) -> Any:
        n = len(ids)
        self._tokens[:n] = ids
        self._positions[:n] = np.arange(position, position + n)
        self._wants_logits[: n - 1] = 0
        self._wants_logits[n - 1] = 1
        self._batch.n_tokens = n
        return self._batch
