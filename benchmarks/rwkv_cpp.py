"""rwkv.cpp through its C interface, for the benchmarks that put it beside the native engine.

Build it for this very CPU (``-DCMAKE_C_FLAGS=-march=native -DRWKV_AVX512=ON``).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from wkv.checkpoint import convert

# rwkv.cpp unrolls its graph over tokens and layers, and aborts where it has too many nodes.
MOST_NODES = 4096
NODES = 44  # a token and layer


def converted(source: Path, kind: str, work: Path) -> Path:
    """The rwkv.cpp file of a checkpoint in ``work``, written unless it is there."""
    file = work / f"{source.name}-{kind}.bin"
    if not file.exists():
        convert(source, file, dtype=kind)
    return file


class RwkvCpp:
    """rwkv.cpp through its C interface: one sequence, state in and out."""

    def __init__(self, library: str, file: Path, threads: int) -> None:
        self.lib = ctypes.CDLL(library)
        self.lib.rwkv_init_from_file.restype = ctypes.c_void_p
        self.lib.rwkv_init_from_file.argtypes = [ctypes.c_char_p, ctypes.c_uint32]
        floats, ids = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_uint32)
        self.lib.rwkv_eval.argtypes = [ctypes.c_void_p, ctypes.c_uint32, floats, floats, floats]
        self.lib.rwkv_eval_sequence.argtypes = [
            ctypes.c_void_p, ids, ctypes.c_size_t, floats, floats, floats,
        ]  # fmt: skip
        for name in ("rwkv_get_state_len", "rwkv_get_logits_len"):
            getattr(self.lib, name).restype = ctypes.c_size_t
            getattr(self.lib, name).argtypes = [ctypes.c_void_p]
        self.context = self.lib.rwkv_init_from_file(str(file).encode(), threads)
        if not self.context:
            raise SystemExit(f"rwkv.cpp cannot load {file}")
        self.state = np.zeros(self.lib.rwkv_get_state_len(self.context), np.float32)
        self.lib.rwkv_get_n_layer.restype = ctypes.c_size_t
        self.lib.rwkv_get_n_layer.argtypes = [ctypes.c_void_p]
        self.chunk = MOST_NODES // NODES // self.lib.rwkv_get_n_layer(self.context)
        self.logits = np.zeros(self.lib.rwkv_get_logits_len(self.context), np.float32)
        self.started = False

    def _pointers(self) -> tuple[Any, Any, Any]:
        floats = ctypes.POINTER(ctypes.c_float)
        state = self.state.ctypes.data_as(floats)
        return (state if self.started else None), state, self.logits.ctypes.data_as(floats)

    def reset(self) -> None:
        self.started = False

    def step(self, token: int) -> np.ndarray:
        assert self.lib.rwkv_eval(self.context, token, *self._pointers())
        self.started = True
        return self.logits

    def prompt(self, tokens: list[int]) -> None:
        for at in range(0, len(tokens), self.chunk):
            part = np.array(tokens[at : at + self.chunk], np.uint32)
            ids = part.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
            assert self.lib.rwkv_eval_sequence(self.context, ids, len(part), *self._pointers())
            self.started = True
