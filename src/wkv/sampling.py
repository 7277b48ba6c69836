"""From logits to the next token id: pure functions on NumPy arrays.

The steps and their order are Hugging Face's by default, so that a setting means here what it means
there: repetition penalty, presence and frequency penalties, bias and bans; then temperature, top-k,
top-p, min-p, typical. ``temperature_last=True`` is the original RWKV order: softmax, top-p, top-k,
min-p, typical, and then probabilities to the power 1/T, which keeps the truncation independent of
the temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from .errors import ConfigError, NonFiniteError, ShapeError


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose a token. The defaults sample from the model's own distribution.

    Attributes:
        temperature: divides the logits (at the end of the chain with ``temperature_last``);
            0 is greedy.
        top_k: keep the k most probable tokens (and ties with the last); 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose probabilities reach this sum;
            0 keeps the most probable one, 1 keeps all.
        min_p: drop tokens less probable than this times the most probable one; 0 keeps all.
        typical_p: keep the tokens whose surprise is nearest to the entropy, up to this probability
            (Meister et al. 2022); 1 keeps all.
        presence_penalty: subtracted from the logit of every token generated so far.
        frequency_penalty: subtracted times the token's count, which decays.
        repetition_penalty: divides positive and multiplies negative logits of every token of the
            prompt and the text so far (Keskar et al. 2019); 1 does nothing. To the power of the
            token's decayed count where that is below 1, so that old tokens are forgiven.
        penalty_decay: factor on all counts at each step; the original chat uses 0.996, and 1 is
            the behaviour of Hugging Face and OpenAI.
        logit_bias: added to the logits of these token ids.
        banned_tokens: ids never chosen.
        seed: of the random numbers; None draws one from the system.
        do_sample: False is greedy, whatever the temperature.
        temperature_last: the original RWKV order.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    penalty_decay: float = 0.996
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned_tokens: Sequence[int] = ()
    seed: int | None = None
    do_sample: bool = True
    temperature_last: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, math.inf),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("typical_p", 0.0, 1.0),
            ("presence_penalty", -math.inf, math.inf),
            ("frequency_penalty", -math.inf, math.inf),
            ("repetition_penalty", 0.0, math.inf),
            ("penalty_decay", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high or math.isinf(value):
                bounds = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
                raise ConfigError(
                    f"{name} is {value!r}: give a number{'' if low == -math.inf else ' ' + bounds}"
                )
        if self.repetition_penalty == 0 or self.typical_p == 0:
            name = "repetition_penalty" if self.repetition_penalty == 0 else "typical_p"
            raise ConfigError(f"{name} is 0: give a number above 0 (1 does nothing)")
        _whole("top_k", self.top_k)
        if self.seed is not None:
            _whole("seed", self.seed)
        if not isinstance(self.logit_bias, Mapping):
            raise ConfigError(f"logit_bias is {self.logit_bias!r}: give a mapping of id to number")
        for token, bias in self.logit_bias.items():
            _whole("a token id in logit_bias", token)
            if not _is_number(bias) or not math.isfinite(bias):
                raise ConfigError(
                    f"logit_bias of token {token} is {bias!r}: give a finite number; to exclude a "
                    "token name it in banned_tokens"
                )
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        if not isinstance(self.banned_tokens, Iterable):
            raise ConfigError(f"banned_tokens is {self.banned_tokens!r}: give token ids")
        object.__setattr__(self, "banned_tokens", tuple(self.banned_tokens))
        for token in self.banned_tokens:
            _whole("a token id in banned_tokens", token)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingOptions:
        """Build from plain values; an unknown name is an error that lists the known ones."""
        known = {f.name for f in fields(cls)}
        unknown = set(values) - known
        if unknown:
            raise ConfigError(
                f"unknown sampling option {sorted(unknown)[0]!r}: known are "
                f"{', '.join(sorted(known))}"
            )
        return cls(**values)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return not self.do_sample or self.temperature == 0

    @property
    def uses_history(self) -> bool:
        """Whether any penalty is on."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise :class:`ConfigError` if a token id named here is outside the vocabulary."""
        for name in ("logit_bias", "banned_tokens"):
            for token in getattr(self, name):
                if token >= vocab_size:
                    raise ConfigError(
                        f"{name} names token {token}: this model's ids run to {vocab_size - 1}"
                    )

    def generator(self) -> np.random.Generator:
        """The source of random numbers that ``seed`` names."""
        return np.random.default_rng(self.seed)


class TokenCounts:
    """How often each token was seen, all counts decaying with every further one.

    Counts of prompt and text are for the repetition penalty; presence and frequency penalties look
    at the generated text alone.
    """

    def __init__(self, decay: float = 1.0, prompt: Sequence[int] = ()) -> None:
        self._decay = decay
        tokens = np.asarray(prompt, np.int64)
        self._ids, inverse = np.unique(tokens, return_inverse=True)
        ages = np.arange(len(tokens))[::-1]
        self._all: np.ndarray = np.bincount(inverse, float(decay) ** ages, len(self._ids))
        self._generated: np.ndarray = np.zeros(len(self._ids))
        self._index = {int(i): n for n, i in enumerate(self._ids)}

    def add(self, token: int) -> None:
        """Count a generated token."""
        if self._decay != 1:
            self._all = self._all * self._decay
            self._generated = self._generated * self._decay
        at = self._index.setdefault(token, len(self._index))
        if at == len(self._ids):
            self._ids = np.append(self._ids, token)
            self._all = np.append(self._all, 0.0)
            self._generated = np.append(self._generated, 0.0)
        self._all[at] += 1
        self._generated[at] += 1

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids [N] int64 and decayed counts [N] float32 of prompt and generated text."""
        return self._ids, self._all.astype(np.float32)

    def generated(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids [N] int64 and decayed counts [N] float32 of the generated text."""
        seen = self._generated > 0
        return self._ids[seen], self._generated[seen].astype(np.float32)


def adjust(
    logits: np.ndarray, options: SamplingOptions, counts: TokenCounts | None = None
) -> np.ndarray:
    """Logits [V] float32 after penalties, bias and bans; the argument is not changed."""
    logits = _checked(logits)
    uses_history = options.uses_history and counts is not None
    if not (uses_history or options.logit_bias or options.banned_tokens):
        return logits
    logits = logits.copy()
    if uses_history and options.repetition_penalty != 1:
        assert counts is not None
        ids, weights = counts.all()
        factor = np.float32(options.repetition_penalty) ** np.minimum(weights, 1)
        seen = logits[ids]
        logits[ids] = np.where(seen < 0, seen * factor, seen / factor)
    if uses_history and (options.presence_penalty or options.frequency_penalty):
        assert counts is not None
        ids, weights = counts.generated()
        logits[ids] -= options.presence_penalty + options.frequency_penalty * weights
    for token, bias in options.logit_bias.items():
        logits[token] += bias
    if options.banned_tokens:
        logits[list(options.banned_tokens)] = -np.inf
    return logits


def candidates(logits: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be chosen and their probabilities.

    Args:
        logits: [V] float32, after :func:`adjust`; −inf excludes a token.
        options: temperature and truncation; a greedy choice is one token of probability 1.

    Returns:
        Ids [N] int64, ascending, and probabilities [N] float64 that sum to 1.
    """
    ids, weights = _survivors(logits, options)
    if ids is None:
        ids = np.arange(len(weights))
    p = weights.astype(np.float64)
    return ids, p / p.sum()


def sample(
    logits: np.ndarray,
    options: SamplingOptions,
    generator: np.random.Generator,
    counts: TokenCounts | None = None,
) -> int:
    """Choose the next token.

    Args:
        logits: [V] float32, as a model gives them.
        options: see :class:`SamplingOptions`.
        generator: random numbers; one is drawn for each token that is not greedy.
        counts: what was seen so far, for the penalties; the caller adds the chosen token.

    Raises:
        NonFiniteError: a logit is NaN or +inf.
        ShapeError: logits that are not [V].
    """
    ids, weights = _survivors(adjust(logits, options, counts), options)
    at = 0 if options.greedy else _draw(weights, generator.random())
    return at if ids is None else int(ids[at])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities of logits [V], float32."""
    logits = _checked(logits)
    return logits - np.float32(_log_sum(logits))


def log_probability(logits: np.ndarray, token: int) -> float:
    """The natural log-probability of one token under logits [V]."""
    logits = _checked(logits)
    return float(logits[token]) - _log_sum(logits)


def _log_sum(logits: np.ndarray) -> float:
    top = logits.max()
    return float(top) + math.log(np.exp(logits - top).sum(dtype=np.float64))


def _survivors(
    logits: np.ndarray, options: SamplingOptions
) -> tuple[np.ndarray | None, np.ndarray]:
    """Ids ascending (None for all) and weights [N] float32, of which the largest is 1."""
    logits = _checked(logits)
    top = logits.max()
    if top == -np.inf:
        raise ConfigError("every token is banned: leave at least one")
    if options.greedy:
        return np.array([logits.argmax()]), np.ones(1, np.float32)
    if options.temperature_last:
        steps = (_top_p, _top_k, _min_p, _typical)
    else:
        steps = (_top_k, _top_p, _min_p, _typical)
        logits = _scaled(logits, options)
    ids: np.ndarray | None = None
    for step in steps:
        keep = step(logits, options)
        if keep is not None:
            ids = keep if ids is None else ids[keep]
            logits = logits[keep]
    if options.temperature_last:
        logits = _scaled(logits, options)
    return ids, np.exp(logits - logits.max())


def _scaled(logits: np.ndarray, options: SamplingOptions) -> np.ndarray:
    if options.temperature == 1:
        return logits
    # Colder than this is greedy in float32 arithmetic already, and further down is 0/0.
    return (logits - logits.max()) / np.float32(max(options.temperature, 1e-6))


def _draw(weights: np.ndarray, uniform: float) -> int:
    """The index at which the sum of the weights passes this fraction of the whole.

    The order is that of the ids, so that engines whose logits differ in the last bit choose the
    same token unless the draw falls into that last bit.
    """
    # Two levels, blocks and then within one: a running sum over a whole vocabulary is slow.
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), 256), dtype=np.float64)
    edges = blocks.cumsum()
    goal = uniform * edges[-1]
    block = _passing(edges, goal)
    inside = weights[block * 256 : block * 256 + 256].cumsum(dtype=np.float64)
    return block * 256 + _passing(inside, goal - (edges[block - 1] if block else 0.0))


def _passing(edges: np.ndarray, goal: float) -> int:
    at = int(edges.searchsorted(goal, "right"))
    # Rounding can leave the goal at the very end: then the last entry that adds anything.
    return at if at < len(edges) else int(edges.searchsorted(edges[-1], "left"))


def _top_k(logits: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    k = options.top_k
    if not 0 < k < len(logits):
        return None
    return np.flatnonzero(logits >= np.partition(logits, -k)[-k])


def _top_p(logits: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    if options.top_p >= 1:
        return None
    p = np.exp(logits - logits.max())  # the largest is 1
    goal = options.top_p * float(p.sum())
    # Sorting the whole vocabulary is slow: sort what is above a floor, and lower that only while
    # the sum above it falls short.
    for floor in (2**-6, 2**-12, 2**-18, 0.0):
        keep = np.flatnonzero(p >= floor)
        head = p[keep]
        if head.sum() >= goal:
            break
    ordered = np.sort(head)[::-1]
    sums = ordered.cumsum(dtype=np.float64)
    last = min(int(sums.searchsorted(goal)), len(ordered) - 1)
    return keep[head >= ordered[last]]


def _min_p(logits: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    if options.min_p <= 0:
        return None
    return np.flatnonzero(logits >= logits.max() + np.float32(math.log(options.min_p)))


def _typical(logits: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    if options.typical_p >= 1:
        return None
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    entropy = -np.dot(p, np.where(p > 0, log_p, 0))
    distance = np.abs(-log_p - entropy)
    for size in (*(n for n in (512, 8192) if n < len(p)), len(p)):
        head = np.argpartition(distance, size - 1)[:size]
        if p[head].sum() >= options.typical_p:
            break
    order = head[distance[head].argsort()]
    sums = p[order].cumsum(dtype=np.float64)
    last = min(int(sums.searchsorted(options.typical_p)), len(order) - 1)
    return np.flatnonzero(distance <= distance[order[last]])


def _checked(logits: np.ndarray) -> np.ndarray:
    if logits.ndim != 1 or not len(logits):
        raise ShapeError(f"logits are {logits.shape}: expected [V], one number a token")
    if logits.dtype != np.float32:
        logits = logits.astype(np.float32)
    top = logits.max()  # NaN if any is
    if np.isnan(top) or top == np.inf:
        bad = int(np.flatnonzero(np.isnan(logits) | (logits == np.inf))[0])
        raise NonFiniteError(
            f"the logit of token {bad} is {logits[bad]}: the model's weights or state are damaged, "
            "or its arithmetic overflowed (try dtype float32)"
        )
    return logits


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and not isinstance(value, bool) and not math.isnan(value)


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ConfigError(f"{name} is {value!r}: give a whole number of at least 0")
