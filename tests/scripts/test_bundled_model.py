"""Packing the bundled model, and measuring its answers."""

import shutil

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import wkv
from wkv.api import BUNDLED
from wkv.data import encode_example, template
from wkv.hf import RwkvConfig, RwkvForCausalLM

RECORDS = [
    {"task": "count", "instruction": "Count the words.", "input": "It was so.", "output": "3"},
    {"task": "count", "instruction": "Count the words.", "input": "Go on.", "output": "2"},
    {"task": "use", "instruction": "Use go in a sentence.", "input": "", "output": "I go."},
    {"text": "plain"},
]


@pytest.fixture(scope="module")
def exported(script, tmp_path_factory):
    """A small model with weights everywhere, saved and packed."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = RwkvConfig(vocab_size=4096, hidden_size=32, num_hidden_layers=2, context_length=2048)
    model = RwkvForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder / "run")
    script("bundled_export").export(folder / "run", folder / "packed")
    shutil.copy(BUNDLED / "tokenizer.json", folder / "packed")
    return folder


def test_a_packed_model_keeps_its_numbers_and_halves_its_matrices(exported):
    wkv.register()
    run, packed = (AutoModelForCausalLM.from_pretrained(exported / n) for n in ("run", "packed"))
    assert packed.config.context_length == 2048
    assert packed.dtype == torch.float32
    for name, want in run.state_dict().items():
        got = packed.state_dict()[name]
        exact = name.endswith(("time_decay", "time_first"))
        assert torch.equal(got, want if exact else want.half().float()), name


def test_a_weight_that_does_not_fit_float16_is_named(exported, script, tmp_path):
    model = RwkvForCausalLM.from_pretrained(exported / "run")
    model.head.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "run")
    with pytest.raises(SystemExit, match=r"head\.weight does not fit"):
        script("bundled_export").export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_are_measured_alone_and_the_end_with_them(exported, script):
    model = wkv.load(exported / "packed", engine="torch")
    found = script("instructions.measure").answers(model, RECORDS, "raven")
    assert set(found) == {"count", "use"}
    assert found["count"]["examples"] == 2
    assert found["use"]["right"] is None
    reference = AutoModelForCausalLM.from_pretrained(exported / "packed")
    nats = tokens = 0.0
    for record in RECORDS[:2]:
        ids, counts = encode_example(template("raven").segments(record), model.tokenizer)
        labels = torch.tensor(ids[1:])
        learnt = torch.tensor(counts[1:], dtype=torch.bool)
        logits = reference(torch.tensor([ids[:-1]])).logits[0]
        nats += F.cross_entropy(logits[learnt], labels[learnt], reduction="sum").item()
        tokens += int(learnt.sum())
    assert found["count"]["tokens"] == tokens == 4
    assert found["count"]["loss"] == pytest.approx(nats / tokens, abs=1e-3)


def test_an_answer_is_right_only_to_its_end(exported, script):
    model = wkv.load(exported / "packed", engine="torch")
    form = template("raven")
    prompt = model.tokenizer.encode_prompt(form.prompt_with_input("Count the words.", "Go on."))
    logits, _ = model.engine.forward([prompt], None)
    best = model.tokenizer.decode([int(logits[0].argmax())])
    records = [{**RECORDS[1], "output": best}]
    (row,) = script("instructions.measure").answers(model, records, "raven").values()
    assert row["right"] == 0  # the first token is the likeliest, the end after it is not
