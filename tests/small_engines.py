"""Engines that are quick and exact to the last bit, and a tokenizer whose tokens are awkward."""

from __future__ import annotations

import numpy as np

from wkv.config import ModelConfig
from wkv.engine import check_batch
from wkv.state import State
from wkv.tokenizer.protocol import ByteTable

VOCABULARY = 64
CONFIG = ModelConfig(vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1)


class SmallEngine:
    """A plain recurrent network; its hidden vector [8] is kept in ``att_x``."""

    name = "small"
    config = CONFIG
    fingerprint = None

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._w = rng.normal(0, 0.5, (8, 8)).astype(np.float32)
        self._e = rng.normal(0, 1, (VOCABULARY, 8)).astype(np.float32)
        self._h = rng.normal(0, 1, (VOCABULARY, 8)).astype(np.float32)
        self.runs: list[int] = []  # tokens of each call

    def forward(self, tokens, state=None, *, logits="last"):
        check_batch(self, tokens, state, logits)
        self.runs.append(sum(map(len, tokens)))
        state = state or State.zeros(CONFIG, len(tokens))
        hidden, rows = [], []
        for row, h in zip(tokens, state.att_x[:, 0]):
            for token in row:
                h = self.step(h, token)
                if logits == "all":
                    rows.append(self.read(h))
            if logits == "last":
                rows.append(self.read(h))
            hidden.append(h)
        new = State.zeros(CONFIG, len(tokens))
        new = State(
            np.stack(hidden)[:, None], *(getattr(new, n) for n in ("ffn_x", "num", "den", "max"))
        )
        return np.array(rows, np.float32).reshape(-1, VOCABULARY), new

    def step(self, h: np.ndarray, token: int) -> np.ndarray:
        return np.tanh(self._w @ h + self._e[token])

    def read(self, h: np.ndarray) -> np.ndarray:
        return self._h @ h


class ScriptedEngine(SmallEngine):
    """Predicts a given sequence, token by token, after any prompt of one token."""

    def __init__(self, script: list[int]) -> None:
        super().__init__()
        self.script = script

    def step(self, h, token):
        out = h.copy()
        out[0] += 1
        return out

    def read(self, h):
        logits = np.zeros(VOCABULARY, np.float32)
        at = int(h[0]) - 1
        logits[self.script[at] if at < len(self.script) else 0] = 50
        return logits


SINGLE = tuple(bytes([b]) for b in b"ab\n:" + "你é".encode())
LONG = (
    *(b"ab", b"a\n", b"\n\n", b"b\n:", b"\n:a", b"ba\nb", b"::", b"a:b"),
    *("你".encode(), b"\xbd\xa0", b"\xe4\xbd", b"\xa0a\n", b"\n\xe4", "é\n".encode(), b"\xa9:"),
)


class AwkwardTokenizer(ByteTable):
    """Tokens that end inside characters, begin with what may stop a text, or stand for nothing."""

    def __init__(self) -> None:
        table: list[bytes | None] = [b"", *SINGLE, *LONG, b"", None, *LONG, *LONG, *LONG]
        special = {"<end>": 0, "<nothing>": 1 + len(SINGLE) + len(LONG)}
        super().__init__("awkward", table[:VOCABULARY], special)

    def _encode(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            entry = max((t for t in self.table if t and data.startswith(t)), key=len)
            ids.append(self.table.index(entry))
            data = data[len(entry) :]
        return ids
