from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.checkpoint.weights import CONFIG, WEIGHTS, save_ggml, save_pth
from wkv.checkpoint import convert, open_checkpoint, open_lora
from wkv.errors import CheckpointError, ConfigError

RANK = 4
MATRICES = ("blocks.0.att.key", "blocks.1.ffn.value", "blocks.1.att.receptance")


@pytest.fixture
def lora_tensors():
    rng = np.random.default_rng(5)
    tensors = {}
    for name in MATRICES:
        rows, columns = WEIGHTS[f"{name}.weight"].shape
        tensors[f"{name}.lora_A"] = rng.standard_normal((RANK, columns)).astype(np.float32)
        tensors[f"{name}.lora_B"] = rng.standard_normal((rows, RANK)).astype(np.float32)
    tensors["blocks.0.ln1.weight"] = rng.standard_normal(32).astype(np.float32)
    tensors["blocks.1.att.time_mix_k"] = rng.standard_normal((1, 1, 32)).astype(np.float32)
    return tensors


def expected(tensors, alpha):
    merged = {**WEIGHTS, **{n: t for n, t in tensors.items() if "lora" not in n}}
    for name in MATRICES:
        delta = tensors[f"{name}.lora_B"].astype(float) @ tensors[f"{name}.lora_A"].astype(float)
        merged[f"{name}.weight"] = WEIGHTS[f"{name}.weight"] + delta * (alpha / RANK)
    return merged


@pytest.mark.parametrize("suffix", ["", ".weight"])
@pytest.mark.parametrize("alpha", [8, 1.5, 0.0, -2])
def test_merged_weights_are_w_plus_scaled_ba(tmp_path, lora_tensors, suffix, alpha):
    named = {n + (suffix if "lora" in n else ""): t for n, t in lora_tensors.items()}
    convert(
        save_pth(tmp_path / "m.pth", WEIGHTS),
        tmp_path / "out.pth",
        lora=save_pth(tmp_path / "lora.pth", named),
        lora_alpha=alpha,
    )
    with open_checkpoint(tmp_path / "out.pth") as checkpoint:
        for name, want in expected(lora_tensors, alpha).items():
            np.testing.assert_allclose(checkpoint.tensor(name), want, rtol=1e-6, atol=1e-5)


def test_the_product_is_rounded_once_to_the_models_precision(tmp_path, lora_tensors):
    save_pth(tmp_path / "lora.pth", lora_tensors, "bfloat16")
    convert(
        save_pth(tmp_path / "m.pth", WEIGHTS, "float16"),
        tmp_path / "out.pth",
        lora=tmp_path / "lora.pth",
        lora_alpha=16,
    )
    got = torch.load(tmp_path / "out.pth", weights_only=True)["blocks.0.att.key.weight"]
    lora = torch.load(tmp_path / "lora.pth", weights_only=True)
    base = torch.from_numpy(WEIGHTS["blocks.0.att.key.weight"]).half().float()
    delta = lora["blocks.0.att.key.lora_B"].float() @ lora["blocks.0.att.key.lora_A"].float()
    assert got.dtype == torch.float16
    assert torch.allclose(got.float(), (base + delta * 4), rtol=2**-11, atol=1e-6)


def test_a_lora_is_merged_into_every_format(tmp_path, lora_tensors):
    save_pth(tmp_path / "lora.pth", lora_tensors)
    save_ggml(tmp_path / "m.bin", WEIGHTS)
    for name in ("hf", "out.bin", "out.pth"):
        convert(tmp_path / "m.bin", tmp_path / name, lora=tmp_path / "lora.pth", lora_alpha=8)
        with open_checkpoint(tmp_path / name) as checkpoint:
            for tensor, want in expected(lora_tensors, 8).items():
                np.testing.assert_allclose(checkpoint.tensor(tensor), want, rtol=1e-5, atol=1e-5)


def test_a_quantized_model_is_merged_in_float32(tmp_path, lora_tensors):
    save_pth(tmp_path / "m.pth", WEIGHTS)
    save_pth(tmp_path / "lora.pth", lora_tensors)
    convert(tmp_path / "m.pth", tmp_path / "q.bin", dtype="q8_0")
    convert(tmp_path / "q.bin", tmp_path / "out.pth", lora=tmp_path / "lora.pth", lora_alpha=8)
    name = "blocks.0.att.key"
    base = open_checkpoint(tmp_path / "q.bin").tensor(f"{name}.weight")
    want = base + lora_tensors[f"{name}.lora_B"] @ lora_tensors[f"{name}.lora_A"] * 2
    np.testing.assert_allclose(
        open_checkpoint(tmp_path / "out.pth").tensor(f"{name}.weight"), want, rtol=1e-5, atol=1e-5
    )


def test_alpha_must_be_said(tmp_path, lora_tensors):
    save_pth(tmp_path / "m.pth", WEIGHTS)
    save_pth(tmp_path / "lora.pth", lora_tensors)
    with pytest.raises(ConfigError, match="lora_alpha"):
        convert(tmp_path / "m.pth", tmp_path / "out.pth", lora=tmp_path / "lora.pth")
    with pytest.raises(ConfigError, match="lora_alpha"):
        convert(tmp_path / "m.pth", tmp_path / "out.pth", lora_alpha=8)
    with pytest.raises(ConfigError, match="nan"):
        convert(
            tmp_path / "m.pth",
            tmp_path / "out.pth",
            lora=tmp_path / "lora.pth",
            lora_alpha=float("nan"),
        )
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.att.key.lora_B": None}, "lora_B is missing"),
        ({"blocks.0.att.key.lora_A": None}, "lora_A is missing"),
        ({"blocks.0.att.key.lora_A": (5, 32)}, "does not fit"),
        ({"blocks.0.att.key.lora_A": (4, 31)}, r"\[32, 31\]; the model has \[32, 32\]"),
        ({"blocks.9.att.key.lora_A": (4, 32), "blocks.9.att.key.lora_B": (32, 4)}, "no such"),
        ({"blocks.0.ln1.weight": (31,)}, r"has shape \[31\]"),
        ({"blocks.0.ln9.weight": (32,)}, "no such tensor"),
        ({n: None for m in MATRICES for n in (f"{m}.lora_A", f"{m}.lora_B")}, "not a LoRA"),
        ({"blocks.0.att.key.lora_A": (0, 32), "blocks.0.att.key.lora_B": (32, 0)}, "does not fit"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(tmp_path, lora_tensors, change, message):
    for name, shape in change.items():
        if shape is None:
            del lora_tensors[name]
        else:
            lora_tensors[name] = np.ones(shape, np.float32)
    save_pth(tmp_path / "m.pth", WEIGHTS)
    save_pth(tmp_path / "lora.pth", lora_tensors)
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "m.pth", tmp_path / "out.pth", lora=tmp_path / "lora.pth", lora_alpha=8)
    assert not (tmp_path / "out.pth").exists()


def test_a_lora_is_not_taken_for_a_model_nor_a_model_for_a_lora(tmp_path, lora_tensors):
    save_pth(tmp_path / "lora.pth", lora_tensors)
    with pytest.raises(CheckpointError, match="--lora"):
        open_checkpoint(tmp_path / "lora.pth")
    with pytest.raises(CheckpointError, match="not a LoRA"):
        open_lora(save_pth(tmp_path / "m.pth", WEIGHTS))


def test_a_sound_lora_tells_its_ranks(tmp_path, lora_tensors):
    lora = open_lora(save_pth(tmp_path / "lora.pth", lora_tensors))
    assert lora.ranks == [RANK]
    assert set(lora.factors) == {f"{m}.weight" for m in MATRICES}
    assert CONFIG.num_hidden_layers == 2
