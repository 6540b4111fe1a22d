"""A GGUF file in memory: weights, vocabulary, metadata and adapters, behind llama.cpp's C functions.

It owns the native model and frees it once; contexts, in which a model runs, are in `context.py`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import llama_cpp

from llmkit.errors import ModelClosed, ModelInvalid
from llmkit.structured.grammars import llguidance
from llmkit_llama_cpp.files import ModelFiles
from llmkit_llama_cpp.log import read_problems

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_native: Any = llama_cpp
_F16_BYTES = 2
_starting = Lock()


class GGUFModel:
    """One model. Its methods may be called from many threads; `close` waits for those that run.

    Args:
        files: where it is.
        n_gpu_layers: layers to hold on the GPU; -1 for all.

    Attributes:
        handle: llama.cpp's pointer; valid until `close`.
        metadata: the file's keys and values, both as text; llama.cpp leaves out lists.
        n_vocabulary: length of a row of logits.
        context_length: positions that the model was made for.

    Raises:
        ModelInvalid: not a GGUF file, damaged, of an unknown architecture, or no decoder of text.
    """

    def __init__(self, files: ModelFiles, n_gpu_layers: int) -> None:
        self._name = files.name
        self._using = Lock()
        params = _native.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        with _starting, read_problems() as problems:
            _native.llama_backend_init()
            self.handle = _native.llama_model_load_from_file(str(files.parts[0]).encode(), params)
        if not self.handle:
            reason = "; ".join(problems) or "llama.cpp gives no reason"
            raise ModelInvalid(f"{files.name!r} cannot be loaded from {files.parts[0]}: {reason}")
        if not _native.llama_model_has_decoder(self.handle) or _native.llama_model_has_encoder(self.handle):
            self.close()
            raise ModelInvalid(f"{files.name!r} has no decoder alone: it embeds, or encodes before it decodes")
        self._vocabulary = _native.llama_model_get_vocab(self.handle)
        self.metadata = _metadata(self.handle)
        self.n_vocabulary: int = _native.llama_vocab_n_tokens(self._vocabulary)
        self.context_length: int = _native.llama_model_n_ctx_train(self.handle)
        self._pieces: dict[int, bytes] = {}
        self._adapters: dict[Path, Any] = {}

    @property
    def architecture(self) -> str:
        """The kind of model, as its file names it."""
        return self.metadata.get("general.architecture", "")

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights."""
        return int(_native.llama_model_size(self.handle))

    @property
    def cell_bytes(self) -> int:
        """Bytes of the keys and values of one token, in float16; an upper bound where layers differ."""
        n_heads = max(1, _native.llama_model_n_head(self.handle))
        own = _native.llama_model_n_embd(self.handle) // n_heads
        sizes = (self.metadata.get(f"{self.architecture}.attention.{name}_length") for name in ("key", "value"))
        per_head = sum(int(size) if size else own for size in sizes)
        n_layers, n_kv_heads = (
            _native.llama_model_n_layer(self.handle),
            max(1, _native.llama_model_n_head_kv(self.handle)),
        )
        return n_layers * n_kv_heads * per_head * _F16_BYTES

    @property
    def has_cells(self) -> bool:
        """Whether a token's keys and values are a thing of their own, so that any beginning of a text can be kept."""
        handle = self.handle
        return not (_native.llama_model_is_recurrent(handle) or _native.llama_model_is_hybrid(handle))

    # --- the vocabulary ---------------------------------------------------------------------------------------------

    def special(self, kind: str) -> int | None:
        """The token that the vocabulary names `bos`, `eos`, `pad`, `sep` or `mask`."""
        token_id = int(getattr(_native, f"llama_vocab_{kind}")(self._vocabulary))
        return token_id if token_id >= 0 else None

    def name_of(self, token_id: int | None) -> str:
        """A token as the vocabulary spells it, a special one included; nothing for no token."""
        if token_id is None:
            return ""
        return cast("bytes", _native.llama_vocab_get_text(self._vocabulary, token_id)).decode(errors="replace")

    def ending_tokens(self) -> tuple[int, ...]:
        """All tokens that end a text by the model's own account: of sentences, of turns, of messages."""
        ends = _native.llama_vocab_is_eog
        return tuple(token for token in range(self.n_vocabulary) if ends(self._vocabulary, token))

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of a text; special tokens in it are read as such.

        Args:
            text: the text.
            add_special: with what the tokenizer puts around a text, such as its BOS.

        Raises:
            ModelClosed: the model was closed.
        """
        encoded = text.encode(errors="replace")
        n_room = len(encoded) + 8  # a token holds at least a byte; the rest is for special ones
        while True:
            ids = (ctypes.c_int32 * n_room)()
            with self._using:
                self._check_open()
                n_tokens = _native.llama_tokenize(
                    self._vocabulary, encoded, len(encoded), ids, n_room, add_special, True
                )
            if n_tokens >= 0:
                return list(ids[:n_tokens])
            n_room = -n_tokens

    def piece(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for; none for a control token."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._read_piece(token_id, special=False)
        return piece

    def spelling(self, token_id: int) -> bytes:
        """`piece`, with control tokens as the vocabulary spells them."""
        return self._read_piece(token_id, special=True)

    def _read_piece(self, token_id: int, *, special: bool) -> bytes:
        n_room = 64
        while True:
            buffer = ctypes.create_string_buffer(n_room)
            with self._using:
                self._check_open()
                n = _native.llama_token_to_piece(self._vocabulary, token_id, buffer, n_room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            n_room = -n

    def guide_tokenizer(self) -> LLTokenizer:
        """The vocabulary as llguidance sees it, for structured output; about a second for a large one.

        Raises:
            ExtraUnavailable: llguidance is not installed.
            ModelClosed: the model was closed.
        """
        library = llguidance()
        # Any special token can stand for the end; the tokens that do end a text are those of each request.
        end = next((token for kind in ("eos", "bos", "pad") if (token := self.special(kind)) is not None), 0)
        spellings = [self._marked_spelling(token_id) for token_id in range(self.n_vocabulary)]
        tokenize = ctypes.cast(_native.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value
        return library.LLTokenizer.from_llamacpp(
            tokens=spellings, vocab_ptr=self._vocabulary, tokenize_fptr=tokenize, eos_token=end
        )

    def _marked_spelling(self, token_id: int) -> bytes:
        """A token's bytes; llguidance wants 0xff before those that are no text."""
        is_control = _native.llama_vocab_get_attr(self._vocabulary, token_id) & _native.LLAMA_TOKEN_ATTR_CONTROL
        return (b"\xff" if is_control else b"") + self.spelling(token_id)

    # --- adapters and the end ---------------------------------------------------------------------------------------

    def adapter(self, path: Path) -> Any:
        """A LoRA adapter for this model; loaded at its first use and kept as long as the model.

        Raises:
            ModelInvalid: not an adapter, damaged, or made for another model.
            ModelClosed: the model was closed.
        """
        path = path.resolve()
        with self._using:
            self._check_open()
            if path not in self._adapters:
                self._adapters[path] = self._load_adapter(path)
            return self._adapters[path]

    def _load_adapter(self, path: Path) -> Any:
        with read_problems() as problems:
            handle = _native.llama_adapter_lora_init(self.handle, str(path).encode())
        if not handle:
            reason = "; ".join(problems) or "llama.cpp gives no reason"
            raise ModelInvalid(f"{str(path)!r} is no LoRA adapter for {self._name!r}: {reason}")
        if _native.llama_adapter_get_alora_n_invocation_tokens(handle):
            raise ModelInvalid(f"{str(path)!r} is an adapter that only some tokens switch on; llmkit cannot honour it")
        return handle

    def _check_open(self) -> None:
        if self.handle is None:
            raise ModelClosed(self._name)

    def close(self) -> None:
        """Free weights and adapters; every context must be closed. Safe to call twice."""
        with self._using:
            if self.handle is not None:
                _native.llama_model_free(self.handle)
                self.handle = None


def _metadata(handle: Any) -> dict[str, str]:
    keys, values = _native.llama_model_meta_key_by_index, _native.llama_model_meta_val_str_by_index
    indices = range(_native.llama_model_meta_count(handle))
    return {_text(keys, handle, index): _text(values, handle, index) for index in indices}


def _text(read: Any, handle: Any, index: int) -> str:
    """What a C function writes into a buffer, whatever its length."""
    n_room = 256
    while True:
        buffer = ctypes.create_string_buffer(n_room)
        n = read(handle, index, buffer, n_room)
        if n < n_room:
            return buffer.value.decode(errors="replace")
        n_room = n + 1
