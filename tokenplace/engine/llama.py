"""The only file that imports llama_cpp to generate: a model, its vocabulary, its KV cache.

Start at `LlamaContext.decode`.

The low-level API, because the `Llama` class serves one sequence and is built around its own
sampling. Every call here keeps clear of the arguments that make llama.cpp abort the process:
batches over n_batch, ids that do not exist, bytes that are no UTF-8. What still kills it costs one
worker process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as AbstractSequence
from functools import cached_property
from typing import Any, ClassVar, Final

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.grammar import GrammarTokenizer, LlamaMatcher
from tokenplace.engine.messages import Load
from tokenplace.engine.runner import CacheFull, DecodeFailed
from tokenplace.engine.scheduler import Chunk, Copy, Keep
from tokenplace.engine.sizing import NoRoom, size_context
from tokenplace.engine.tools import SHOWN_TEXTS

_LOG_ERROR: Final = 4
_CACHE_FULL: Final = 1  # what llama_decode returns when it finds no room in the KV cache
_ALL_LAYERS: Final = -1
_FLASH_ATTENTION: Final = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
# Names of llama.cpp's --cache-type: its number, and bytes of 32 values.
_KV_TYPES: Final = {
    "f16": (lib.GGML_TYPE_F16, 64),
    "q8_0": (lib.GGML_TYPE_Q8_0, 34),
    "q4_0": (lib.GGML_TYPE_Q4_0, 18),
}
_MAX_PIECE_BYTES: Final = 1 << 12
_MAX_REASON_CHARS: Final = 200
_MAX_METADATA_BYTES: Final = 256


class LoadError(Exception):
    """llama.cpp cannot use this file; `str()` is its reason, without control characters."""


class _Log:
    """Takes what llama.cpp would print.

    Errors are kept while loading, before any prompt exists; the rest is dropped.
    """

    _callback: ClassVar[Any] = None

    def __init__(self) -> None:
        self._errors: list[str] = []
        self._is_loading = True
        # llama.cpp calls the last one for ever, so it outlives its model.
        _Log._callback = lib.llama_log_callback(self._receive)
        lib.llama_log_set(_Log._callback, None)

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

    def __init__(self, path: str, n_gpu_layers: int | None = None) -> None:
        """`n_gpu_layers` None: all, if llama.cpp was built for a GPU. Raises `LoadError`."""
        self.log = _Log()
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP  # pages are shared between processes
        self.has_gpu = bool(lib.llama_supports_gpu_offload())
        params.n_gpu_layers = _ALL_LAYERS if n_gpu_layers is None else n_gpu_layers
        self.handle: Any = lib.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise LoadError(self.log.first_error())
        self.vocabulary = LlamaVocabulary(lib.llama_model_get_vocab(self.handle))
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self.handle)
        self.can_cut = not (
            lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle)
        )
        if not lib.llama_model_has_decoder(self.handle):
            raise LoadError("it does not generate text")
        template: bytes = lib.llama_model_chat_template(self.handle, None) or b""
        if len(template) > defaults.MAX_TEMPLATE_BYTES:
            raise LoadError(f"its chat template has {len(template)} bytes")
        try:
            self.template = template.decode()
        except UnicodeDecodeError:
            raise LoadError("its chat template is not valid UTF-8") from None

    def number(self, key: str) -> int:
        """A number of the file's metadata, by its name without the architecture's; 0 if absent."""
        architecture = self._metadata("general.architecture")
        text = self._metadata(f"{architecture}.{key}")
        return int(text) if text.isdecimal() else 0

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(_MAX_METADATA_BYTES)
        n = lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if n >= 0 else ""


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
        control = self._control_texts()
        self.control_texts = tuple(control.values())
        self._shown_ids = frozenset(
            token_id
            for token_id, text in control.items()
            if text in SHOWN_TEXTS and token_id not in self.eog_ids
        )
        self._control = control

    def tokenise(self, text: str, parse_special: bool, add_special: bool = False) -> list[int]:
        """Ids of `text`.

        With `parse_special`, the text of a control token becomes that token. With `add_special`,
        what this vocabulary wants around a text is there, BOS for instance.
        """
        data = text.encode()
        size = len(data) + 16
        while True:
            ids = (ctypes.c_int32 * size)()
            n = lib.llama_tokenize(
                self._handle, data, len(data), ids, size, add_special, parse_special
            )
            if n >= 0:
                return ids[:n]
            size = -n

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token adds to the text; none for a control token, unless it marks a tool
        call. The id must exist.
        """
        piece = self._pieces.get(token_id)
        if piece is None:
            is_shown = token_id in self._shown_ids
            n = lib.llama_token_to_piece(
                self._handle, token_id, self._buffer, _MAX_PIECE_BYTES, 0, is_shown
            )
            piece = self._pieces[token_id] = self._buffer.raw[: max(n, 0)]
        return piece

    def matcher(self, grammar: str) -> LlamaMatcher:
        """What lets only this grammar through. Raises `BadGrammar`."""
        return self._grammar_tokeniser.matcher(grammar)

    @cached_property
    def _grammar_tokeniser(self) -> GrammarTokenizer:
        return GrammarTokenizer(
            [self.piece(token_id) for token_id in range(self.n_tokens)],
            self._control,
            self.eog_ids,
            lambda text: self.tokenise(text, parse_special=False),
        )

    def _text(self, token_id: int) -> str:
        if token_id < 0:  # the vocabulary has no such token
            return ""
        text: bytes = lib.llama_vocab_get_text(self._handle, token_id)
        return text.decode("utf-8", "replace")

    def _control_texts(self) -> dict[int, str]:
        """What a user must not be able to say: the texts that `parse_special` makes tokens."""
        control = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        texts = {
            token_id: self._text(token_id)
            for token_id in range(self.n_tokens)
            if token_id in self.eog_ids
            or lib.llama_vocab_get_attr(self._handle, token_id) & control
        }
        return {token_id: text for token_id, text in texts.items() if text}


class LlamaContext:
    """The KV cache of many sequences, and the logits of a step."""

    def __init__(self, model: LlamaModel, load: Load) -> None:
        """`load` says how large; see `sizing`. Raises `LoadError`."""
        try:
            size = size_context(
                n_ctx_train=model.n_ctx_train,
                wanted_n_ctx=load.n_ctx,
                wanted_slots=load.n_slots,
                bytes_per_token=kv_bytes_per_token(model, load),
                kv_bytes=load.kv_bytes,
            )
        except NoRoom as error:
            raise LoadError(str(error)) from None
        params = context_params(load)
        params.n_ctx = size.n_cells
        params.n_batch = defaults.MAX_PREFILL_CHUNK + size.n_running
        params.n_ubatch = defaults.MAX_PREFILL_CHUNK
        params.n_seq_max = size.n_slots
        params.kv_unified = size.is_shared
        self._handle = new_context(model, params)
        self._memory = lib.llama_get_memory(self._handle)
        if not self._memory:
            raise LoadError("it does not generate text")
        # llama.cpp rounds the context up; what was asked for is what is promised.
        self.size = size
        self.n_ctx = size.n_ctx
        self.can_cut = model.can_cut
        self.n_batch = int(lib.llama_n_batch(self._handle))
        self._batch = _Batch(self.n_batch, size.n_slots)
        self._n_vocab = model.vocabulary.n_tokens
        self.profile = (
            f"llama-cpp-python {lib.__version__}, KV {load.kv_type}, context {self.n_ctx}"
        )

    def apply(self, move: Keep | Copy) -> None:
        """Forget or copy. Raises `DecodeFailed` if this model's memory cannot do it."""
        match move:
            case Keep(slot, n):
                self._cut(slot, n)
            case Copy(source, slot, n) if self.size.is_shared:
                self._cut(slot, 0)
                lib.llama_memory_seq_cp(self._memory, source, slot, 0, n)
            case Copy(source, slot, n):  # of a part it would abort the process
                self._cut(slot, 0)
                lib.llama_memory_seq_cp(self._memory, source, slot, -1, -1)
                self._cut(slot, n)

    def decode(self, chunks: AbstractSequence[Chunk]) -> NDArray[np.float32]:
        """Compute the chunks as one batch. The rows of logits wanted, in the chunks' order, where
        they lie: valid until the next call. Raises `CacheFull` and `DecodeFailed`.
        """
        self._batch.clear()
        for chunk in chunks:
            assert chunk.start + chunk.n <= self.n_ctx, "there is no room in the KV cache"
            self._batch.add(chunk)
        status = lib.llama_decode(self._handle, self._batch.filled())
        if status == _CACHE_FULL:
            raise CacheFull
        if status != 0:
            raise DecodeFailed
        return self._rows(sum(chunk.n_rows for chunk in chunks))

    def set_threads(self, n_threads: int) -> None:
        """Compute with so many from the next step on."""
        lib.llama_set_n_threads(self._handle, n_threads, n_threads)

    def _rows(self, n_rows: int) -> NDArray[np.float32]:
        if n_rows == 0:
            return np.empty((0, self._n_vocab), np.float32)
        rows = lib.llama_get_logits(self._handle)
        if not rows:
            raise DecodeFailed
        memory = (ctypes.c_float * (n_rows * self._n_vocab)).from_address(
            ctypes.addressof(rows.contents)
        )
        return np.frombuffer(memoryview(memory), np.float32).reshape(n_rows, self._n_vocab)

    def _cut(self, slot: int, n: int) -> None:
        if not lib.llama_memory_seq_rm(self._memory, slot, n if n > 0 else -1, -1):
            raise DecodeFailed


class _Batch:
    """llama.cpp's batch over arrays of ours, so that filling it is a few vector stores."""

    def __init__(self, size: int, n_slots: int) -> None:
        self._size = size
        self._n = 0
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._n_sequences = np.ones(size, np.int32)
        self._wants_logits = np.zeros(size, np.int8)
        self._slots = np.arange(n_slots, dtype=np.int32)
        addresses = self._slots.ctypes.data + np.arange(n_slots) * self._slots.itemsize
        self._slot_addresses: NDArray[np.uintp] = addresses.astype(np.uintp)
        self._sequences = np.zeros(size, np.uintp)
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

    def clear(self) -> None:
        self._n = 0

    def add(self, chunk: Chunk) -> None:
        begin, end = self._n, self._n + chunk.n
        assert chunk.n > 0, "an empty chunk"
        assert end <= self._size, "llama.cpp would abort the process"
        sequence = chunk.sequence
        assert sequence.slot is not None, "only who has a slot is computed"
        self._tokens[begin:end] = sequence.buffer[chunk.start : chunk.start + chunk.n]
        if chunk.n == 1:
            self._positions[begin] = chunk.start
        else:
            self._positions[begin:end] = np.arange(chunk.start, chunk.start + chunk.n)
        self._sequences[begin:end] = self._slot_addresses[sequence.slot]
        self._wants_logits[begin:end] = 0
        self._wants_logits[end - chunk.n_rows : end] = 1
        self._n = end

    def filled(self) -> Any:
        self._batch.n_tokens = self._n
        return self._batch


def context_params(load: Load) -> Any:
    """How every context is made, but for its size."""
    params = lib.llama_context_default_params()
    params.type_k = params.type_v = _KV_TYPES[load.kv_type][0]
    params.flash_attn_type = _FLASH_ATTENTION[load.flash_attention]
    params.n_threads = params.n_threads_batch = load.n_threads
    params.no_perf = True
    return params


def new_context(model: LlamaModel, params: Any) -> Any:
    """llama.cpp's handle. Raises `LoadError`."""
    handle = lib.llama_init_from_model(model.handle, params)
    if not handle:
        reason = model.log.first_error()
        raise LoadError(f"no memory for a context of {params.n_ctx} tokens: {reason}")
    return handle


def kv_bytes_per_token(model: LlamaModel, load: Load) -> int:
    """What the KV cache takes for each token; an upper bound for models that save some."""
    handle = model.handle
    n_layers, n_heads = lib.llama_model_n_layer(handle), lib.llama_model_n_head(handle)
    width = lib.llama_model_n_embd(handle) // max(1, n_heads)
    key = model.number("attention.key_length") or width
    value = model.number("attention.value_length") or width
    values = int(n_layers * lib.llama_model_n_head_kv(handle) * (key + value))
    return values * _KV_TYPES[load.kv_type][1] // 32
