"""Measures the bundled model on held-out text, beside a GPT-NeoX trained on the same blocks.

    python scripts/bundled_report.py MODEL [--gpt-neox FOLDER] [--corpus DIR] [--out results.json]

prints Markdown tables and three samples as they come, and writes the numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPTNeoXForCausalLM

import wkv.hf
from wkv.data import Binidx
from wkv.evaluate import HeldOut, blockwise, carried, loss_by_position

CONTEXT = 512
EDGES = (0, 32, 64, 128, 256, 512, 1024, 1536, 2048)
PROMPTS = (
    "It was a truth universally acknowledged, that",
    "CHAPTER 42. The Storm.\n\n",
    "Fellow-Citizens of the Senate and House of Representatives:",
)


def measure(model: torch.nn.Module, corpus: Binidx, size: int) -> dict[str, Any]:
    """Block-wise loss and loss by position of any transformers language model."""

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return model(ids, use_cache=False).logits

    blocks = blockwise(logits, corpus, CONTEXT)
    bins = loss_by_position(logits, corpus, EDGES)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        **numbers(blocks, size),
        "loss_by_position": [
            {"from": a, "to": b, "loss": round(found.loss, 4), "tokens": found.tokens}
            for (a, b), found in zip(pairwise(EDGES), bins)
        ],
    }


def numbers(found: HeldOut, size: int) -> dict[str, float]:
    """A measurement as plain numbers; ``size`` is the text's bytes."""
    return {
        "loss": round(found.loss, 4),
        "perplexity": round(found.perplexity, 3),
        "bits_per_byte": round(found.bits_per_byte(size), 4),
        "tokens": found.tokens,
    }


def samples(model: Any, tokenizer: Any) -> list[dict[str, str]]:
    """One continuation of each prompt, at temperature 0.8 and top-p 0.9; seed 0, nothing chosen."""
    found = []
    for prompt in PROMPTS:
        torch.manual_seed(0)
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(
            ids, max_new_tokens=120, do_sample=True, temperature=0.8, top_p=0.9, top_k=0
        )
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        found.append({"prompt": prompt, "text": text})
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--gpt-neox", type=Path)
    parser.add_argument("--corpus", type=Path, default=Path("runs/corpus"), help="the texts")
    parser.add_argument("--validation", type=Path, default=Path("runs/bundled/validation"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    corpus = Binidx(options.validation)
    with (options.corpus / "validation.jsonl").open(encoding="utf-8") as lines:
        size = sum(len(json.loads(line)["text"].encode()) for line in lines)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rwkv = wkv.hf.RwkvForCausalLM.from_pretrained(options.model).eval()
    results: dict[str, Any] = {"context": CONTEXT, "validation_bytes": size}
    results["rwkv"] = measure(rwkv, corpus, size)

    def stepping(ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        output = rwkv(ids, state=state, use_cache=True)
        return output.logits, output.state

    results["rwkv"]["state_carried"] = numbers(carried(stepping, corpus), size)
    if options.gpt_neox:
        neox = GPTNeoXForCausalLM.from_pretrained(options.gpt_neox).eval()
        results["gpt_neox"] = measure(neox, corpus, size)
    results["samples"] = samples(rwkv, tokenizer)

    names = [name for name in ("rwkv", "gpt_neox") if name in results]
    print("| | parameters | loss | perplexity | bits per byte |\n|---|---|---|---|---|")
    for name in names:
        r = results[name]
        row = (f"{r['parameters']:,}", r["loss"], r["perplexity"], r["bits_per_byte"])
        print(f"| {name} | {' | '.join(map(str, row))} |")
    r = results["rwkv"]["state_carried"]
    print(f"| rwkv, state carried | | {r['loss']} | {r['perplexity']} | {r['bits_per_byte']} |")
    print(f"\n| position | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for row in zip(*(results[name]["loss_by_position"] for name in names)):
        losses = " | ".join(f"{cell['loss']:.3f}" for cell in row)
        print(f"| {row[0]['from']}–{row[0]['to']} | {losses} |")
    for sample in results["samples"]:
        print(f"\n> **{sample['prompt'].strip()}**{sample['text']}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
