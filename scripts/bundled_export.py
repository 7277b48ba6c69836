"""Packs a trained checkpoint as the bundled model: float16 weights and ``config.json``.

    python scripts/bundled_export.py CHECKPOINT OUT

Matrices lose half their bytes and nothing that the loss shows; decay and bonus enter exponents and
stay float32. The configuration says float32, so that transformers computes in it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from wkv.checkpoint import open_checkpoint

EXACT = ("time_decay", "time_first")


def export(checkpoint: Path, out: Path) -> None:
    """Write OUT/model.safetensors and OUT/config.json."""
    with open_checkpoint(checkpoint) as opened:
        numbers = opened.config.to_dict()
    weights = load_file(checkpoint / "model.safetensors")
    packed = {
        name: tensor if name.endswith(EXACT) else tensor.to(torch.float16)
        for name, tensor in weights.items()
    }
    for name, tensor in packed.items():
        if not torch.isfinite(tensor).all():
            raise SystemExit(f"{checkpoint}: {name} does not fit float16")
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "model.safetensors.part"
    save_file(packed, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")
    config = {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "dtype": "float32",
        "use_cache": True,
        **numbers,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("checkpoint", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.out)
