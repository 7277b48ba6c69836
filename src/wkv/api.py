"""``wkv.load``: any checkpoint to a model that reads and writes text."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import embedding, hub
from .checkpoint import open_checkpoint
from .config import ModelConfig
from .embedding import EmbeddingStatistics
from .engine import Engine
from .errors import CheckpointError, ConfigError, StateError, TokenizerError, UnavailableError
from .generate import Continuation, Generation, GenerationOptions, TextStream
from .sampling import SamplingOptions
from .state import State
from .tokenizer import Tokenizer, find_tokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch

EngineName = Literal["auto", "native", "torch"]
BUNDLED = Path(__file__).parent / "models" / "bundled"  # the folder of the model in this package
CHUNK = 1024  # tokens run at once where a caller gave no size: bounds the memory of long inputs


class LanguageModel:
    """A loaded model: an engine and, if there is one, its tokenizer. Made by :func:`load`.

    It holds no conversation: what was read so far is in the states that it returns.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer | TokenizerError, name: str = "model"
    ) -> None:
        self.engine = engine
        self.name = name
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        tokenizer = self._tokenizer.name if self.has_tokenizer else "none"  # type: ignore[union-attr]
        return f"LanguageModel({self.name!r}, engine={self.engine.name!r}, tokenizer={tokenizer!r})"

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""
        return self.engine.config

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be asked for; without a tokenizer the model runs on token ids."""
        return not isinstance(self._tokenizer, TokenizerError)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: there is none; says what is missing and where it was looked for.
        """
        if isinstance(self._tokenizer, TokenizerError):
            raise TokenizerError(str(self._tokenizer))
        return self._tokenizer

    def forward(
        self, ids: Sequence[int] | np.ndarray, state: State | None = None
    ) -> tuple[np.ndarray, State]:
        """Read tokens, going on from a state.

        Args:
            ids: token ids [T], T ≥ 1. A batch is run by ``model.engine.forward``.
            state: of one sequence, never changed; None is the state before the first token.

        Returns:
            Logits [V] float32 after the last token, and the new state.

        Raises:
            ShapeError: no tokens, or ids outside the vocabulary.
            StateError: a state of another model, or of several sequences.
        """
        _check_state(state)
        rest = list(ids)
        while len(rest) > CHUNK:
            _, state = self.engine.forward([rest[:CHUNK]], state, logits="none")
            rest = rest[CHUNK:]
        logits, state = self.engine.forward([rest], state)
        return logits[0], state

    def stream(
        self,
        prompt: str | Sequence[int] = "",
        *,
        state: State | None = None,
        logits: np.ndarray | None = None,
        sampling: SamplingOptions | None = None,
        max_tokens: int | None = 256,
        stop: str | Sequence[str] = (),
        stop_tokens: Sequence[int] | None = None,
        prefill_chunk: int = 256,
        logprobs: bool = False,
        allow_special: bool = False,
        **options: Any,
    ) -> TextStream:
        """Generate, piece by piece.

        Args:
            prompt: text or token ids to continue. An empty one begins a new document, or with
                ``state`` and ``logits`` goes on from there.
            state: what was read before the prompt; never changed.
            logits: [V], those that belong to ``state`` (of :meth:`forward` or a
                :class:`~wkv.generate.Generation`); needed only for an empty prompt.
            sampling: how to choose tokens; single settings may be given by name instead
                (``temperature=0.8, top_p=0.5``), which take precedence.
            max_tokens: see :class:`~wkv.generate.GenerationOptions`, as for the following.
            stop: texts that end the generation; text, ids and state are as if it was never read.
            stop_tokens: ids that end it; None takes the model's end of text, () none.
            prefill_chunk: tokens of the prompt run at once.
            logprobs: give the log-probability of every token.
            allow_special: read names of special tokens in the prompt as these tokens.
            options: fields of :class:`~wkv.sampling.SamplingOptions`.

        Returns:
            An iterator of :class:`~wkv.generate.Piece`, with ``cancel()`` and ``result()``.
        """
        _check_state(state)
        ids = self._ids(prompt, allow_special)
        if not ids:
            if state is None:
                if self.config.bos_token_id is None:
                    raise ConfigError(
                        "nothing to continue: give a prompt (the configuration names no "
                        "bos_token_id to begin a document with)"
                    )
                ids = [self.config.bos_token_id]
            elif logits is None:
                raise ConfigError(
                    "nothing to continue: with a state alone, give a prompt of at least one token, "
                    "or the logits that belong to the state"
                )
            else:
                state.check_fingerprint(self.engine.fingerprint)
                state.check(self.config, batch_size=1)
        if options:
            known = dataclasses.asdict(sampling or SamplingOptions())
            sampling = SamplingOptions.from_dict({**known, **options})
        sampling = sampling or SamplingOptions()
        sampling.check_vocabulary(self.config.vocab_size)
        how = GenerationOptions(
            max_tokens,
            stop,
            self.stop_tokens if stop_tokens is None else stop_tokens,
            prefill_chunk,
            logprobs,
        )
        for token in set(how.stop_tokens).difference(self.stop_tokens):
            if token >= self.config.vocab_size:
                raise ConfigError(
                    f"stop_tokens names token {token}: this model's ids run to "
                    f"{self.config.vocab_size - 1}"
                )
        tokenizer = self.tokenizer if self.has_tokenizer else None
        return TextStream(
            self.engine, Continuation(ids, state, tokenizer, how, sampling, logits=logits)
        )

    def generate(self, prompt: str | Sequence[int] = "", **options: Any) -> Generation:
        """Generate to the end; the arguments are those of :meth:`stream`.

        A model without a tokenizer takes and gives token ids, and its text is empty.
        """
        return self.stream(prompt, **options).result()

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end a document: the configuration's and the tokenizer's."""
        ends = {self.config.eos_token_id}
        if self.has_tokenizer:
            ends.add(self.tokenizer.end_of_text)
        return tuple(sorted(end for end in ends if end is not None))

    def embed(
        self,
        texts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        statistics: EmbeddingStatistics | None = None,
    ) -> np.ndarray:
        """Sentence vectors from the final state; :mod:`wkv.embedding` says of which fields.

        Args:
            texts: one text (or its ids), or several.
            statistics: of :meth:`embedding_statistics`; None normalises each field of each layer
                over its own channels.

        Returns:
            Unit vectors float32: [E] for one text, [N, E] for several; E = L·(2·D + A).
        """
        single = isinstance(texts, str) or (
            len(texts) > 0 and isinstance(texts[0], int | np.integer)
        )
        rows = [texts] if single else list(texts)
        out = embedding.embed(self._states(rows), statistics)  # type: ignore[arg-type]
        return out[0] if single else out

    def embedding_statistics(self, texts: Sequence[str]) -> EmbeddingStatistics:
        """Mean and deviation of every channel, for :meth:`embed`, from some hundred texts."""
        return EmbeddingStatistics.of(self._states(texts))

    def _states(self, texts: Sequence[str | Sequence[int]]) -> State:
        """The states after some texts [N rows]."""
        rows = [self._ids(text, False) for text in texts]
        if not rows or not all(rows):
            raise ConfigError("a text without a token has no sentence vector: give some text")
        states: list[State | None] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while order:
            # Texts of similar length together, as many as make a batch of about CHUNK tokens.
            group = [order.pop()]
            while order and len(rows[group[0]]) * (len(group) + 1) <= CHUNK:
                group.append(order.pop())
            if len(group) == 1:
                states[group[0]] = self.forward(rows[group[0]])[1]
                continue
            _, batch = self.engine.forward([rows[i] for i in group], logits="none")
            for row, i in enumerate(group):
                states[i] = batch.select(row)
        return State.stack([s for s in states if s is not None])

    def _ids(self, prompt: str | Sequence[int], allow_special: bool) -> list[int]:
        if isinstance(prompt, str):
            return (
                self.tokenizer.encode_prompt(prompt, allow_special=allow_special) if prompt else []
            )
        return list(prompt)


def _check_state(state: State | None) -> None:
    if state is not None and not isinstance(state, State):
        raise StateError(f"state is {state!r:.200}: give a wkv.State (State.load reads a file)")


def load(
    path_or_repo: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    engine: EngineName = "auto",
    quant: str | None = None,
    threads: int | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    revision: str | None = None,
) -> LanguageModel:
    """Load a model.

    Args:
        path_or_repo: a file or folder of any supported format, or the name of a repository on the
            Hugging Face Hub (``"RWKV/rwkv-4-169m-pile"``); None is the bundled model.
        device: a torch device for engine ``"torch"``; None is the CPU.
        dtype: of the weights in memory (``"float32"``, ``"bfloat16"`` …); None holds the stored
            ones exactly. The native engine has no float16, so it keeps such weights in float32:
            ``"bfloat16"`` takes half the memory and time, and rounds them.
        engine: ``"native"`` (the CPU engine of this package), ``"torch"``, or ``"auto"``: native
            where it is built and nothing asks for torch. A name is taken at its word.
        quant: ``"q8"`` or ``"q4"`` quantizes matrices on loading (native engine).
        threads: how many the engine may use; None lets it choose.
        tokenizer: a tokenizer, a path of one, ``"world"`` or ``"bytes"``; None finds it beside the
            checkpoint or by the vocabulary's size.
        revision: of the repository: branch, tag or commit.

    Raises:
        CheckpointError: no such file, or a damaged one, named.
        UnavailableError: an engine or device that this installation does not have.
        TokenizerError: the tokenizer asked for by name is missing or damaged. A tokenizer that
            merely was not found is an error once text is asked for.
    """
    path, name = _locate(path_or_repo, revision)
    chosen = _choose_engine(engine, device, dtype, quant)
    if chosen == "native":
        native = importlib.import_module("wkv.engine.native")
        runner: Engine = native.load_native(path, dtype=dtype, quant=quant, threads=threads)
    else:
        if quant is not None:
            raise UnavailableError(
                f"quant={quant!r} is the native engine's, and "
                + ("engine='torch' was asked for" if engine == "torch" else _without_native())
            )
        from .engine.torch_engine import load_torch

        checkpoint = open_checkpoint(path, writable=True)
        runner = load_torch(checkpoint, device=device, dtype=dtype, threads=threads)
    return LanguageModel(runner, _tokenizer_for(path, runner.config, tokenizer), name)


def _locate(path_or_repo: str | os.PathLike[str] | None, revision: str | None) -> tuple[Path, str]:
    if path_or_repo is None:
        if not (BUNDLED / "config.json").is_file():
            raise CheckpointError(
                BUNDLED, "this installation has no bundled model: give the path of a checkpoint"
            )
        return BUNDLED, "bundled"
    path = Path(path_or_repo).expanduser()
    if os.path.exists(path):  # unlike Path's own, no error for a name longer than any file's
        return path, str(path_or_repo)
    if not hub.is_repository_name(str(path_or_repo)):
        raise CheckpointError(path, "no such file or folder, and not a repository name (org/name)")
    return hub.download(str(path_or_repo), revision), str(path_or_repo)


def _choose_engine(
    engine: str, device: Any, dtype: str | None, quant: str | None
) -> Literal["native", "torch"]:
    if engine not in ("auto", "native", "torch"):
        raise UnavailableError(f"unknown engine {engine!r}: choose from auto, native, torch")
    on_cpu = device is None or str(device) == "cpu"
    if engine == "native" and not on_cpu:
        raise UnavailableError(f"engine 'native' runs on the CPU, not on {str(device)!r}")
    if engine != "auto":
        return "native" if engine == "native" else "torch"
    native_dtype = dtype in (None, "float32", "bfloat16")
    if _has_native() and on_cpu and (native_dtype or quant is not None):
        return "native"
    return "torch"


def _has_native() -> bool:
    return importlib.util.find_spec("wkv.engine.native") is not None


def _without_native() -> str:
    return "this installation has no native engine for this choice of device and dtype"


def _tokenizer_for(
    path: Path, config: ModelConfig, wanted: str | os.PathLike[str] | Tokenizer | None
) -> Tokenizer | TokenizerError:
    if wanted is None:
        try:
            return find_tokenizer(path if path.is_dir() else path.parent, config.vocab_size)
        except TokenizerError as error:
            return error
    found = load_tokenizer(wanted) if isinstance(wanted, str | os.PathLike) else wanted
    if found.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"tokenizer {found.name} has {found.vocab_size} ids, the model's vocabulary "
            f"{config.vocab_size}: they do not belong together"
        )
    return found
