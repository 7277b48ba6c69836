"""What other libraries do with the model: devices, quantisation, compilation, Trainer, PEFT."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tests.hf.conftest import causal_lm
from wkv.config import ModelConfig
from wkv.errors import UnavailableError
from wkv.hf import RwkvForCausalLM

IDS = torch.tensor([[5, 17, 3, 88, 5, 41], [7, 23, 60, 1, 9, 44]])


def relative_error(got, want) -> float:
    return ((got.float() - want).abs().max() / want.abs().max()).item()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    """The model and a tokenizer, saved."""
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


# --- devices --------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, {"rwkv": "cpu", "head": "cpu"}])
@torch.no_grad()
def test_device_map_on_a_cpu(model, folder, device_map):
    placed = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map)
    assert torch.equal(placed(IDS).logits, model(IDS).logits)
    assert placed.generate(IDS, max_new_tokens=3, do_sample=False).shape == (2, 9)


SOME = {"rwkv.blocks.0": "cpu", "rwkv.blocks.1": "disk", "rwkv.blocks.2": "disk"}


@pytest.mark.parametrize(
    "device_map",
    [
        {"rwkv.embeddings": "cpu", **SOME, "rwkv.ln_out": "cpu", "head": "cpu"},
        {"rwkv.embeddings": "disk", **SOME, "rwkv.ln_out": "disk", "head": "cpu"},
    ],
    ids=["blocks", "embeddings too"],
)
@torch.no_grad()
def test_modules_offloaded_to_disk_say_the_same(model, folder, tmp_path, device_map):
    placed = AutoModelForCausalLM.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path
    )
    assert placed.rwkv.blocks[1].attention.key.weight.is_meta
    assert torch.equal(placed(IDS).logits, model(IDS).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    got, want = placed.generate(IDS, **options), model.generate(IDS, **options)
    assert torch.equal(got.sequences, want.sequences)
    assert torch.equal(got.state.num, want.state.num)
    got, want = (
        m.generate(o.sequences[:, -1:], state=o.state, **options)
        for m, o in ((placed, got), (model, want))
    )
    assert torch.equal(got.sequences, want.sequences)


# --- quantisation ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose matrices fill the libraries' blocks of 64; its folder; its logits."""
    config = ModelConfig(vocab_size=97, hidden_size=64, num_hidden_layers=3, rescale_every=1)
    model, path = causal_lm(config), tmp_path_factory.mktemp("wide")
    model.save_pretrained(path)
    with torch.no_grad():
        return path, model(IDS).logits


def quantised(kind: str):
    if kind.startswith("torchao"):
        pytest.importorskip("torchao")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        inner = Int8WeightOnlyConfig if kind.endswith("weights") else None
        return TorchAoConfig((inner or Int8DynamicActivationInt8WeightConfig)())
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    if kind.endswith("8 bits"):
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


KINDS = [
    ("torchao weights", 0.03),
    ("torchao weights and activations", 0.05),
    ("bitsandbytes 8 bits", 0.05),
    ("bitsandbytes 4 bits", 0.3),
]


@pytest.mark.parametrize(("kind", "tolerance"), KINDS)
@torch.no_grad()
def test_quantised_models_are_near_and_save_themselves(wide, tmp_path, kind, tolerance):
    path, want = wide
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=quantised(kind), dtype=torch.float32, device_map="cpu"
    )
    weight = model.rwkv.blocks[0].attention.key.weight
    assert type(weight) is not torch.nn.Parameter
    assert model.rwkv.blocks[0].attention.time_decay.dtype == torch.float32
    # Before the first forward: there bitsandbytes repacks 4-bit weights in place for the CPU, and
    # would then save what it cannot read back.
    model.save_pretrained(tmp_path)
    logits = model(IDS).logits
    assert 0 < relative_error(logits, want) < tolerance
    assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (2, 9)
    assert torch.equal(model(IDS).logits, logits)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    assert torch.equal(again(IDS).logits, logits)


@torch.no_grad()
def test_rescaled_float16_leaves_quantised_weights_alone(wide):
    path, want = wide
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=quantised("torchao weights"), dtype=torch.float16
    )
    assert model.config.rescale_every == 1
    before = [block.attention.output.weight.dequantize().clone() for block in model.rwkv.blocks]
    assert relative_error(model(IDS).logits, want) < 0.05
    for block, weight in zip(model.rwkv.blocks, before):
        assert torch.equal(block.attention.output.weight.dequantize(), weight)


# --- compilation ----------------------------------------------------------------------------


@torch.no_grad()
def test_compiled_prefill_and_decode_are_whole_graphs_with_the_same_logits(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got, want = compiled(IDS), model(IDS)
    assert relative_error(got.logits, want.logits) < 1e-5
    step = torch.tensor([[4], [5]])
    logits = compiled(step, state=got.state).logits
    assert relative_error(logits, model(step, state=want.state).logits) < 1e-5


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@torch.no_grad()
def test_torch_compile_gives_the_same_logits():
    torch._dynamo.reset()
    model = causal_lm(ModelConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1))
    assert relative_error(torch.compile(model)(IDS).logits, model(IDS).logits) < 1e-5


# --- pipeline -------------------------------------------------------------------------------


def test_the_text_generation_pipeline(model, folder, tokenizer):
    pipe = pipeline("text-generation", model=str(folder))
    assert type(pipe.model) is RwkvForCausalLM
    options = {"max_new_tokens": 8, "do_sample": False}
    texts = ["To be", "or not to be, that is", "x"]
    alone = [pipe(text, **options)[0]["generated_text"] for text in texts]
    for text, said in zip(texts, alone):
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert said == tokenizer.decode(model.generate(ids, **options)[0], skip_special_tokens=True)
    batched = pipe(texts, batch_size=3, **options)
    assert [said[0]["generated_text"] for said in batched] == alone
    seeded = [pipe(texts[0], do_sample=True, seed=4, max_new_tokens=8) for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_autotokenizer_reads_the_neox_tokenizer_as_it_is(shared_dir, tmp_path, square_config):
    from tokenizers import Tokenizer

    path = shared_dir / "20B_tokenizer.json"
    if not path.is_file():
        pytest.skip("needs ../shared/data/20B_tokenizer.json")
    raw = Tokenizer.from_file(str(path))
    text = "The quick  brown\n\n\tfox — naïve café, 1234567   spaces. def f(x):\n    return x"
    causal_lm(square_config).config.save_pretrained(tmp_path)
    shutil.copy(path, tmp_path / "tokenizer.json")
    named = '{"tokenizer_class": "GPTNeoXTokenizer", "eos_token": "<|endoftext|>"}'
    for contents in (None, named):
        if contents:
            (tmp_path / "tokenizer_config.json").write_text(contents)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer(text).input_ids == raw.encode(text).ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_autotokenizer_reads_and_writes_the_world_tokenizer(tmp_path, square_config):
    from wkv.hf import RwkvWorldTokenizer

    causal_lm(square_config).config.save_pretrained(tmp_path)
    RwkvWorldTokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is RwkvWorldTokenizer
    assert tokenizer("\n\n").input_ids == [261]


# --- training -------------------------------------------------------------------------------


class Repeated(torch.utils.data.Dataset):
    """The same few token sequences again and again."""

    def __init__(self, count: int = 16) -> None:
        rng = np.random.default_rng(0)
        self.rows = [torch.from_numpy(rng.integers(1, 97, 12)) for _ in range(2)] * (count // 2)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def test_two_steps_of_trainer_lower_the_loss_and_it_evaluates(own_model, tmp_path):
    from transformers import Trainer, TrainingArguments

    trainer = Trainer(
        own_model,
        TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=3,
            learning_rate=3e-3,
            gradient_checkpointing=True,
            save_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Repeated(),
        eval_dataset=Repeated(7),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert trainer.predict(Repeated(4)).predictions.shape == (4, 12, 97)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert torch.equal(loaded.head.weight, own_model.head.weight)


def test_lora_trains_and_merges_to_the_same_logits(own_model):
    peft = pytest.importorskip("peft")
    targets = ["key", "value", "receptance", "output"]
    wanted = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(own_model, wanted)
    frozen = own_model.rwkv.blocks[0].attention.output.base_layer.weight.clone()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(4):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for block in own_model.rwkv.blocks:
        for module in (block.attention, block.feed_forward):
            for name in targets:
                if hasattr(module, name):
                    assert getattr(module, name).lora_B["default"].weight.abs().sum() > 0
    assert torch.equal(own_model.rwkv.blocks[0].attention.output.base_layer.weight, frozen)
    model.eval()
    with torch.no_grad():
        want = model(input_ids=IDS).logits
        said = model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False)
        merged = model.merge_and_unload()
        assert relative_error(merged(IDS).logits, want) < 1e-5
        assert torch.equal(merged.generate(IDS, max_new_tokens=4, do_sample=False), said)
    assert type(merged) is RwkvForCausalLM


@torch.no_grad()
def test_prompt_tuning_reads_its_virtual_tokens_once(own_model):
    peft = pytest.importorskip("peft")
    wanted = peft.PromptTuningConfig(
        num_virtual_tokens=4,
        task_type="CAUSAL_LM",
        num_layers=3,
        token_dim=32,
        num_attention_heads=1,
    )
    model = peft.get_peft_model(own_model, wanted).eval()
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight, std=6.0)
    virtual, embed = model.get_prompt(batch_size=2), own_model.get_input_embeddings()
    want = IDS
    for _ in range(4):
        embedded = torch.cat([virtual, embed(want)], 1)
        token = own_model(inputs_embeds=embedded).logits[:, -1].argmax(-1)
        want = torch.cat([want, token[:, None]], 1)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    for use_cache in (True, False):
        got = model.generate(input_ids=IDS, use_cache=use_cache, **options)
        assert torch.equal(got, want)
    with pytest.raises(UnavailableError, match="virtual tokens"):
        model.generate(input_ids=IDS, num_beams=2, **options)


def test_autocast_trains_in_bfloat16(own_model):
    want = own_model(IDS, labels=IDS).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = own_model(IDS, labels=IDS, use_cache=True)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert output.state.num.dtype == torch.float32
    assert abs(output.loss.item() - want) < 0.05 * want
    assert all(torch.isfinite(p.grad).all() for p in own_model.parameters())


@torch.no_grad()
def test_lora_on_rescaled_float16_leaves_the_weights_alone():
    peft = pytest.importorskip("peft")
    config = ModelConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, rescale_every=1)
    model = peft.get_peft_model(
        causal_lm(config).half(), peft.LoraConfig(r=4, target_modules=["output", "value"])
    ).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(input_ids=IDS).logits
    assert relative_error(logits, causal_lm(config)(IDS).logits) < 0.02
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
