"""What computes with llama.cpp: the KV cache of many sequences, and the logits of a step.

Start at `LlamaContext.decode`.

The low-level API, because the `Llama` class serves one sequence and is built around its own
sampling. Every call here keeps clear of the arguments that make llama.cpp abort the process, such
as batches over n_batch. What still kills it costs one worker process.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as AbstractSequence
from contextlib import contextmanager
from typing import Any, Final

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.backend import CacheFull, DecodeFailed, Stopped
from tokenplace.engine.llama_model import LlamaModel, LoadError
from tokenplace.engine.messages import Load
from tokenplace.engine.scheduler import Chunk, Copy, Keep
from tokenplace.engine.sizing import NoRoom, size_context

# What llama_decode returns when it finds no room in the KV cache, and when it was stopped.
_CACHE_FULL: Final = 1
_STOPPED: Final = 2
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
        # Only the CPU's part of llama.cpp looks; and what was half computed must be cut off.
        self.can_stop = model.can_cut and not (model.has_gpu and load.n_gpu_layers != 0)
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

    def decode(
        self, chunks: AbstractSequence[Chunk], is_unwanted: Callable[[], bool] | None = None
    ) -> NDArray[np.float32]:
        """Compute the chunks as one batch. The rows of logits wanted, in the chunks' order, where
        they lie: valid until the next call. is_unwanted: asked meanwhile, must not raise.

        Raises `CacheFull`, `DecodeFailed`, and `Stopped` when it was unwanted.
        """
        self._batch.clear()
        for chunk in chunks:
            assert chunk.start + chunk.n <= self.n_ctx, "there is no room in the KV cache"
            self._batch.add(chunk)
        with self._stoppable(is_unwanted):
            status = lib.llama_decode(self._handle, self._batch.filled())
        if status == _CACHE_FULL:
            raise CacheFull
        if status == _STOPPED:
            raise Stopped
        if status != 0:
            raise DecodeFailed
        return self._rows(sum(chunk.n_rows for chunk in chunks))

    def set_threads(self, n_threads: int) -> None:
        """Compute with so many from the next step on."""
        lib.llama_set_n_threads(self._handle, n_threads, n_threads)

    @contextmanager
    def _stoppable(self, is_unwanted: Callable[[], bool] | None) -> Iterator[None]:
        """Let llama.cpp ask while it computes in the block. It does so on this very thread, after
        each operation: hundreds of times a step, so only some of them are passed on.
        """
        if is_unwanted is None:
            yield
            return
        look_at = time.monotonic()

        def is_to_stop(_data: object) -> bool:
            nonlocal look_at
            now = time.monotonic()
            if now < look_at:
                return False
            look_at = now + defaults.CANCEL_LOOK_S
            return is_unwanted()

        callback = lib.ggml_abort_callback(is_to_stop)
        lib.llama_set_abort_callback(self._handle, callback, None)
        try:
            yield
        finally:
            lib.llama_set_abort_callback(self._handle, lib.ggml_abort_callback(), None)

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
