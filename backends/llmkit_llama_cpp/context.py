"""A place where a model runs: the cells that hold keys and values, and one call that reads tokens.

It knows sequences by number and nothing of requests. One thread uses a context at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from llmkit.errors import GenerationError
from llmkit_llama_cpp.log import read_problems
from llmkit_llama_cpp.model import GGUFModel

Logits = npt.NDArray[np.float32]
MAX_SEQUENCES = int(llama_cpp.llama_max_parallel_sequences())
N_BATCH = 512
"""Tokens that one call may read."""

_native: Any = llama_cpp
_TO_THE_END = -1


class Context:
    """Cells for one model, shared by all sequences of the context.

    Args:
        model: the model; it must outlive the context.
        n_cells: tokens whose keys and values fit, all sequences together.
        n_sequences: sequences that may be told apart.
        n_threads: threads that compute.

    Raises:
        MemoryError: there is no room for the cells.
    """

    def __init__(self, model: GGUFModel, *, n_cells: int, n_sequences: int, n_threads: int) -> None:
        self._model, self._n_vocabulary = model, model.n_vocabulary
        params = _native.llama_context_default_params()
        params.n_ctx = n_cells
        params.n_batch = params.n_ubatch = N_BATCH
        params.n_seq_max = n_sequences
        params.n_outputs_max = n_sequences  # with fewer than sequences llama.cpp aborts the process
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = True  # without it a copy of a part of a sequence aborts the process
        with read_problems() as problems:
            self._handle = _native.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise MemoryError(f"llama.cpp cannot make a context of {n_cells} tokens: {'; '.join(problems)}")
        self._memory = _native.llama_get_memory(self._handle)
        self._make_batch()

    def _make_batch(self) -> None:
        """The arrays that a call reads its tokens from, with the pointers into them that never change."""
        self._tokens, self._positions, self._sequences = (np.zeros(N_BATCH, np.int32) for _ in range(3))
        self._wanted, self._ones = np.zeros(N_BATCH, np.int8), np.ones(N_BATCH, np.int32)
        first = self._sequences.ctypes.data
        self._pointers = np.arange(first, first + self._sequences.nbytes, self._sequences.itemsize, dtype=np.uintp)
        self._batch: Any = llama_cpp.llama_batch()
        int32 = ctypes.POINTER(ctypes.c_int32)
        self._batch.token = ctypes.cast(self._tokens.ctypes.data, int32)
        self._batch.pos = ctypes.cast(self._positions.ctypes.data, int32)
        self._batch.n_seq_id = ctypes.cast(self._ones.ctypes.data, int32)
        self._batch.seq_id = ctypes.cast(self._pointers.ctypes.data, ctypes.POINTER(int32))
        self._batch.logits = ctypes.cast(self._wanted.ctypes.data, ctypes.POINTER(ctypes.c_int8))

    def read(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], wanted: Sequence[bool]
    ) -> Logits:
        """Read tokens into their sequences, at most `N_BATCH`.

        Args:
            tokens: token ids.
            positions: of each token in its sequence.
            sequences: the number of each token's sequence.
            wanted: whether the logits after this token are needed.

        Returns:
            `(number wanted, V)` float32, unnormalised, valid until the next call.

        Raises:
            GenerationError: llama.cpp refused; a state that was not changed is not promised.
        """
        n_tokens = len(tokens)
        self._tokens[:n_tokens], self._positions[:n_tokens] = tokens, positions
        self._sequences[:n_tokens], self._wanted[:n_tokens] = sequences, wanted
        self._batch.n_tokens = n_tokens
        code = _native.llama_decode(self._handle, self._batch)
        if code:
            reason = "no free cell" if code == 1 else f"code {code}"
            raise GenerationError(f"llama_decode failed on {n_tokens} tokens: {reason}")
        return self._logits(sum(wanted))

    def _logits(self, n_rows: int) -> Logits:
        if not n_rows:
            return np.empty((0, self._n_vocabulary), np.float32)
        address = ctypes.cast(_native.llama_get_logits(self._handle), ctypes.c_void_p).value
        floats: Any = (ctypes.c_float * (n_rows * self._n_vocabulary)).from_address(address or 0)
        return np.frombuffer(floats, np.float32).reshape(n_rows, self._n_vocabulary)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Let an empty sequence begin as another does; the cells are shared, nothing is copied."""
        _native.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)

    def cut(self, sequence: int, n_tokens: int) -> bool:
        """Forget all but the first tokens of a sequence; false where the model can only forget all of them."""
        return bool(_native.llama_memory_seq_rm(self._memory, sequence, n_tokens, _TO_THE_END))

    def clear(self) -> None:
        """Forget everything, as if new."""
        _native.llama_memory_clear(self._memory, False)

    def use_adapter(self, handle: Any | None) -> None:
        """Compute with a LoRA adapter of the model from now on, or without one.

        Raises:
            GenerationError: llama.cpp refused it.
        """
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(handle)
        scales = (ctypes.c_float * 1)(1.0)
        if _native.llama_set_adapters_lora(self._handle, handles, 0 if handle is None else 1, scales):
            raise GenerationError("llama.cpp refused the adapter")

    def close(self) -> None:
        """Free the cells; safe to call twice."""
        if self._handle is not None:
            _native.llama_free(self._handle)
            self._handle = None
