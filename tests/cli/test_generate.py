from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.small_engines import AwkwardTokenizer, SmallEngine
from wkv import api, cli
from wkv.errors import CheckpointError, TokenizerError
from wkv.state import State

TOKENIZER = AwkwardTokenizer()


@pytest.fixture
def loads(monkeypatch):
    """``wkv.load`` gives a small model; what it was asked for is recorded."""
    calls = []

    def load(name, **options):
        calls.append((name, options))
        load.model = api.LanguageModel(SmallEngine(), load.tokenizer, "small")
        return load.model

    load.tokenizer = TOKENIZER
    load.calls = calls
    monkeypatch.setattr(api, "load", load)
    return load


def run(*arguments: str, **kwargs):
    return CliRunner().invoke(cli.app, ["generate", *arguments], prog_name="wkv", **kwargs)


def expected(prompt, **options):
    model = api.LanguageModel(SmallEngine(), TOKENIZER)
    return model.generate(prompt, **{"top_p": 0.85, **options})


# --- model and prompt -----------------------------------------------------------------------


def test_one_argument_is_the_prompt_and_two_are_model_and_prompt(loads):
    want = expected("ab", seed=3).text
    for arguments in (("ab",), ("some/model", "ab"), ("--model", "some/model", "ab")):
        done = run(*arguments, "--seed", "3")
        assert done.exit_code == 0, done.output
        assert done.stdout == want
    assert [name for name, _ in loads.calls] == [None, "some/model", "some/model"]


def test_the_prompt_comes_from_a_file_standard_input_or_ids(loads, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("ab你\n", encoding="utf-8")
    want = expected("ab你\n", seed=1).text
    assert run("-f", str(path), "--seed", "1").stdout == want
    assert run("m", "-f", str(path), "--seed", "1").stdout == want
    assert run("-", "--seed", "1", input="ab你\n").stdout == want
    assert run("-f", "-", "--seed", "1", input="ab你\n").stdout == want
    assert run("-e", r"ab你\n", "--seed", "1").stdout == want
    ids = ",".join(map(str, TOKENIZER.encode("ab你\n")))
    assert run("--prompt-ids", ids, "--seed", "1").stdout == want
    assert [name for name, _ in loads.calls] == [None, "m", None, None, None, None]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "no PROMPT"),
        (("a", "b", "c"), "extra argument"),
        (("-m", "x", "a", "b"), "model is given twice"),
        (("a", "b", "-f", "-"), "prompt is given twice"),
        (("--prompt-ids", "1", "-f", "-"), "not both"),
        (("--prompt-ids", "1,x"), "give whole numbers"),
        (("a", "--logit-bias", "3"), "ID=BIAS"),
        (("a", "-e", "--stop", "\\x1"), "broken escape"),
        (("a", "--top-k", "many"), "--top-k"),
    ],
)
def test_wrong_usage_is_explained_with_exit_code_2(loads, arguments, word):
    done = run(*arguments)
    assert done.exit_code == 2
    assert word in " ".join(done.stderr.split())
    assert not loads.calls


def test_a_lone_model_is_not_taken_for_a_prompt(loads, tmp_path, monkeypatch):
    for name in ("model.pth", "folder/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for model in (tmp_path / "model.pth", tmp_path / "folder"):
        done = run(str(model))
        assert done.exit_code == 2
        assert "is a model and there is no PROMPT" in " ".join(done.stderr.split())
    assert not loads.calls
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ab").mkdir()  # a folder, but no model
    for prompt in ("ab", "ab" * 2000):
        assert run(prompt, "-n", "1").exit_code == 0


def test_bad_values_and_files_are_one_line_with_exit_code_1(loads, tmp_path):
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    for arguments, word in (
        (("a", "--temperature", "-1"), "temperature is -1"),
        (("a", "--ban", "64"), "banned_tokens names token 64"),
        (("-f", str(tmp_path / "none.txt")), "No such file"),
        (("-f", str(tmp_path / "latin1.txt")), "not UTF-8 (byte 3 is 0xe9)"),
        (("a", "--state-in", str(tmp_path / "none")), "no such state file"),
        (("a", "--state-out", str(tmp_path / "no" / "s")), "does not exist"),
        (("a", "--state-out", str(tmp_path)), "cannot be written"),
        (("a", "--state-out", os.devnull), "cannot be written"),
        (("a", "-n", "-5"), "max_tokens is -5"),
    ):
        done = run(*arguments)
        assert done.exit_code == 1, done.output
        assert word in done.stderr
        assert done.stderr.startswith("wkv: ")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


# --- what is written ------------------------------------------------------------------------


def test_the_text_is_on_standard_output_and_the_speed_on_standard_error(loads):
    done = run("ab", "--seed", "5", "-n", "20")
    assert done.stdout == expected("ab", seed=5, max_tokens=20).text
    assert "prompt: 1 tokens in" in done.stderr
    assert "tokens/s)" in done.stderr
    assert run("ab", "--seed", "5", "--quiet").stderr == ""
    assert run("ab", "--seed", "5", "-n", "20", "--echo").stdout == "ab" + done.stdout


def test_json_lines_join_to_the_generation(loads):
    want = expected("ab", seed=6, stop=["\n"], stop_tokens=(0, 5))
    done = run("ab", "--seed", "6", "--json", "-e", "--stop", r"\n", "--stop-token", "5", "--echo")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0] == {"prompt": "ab"}
    assert "".join(line["text"] for line in lines[1:-1]) == want.text
    assert tuple(i for line in lines[1:-1] for i in line["ids"]) == want.ids
    assert sum(len(line["logprobs"]) for line in lines[1:-1]) == len(want.ids)
    last = lines[-1]
    assert last["finish_reason"] == want.finish_reason == "stop"
    assert last["stop"] == want.stop
    assert last["completion_tokens"] == len(want.ids)
    assert last["prompt_tokens"] == 1


def test_every_sampling_option_reaches_the_sampler(loads):
    done = run(
        *("ab", "--temperature", "0.7", "--top-k", "20", "--top-p", "0.9", "--min-p", "0.01"),
        *("--typical-p", "0.95", "--presence-penalty", "0.3", "--frequency-penalty", "0.2"),
        *("--repetition-penalty", "1.1", "--penalty-decay", "0.9", "--logit-bias", "3=-2.5"),
        *("--ban", "4", "--ban", "6", "--seed", "8", "--temperature-last"),
    )
    want = expected(
        "ab",
        temperature=0.7,
        top_k=20,
        top_p=0.9,
        min_p=0.01,
        typical_p=0.95,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        penalty_decay=0.9,
        logit_bias={3: -2.5},
        banned_tokens=[4, 6],
        seed=8,
        temperature_last=True,
    )
    assert done.stdout == want.text


def test_options_of_the_model_reach_load(loads, monkeypatch):
    monkeypatch.setenv("WKV_NUM_THREADS", "3")
    run("ab", "--engine", "torch", "--device", "cpu", "--dtype", "float32", "--revision", "v1")
    run("ab", "--threads", "2", "--tokenizer", "world", "--quant", "q8")
    first, second = (options for _, options in loads.calls)
    assert first == {
        "engine": "torch",
        "device": "cpu",
        "dtype": "float32",
        "revision": "v1",
        "threads": 3,
        "quant": None,
        "tokenizer": None,
    }
    assert (second["threads"], second["tokenizer"], second["quant"]) == (2, "world", "q8")


def test_no_limit_ends_at_the_model_s_end_of_text_unless_ignored(loads):
    bias = ("--logit-bias", "0=1000")
    done = run("ab", "-n", "0", *bias)
    assert (done.exit_code, done.stdout) == (0, "")
    done = run("ab", "-n", "3", "--ignore-eos", "--json", *bias)
    assert json.loads(done.stdout.splitlines()[-1])["completion_tokens"] == 3


def test_special_tokens_in_the_prompt_are_text_unless_asked(loads):
    prompt = "a<end>"
    assert isinstance(
        run(prompt).exception, ValueError
    )  # this tokenizer has no '<' to write it with
    done = run(prompt, "--allow-special", "--seed", "2")
    assert done.stdout == expected([1, 0], seed=2).text


def test_without_a_tokenizer_ids_go_in_and_out(loads):
    loads.tokenizer = TokenizerError("no tokenizer; looked for tokenizer.json")
    done = run("--prompt-ids", "1,2", "-n", "4", "--seed", "1")
    assert done.exit_code == 0, done.output
    want = expected([1, 2], max_tokens=4, seed=1)
    assert [int(i) for i in done.stdout.split()] == list(want.ids)
    done = run("text")
    assert (done.exit_code, done.stderr) == (
        1,
        "wkv: no tokenizer; looked for tokenizer.json\n",
    )


# --- states ---------------------------------------------------------------------------------


def test_a_saved_state_goes_on_where_the_text_ended(loads, tmp_path):
    path = tmp_path / "state.safetensors"
    done = run("ab", "--seed", "1", "-n", "9", "--state-out", str(path))
    first = expected("ab", seed=1, max_tokens=9)
    assert done.stdout == first.text
    np.testing.assert_array_equal(State.load(path).att_x, first.state.att_x)
    done = run("b\n", "--seed", "2", "-n", "9", "--state-in", str(path), "--state-out", str(path))
    second = expected("b\n", seed=2, max_tokens=9, state=first.state)
    assert done.stdout == second.text
    np.testing.assert_array_equal(State.load(path).att_x, second.state.att_x)


def test_control_c_keeps_what_was_written_and_saves_its_state(loads, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    calls = iter(range(100_000))
    forward = SmallEngine.forward

    def interrupted(self, *args, **kwargs):
        if next(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SmallEngine, "forward", interrupted)
    before = signal.getsignal(signal.SIGINT)
    done = run("ab", "--seed", "1", "-n", "0", "--ignore-eos", "--json", "--state-out", str(path))
    assert signal.getsignal(signal.SIGINT) is before
    assert done.exit_code == 130
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    ids = [i for line in lines[:-1] for i in line["ids"]]
    assert lines[-1]["finish_reason"] == "cancelled"
    assert ids == list(expected("ab", seed=1, max_tokens=len(ids), stop_tokens=()).ids)
    assert len(ids) == 8
    monkeypatch.undo()
    _, want = SmallEngine().forward([[*TOKENIZER.encode("ab"), *ids]])
    np.testing.assert_array_equal(State.load(path).att_x, want.att_x)


def test_a_second_control_c_ends_at_once(loads, monkeypatch):
    def stuck(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SmallEngine, "forward", stuck)
    done = run("ab")
    assert (done.exit_code, done.output) == (130, "")


SCRIPT = """
import wkv.api as api
from tests.small_engines import AwkwardTokenizer, SmallEngine
api.load = lambda *a, **k: api.LanguageModel(SmallEngine(), AwkwardTokenizer())
from wkv.cli import main
main()
"""


def test_a_closed_pipe_is_quiet():
    arguments = [sys.executable, "-c", SCRIPT, "generate", "ab", "-n", "0", "--ignore-eos"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(20)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_a_full_disk_under_the_output_is_one_line(extra):
    arguments = [sys.executable, "-c", SCRIPT, "generate", "ab", *extra]
    with open("/dev/full", "w") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "wkv: No space left on device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_closed_standard_streams_are_empty_ones(tmp_path):
    path = tmp_path / "state.safetensors"
    arguments = [sys.executable, "-c", SCRIPT, "generate", "-", "-n", "3", "--state-out", str(path)]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *arguments]
    assert subprocess.run(closed).returncode == 0
    assert State.load(path).batch_size == 1


def test_text_is_shown_as_it_is_made(loads):
    """The first piece arrives while the generation, without an end, still runs."""
    arguments = [
        sys.executable,
        "-c",
        SCRIPT,
        "generate",
        "ab",
        "-n",
        "0",
        "--ignore-eos",
        "--json",
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = json.loads(process.stdout.readline())
        assert first["text"] or first["ids"]
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().splitlines()
        assert json.loads(rest[-1])["finish_reason"] == "cancelled"
        assert process.wait(60) == 130
        assert b"tokens/s" in process.stderr.read()


def test_a_real_checkpoint_writes_text(tmp_path):
    from tests.engine.conftest import write_checkpoint
    from wkv.config import ModelConfig

    config = ModelConfig(vocab_size=257, hidden_size=32, num_hidden_layers=2)
    folder = write_checkpoint(tmp_path, config)
    done = run(str(folder), "Hello", "--engine", "torch", "-t", "0", "-n", "5", "--json")
    assert done.exit_code == 0, done.output
    ids = [i for line in done.stdout.splitlines()[:-1] for i in json.loads(line)["ids"]]
    assert tuple(ids) == (
        api.load(folder, engine="torch").generate("Hello", temperature=0, max_tokens=5).ids
    )


def test_a_missing_model_is_one_line(tmp_path):
    done = run(str(tmp_path / "none.pth"), "Hello")
    assert done.exit_code == 1
    assert done.stderr == f"wkv: {CheckpointError(tmp_path / 'none.pth', '')}".rstrip() + (
        " no such file or folder, and not a repository name (org/name)\n"
    )
