"""``wkv generate``: text to the terminal as it is made."""

from __future__ import annotations

import codecs
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, StateError
from . import INTERRUPTED

if TYPE_CHECKING:
    from ..generate import Generation, TextStream, Usage


def generate(
    first: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A file, a folder or a repository on the Hugging Face Hub; the bundled model if "
            "there is only one argument.",
        ),
    ] = None,
    second: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="The text to continue; '-' reads it from standard input."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model, instead of MODEL.")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompt-file", "-f", help="Read the prompt from a file ('-': stdin)."),
    ] = None,
    prompt_ids: Annotated[
        str | None,
        typer.Option("--prompt-ids", help="The prompt as token ids: '12,7,301'."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="Tokens to write at most; 0 is no limit.")
    ] = 256,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="End before this text. May be given several times."),
    ] = None,
    stop_token: Annotated[
        list[int] | None,
        typer.Option(
            "--stop-token", help="End at this token id, besides the model's end of text. Several."
        ),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the model's end of text.")
    ] = False,
    escapes: Annotated[
        bool, typer.Option("--escapes", "-e", help=r"Read \n, \t, \\ … in PROMPT and --stop.")
    ] = False,
    allow_special: Annotated[
        bool,
        typer.Option("--allow-special", help="Read names of special tokens in the prompt as such."),
    ] = False,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="0 always takes the likeliest token.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Choose among the k likeliest; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Choose among the likeliest of this total probability; 1: all.")
    ] = 0.85,
    min_p: Annotated[
        float, typer.Option(help="Leave out tokens below this share of the likeliest's; 0: none.")
    ] = 0.0,
    typical_p: Annotated[
        float, typer.Option(help="Choose among the most typical of this probability; 1: all.")
    ] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option(help="Taken from the logits of tokens written before.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="Taken from them for each time they were written.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Divides the logits of tokens of prompt and text; 1: none.")
    ] = 1.0,
    penalty_decay: Annotated[
        float, typer.Option(help="What a count is multiplied with at each token.")
    ] = 0.996,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option("--logit-bias", metavar="ID=BIAS", help="Add to a token's logit. Several."),
    ] = None,
    ban: Annotated[
        list[int] | None, typer.Option("--ban", help="Never choose this token id. Several.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat a choice of random numbers.")] = None,
    temperature_last: Annotated[
        bool,
        typer.Option(
            "--temperature-last",
            help="Truncate before the temperature, as the original RWKV code, not after it.",
        ),
    ] = False,
    state_in: Annotated[
        Path | None, typer.Option("--state-in", help="Go on from a saved state.")
    ] = None,
    state_out: Annotated[
        Path | None, typer.Option("--state-out", help="Save the state after prompt and text.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as the text is made.")
    ] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Write the prompt before the text.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No line about speed at the end.")
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A tokenizer.json or World vocabulary, 'world' or 'bytes'."),
    ] = None,
    engine: Annotated[str, typer.Option(help="native, torch, or auto.")] = "auto",
    device: Annotated[str | None, typer.Option(help="For the torch engine: cuda, cuda:1 …")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights in memory: float32, bfloat16 …")
    ] = None,
    quant: Annotated[
        str | None, typer.Option(help="q8 or q4: quantize on loading (native engine).")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(envvar="WKV_NUM_THREADS", help="Threads of the engine.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a repository.")
    ] = None,
) -> None:
    r"""Write text that continues a prompt.

    wkv generate "Once upon a time"

    wkv generate RWKV/rwkv-4-169m-pile "Q: Why is the sky blue?\n\nA:" -e --stop '\n\n'

    The text goes to standard output, a line about speed to standard error. Ctrl-C ends the text
    and keeps what was written; the state saved is that after the text that was shown.
    """
    words = [word for word in (first, second) if word is not None]
    name, prompt = _model_and_prompt(words, model, prompt_file, prompt_ids, escapes)
    stops = [_unescaped(s) for s in stop or []] if escapes else stop or []
    biases = _biases(logit_bias or [])
    if state_out is not None:
        _check_writable(state_out)

    from .. import api
    from ..sampling import SamplingOptions
    from ..state import State

    sampling = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        penalty_decay=penalty_decay,
        logit_bias=biases,
        banned_tokens=ban or [],
        seed=seed,
        temperature_last=temperature_last,
    )
    state = State.load(state_in) if state_in is not None else None
    loaded = api.load(
        name,
        device=device,
        dtype=dtype,
        engine=engine,  # type: ignore[arg-type]
        quant=quant,
        threads=threads,
        tokenizer=tokenizer,
        revision=revision,
    )
    ends = (*(() if ignore_eos else loaded.stop_tokens), *(stop_token or []))
    stream = loaded.stream(
        prompt,
        state=state,
        sampling=sampling,
        max_tokens=None if max_tokens == 0 else max_tokens,
        stop=stops,
        stop_tokens=ends,
        logprobs=as_json,
        allow_special=allow_special,
    )
    show = _Json() if as_json else _Text(ids=not loaded.has_tokenizer)
    if echo:
        show.prompt(prompt)
    with _interrupt_cancels(stream):
        for piece in stream:
            show.piece(piece.text, piece.ids, piece.logprobs)
    result = stream.result()
    show.end(result)
    if state_out is not None:
        result.state.save(state_out)
    if not quiet:
        typer.echo(_speed(result.usage), err=True)
    if result.finish_reason == "cancelled":
        raise typer.Exit(INTERRUPTED)


def _model_and_prompt(
    words: list[str],
    model: str | None,
    prompt_file: Path | None,
    prompt_ids: str | None,
    escapes: bool,
) -> tuple[str | None, str | list[int]]:
    """What of the arguments is the model, and the prompt from wherever it comes."""
    if prompt_file is not None and prompt_ids is not None:
        raise typer.BadParameter("give --prompt-file or --prompt-ids, not both")
    elsewhere = prompt_file is not None or prompt_ids is not None
    if not elsewhere and not words:
        raise typer.BadParameter("no PROMPT (an empty one, '', begins a new text)")
    names = words if elsewhere else words[:-1]
    if len(names) > 1:
        raise typer.BadParameter(f"the prompt is given twice: {words[1]!r} and an option")
    if names and model is not None:
        raise typer.BadParameter(f"the model is given twice: {names[0]!r} and --model {model!r}")
    name = model if model is not None else (names[0] if names else None)
    if name is None and not elsewhere and _is_model(words[0]):
        raise typer.BadParameter(
            f"{words[0]!r} is a model and there is no PROMPT (an empty one, '', begins a new text)"
        )
    if prompt_ids is not None:
        try:
            return name, [int(i) for i in prompt_ids.replace(",", " ").split()]
        except ValueError:
            raise typer.BadParameter(
                f"--prompt-ids is {prompt_ids!r}: give whole numbers, '12,7,301'"
            ) from None
    if prompt_file is not None:
        return name, _read_text(prompt_file)
    if words[-1] == "-":
        return name, _read_text(Path("-"))
    return name, _unescaped(words[-1]) if escapes else words[-1]


def _is_model(word: str) -> bool:
    """Whether a lone argument is a model's file or folder, which nobody wants continued."""
    word = os.path.expanduser(word)
    if os.path.isfile(word):  # of any text, unlike Path's own, which fails on a long one
        return word.endswith((".pth", ".bin", ".safetensors"))
    return os.path.isfile(os.path.join(word, "config.json"))


def _read_text(path: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return data.decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the prompt: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: the prompt is not UTF-8 (byte {error.start} is {data[error.start]:#04x})"
        ) from error


def _unescaped(text: str) -> str:
    # Only ASCII backslash sequences are touched; other characters pass as they are.
    try:
        return codecs.decode(text.encode("latin-1", "backslashreplace"), "unicode_escape")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{text!r} has a broken escape sequence: {error.reason}") from None


def _biases(entries: list[str]) -> dict[int, float]:
    biases = {}
    for entry in entries:
        token, _, bias = entry.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise typer.BadParameter(
                f"--logit-bias is {entry!r}: give ID=BIAS, '12=-3.5'"
            ) from None
    return biases


def _check_writable(path: Path) -> None:
    """Say before the work, not after it, that its result cannot be kept."""
    folder = path.parent
    if not folder.is_dir():
        raise StateError(f"{path}: the folder {folder} does not exist")
    if (path.exists() and not path.is_file()) or not os.access(folder, os.W_OK):
        raise StateError(f"{path}: cannot be written")


@contextmanager
def _interrupt_cancels(stream: TextStream) -> Iterator[None]:
    """Ctrl-C ends the stream in good order; a second one ends the program."""

    def cancel(number: int, frame: object) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Text:
    """Text as it is; token ids, separated by spaces, where there is no tokenizer."""

    def __init__(self, *, ids: bool) -> None:
        self._ids = ids
        self._last = "\n"

    def prompt(self, prompt: str | list[int]) -> None:
        self._write(prompt if isinstance(prompt, str) else " ".join(map(str, prompt)) + " ")

    def piece(self, text: str, ids: tuple[int, ...], logprobs: tuple[float, ...]) -> None:
        self._write("".join(f"{i} " for i in ids) if self._ids else text)

    def end(self, result: Generation) -> None:
        if self._last != "\n" and (sys.stdout.isatty() or self._ids):
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            # Bytes: a terminal that is not UTF-8 must not end the program.
            sys.stdout.buffer.write(text.encode("utf-8", "replace"))
            sys.stdout.buffer.flush()
            self._last = text[-1]


class _Json:
    """A line for each piece; the last one says how it ended."""

    def prompt(self, prompt: str | list[int]) -> None:
        self._line({"prompt": prompt})

    def piece(self, text: str, ids: tuple[int, ...], logprobs: tuple[float, ...]) -> None:
        if text or ids:
            self._line({"text": text, "ids": ids, "logprobs": logprobs})

    def end(self, result: Generation) -> None:
        usage = result.usage
        self._line(
            {
                "finish_reason": result.finish_reason,
                "stop": result.stop,
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "prompt_seconds": round(usage.prompt_seconds, 6),
                "completion_seconds": round(usage.completion_seconds, 6),
            }
        )

    def _line(self, values: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()


def _speed(usage: Usage) -> str:
    def rate(tokens: int, seconds: float) -> str:
        per_second = f" ({tokens / seconds:,.1f} tokens/s)" if seconds > 0 and tokens else ""
        return f"{tokens:,} tokens in {seconds:.2f} s{per_second}"

    prompt = rate(usage.prompt_tokens, usage.prompt_seconds)
    return f"prompt: {prompt}; text: {rate(usage.completion_tokens, usage.completion_seconds)}"
