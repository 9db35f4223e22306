"""A model in llama.cpp: its weights, vocabulary and chat template. Start at `LlamaModel`.

Every call here keeps clear of the arguments that make llama.cpp abort the process: ids that do not
exist, bytes that are no UTF-8.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any, ClassVar, Final

import llama_cpp as lib

from tokenplace import defaults
from tokenplace.engine.grammar import GrammarTokenizer, LlamaMatcher
from tokenplace.engine.tools import SHOWN_TEXTS

_LOG_ERROR: Final = 4
_ALL_LAYERS: Final = -1
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
