"""Measures language models on the bundled corpus's held-out part, and shows what one writes.

    python scripts/bundled_report.py NAME=FOLDER … [--corpus DIR] [--out results.json]

Each folder is a transformers model with the bundled tokenizer; the first is the one that writes the
samples. Prints Markdown tables and three samples as they come, and writes the numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import wkv
from wkv.data import Binidx, tokenize
from wkv.evaluate import HeldOut, blockwise, carried, loss_by_position

BUNDLED = Path(__file__).parents[1] / "src/wkv/models/bundled"
CONTEXT = 512
EDGES = (0, 64, 128, 256, 512, 1024, 1536, 2048)
NOVELS = ("austen", "moby-dick", "tom-sawyer")
PROMPTS = (
    "It is a truth universally acknowledged, that",
    '"My dear Emma,"',
    "The ship",
)


@dataclass(frozen=True)
class Texts:
    """Held-out documents: their tokens, and their size in bytes."""

    corpus: Binidx
    size: int

    @classmethod
    def of(cls, lines: list[dict[str, str]], base: Path) -> Texts:
        """Tokenise records into ``base``."""
        texts = [line["text"] for line in lines]
        tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
        return cls(tokenize(texts, base, tokenizer), sum(len(t.encode()) for t in texts))


def numbers(found: HeldOut, size: int) -> dict[str, float]:
    """A measurement as plain numbers; ``size`` is the text's bytes."""
    return {
        "loss": round(found.loss, 4),
        "perplexity": round(found.perplexity, 2),
        "bits_per_byte": round(found.bits_per_byte(size), 4),
        "tokens": found.tokens,
    }


def measure(model: Any, parts: dict[str, Texts]) -> dict[str, Any]:
    """Block-wise loss on every part, with the state carried where there is one, by position."""

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return model(ids, use_cache=False).logits

    def stepping(ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        output = model(ids, state=state, use_cache=True)
        return output.logits, output.state

    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    for name, part in parts.items():
        found[name] = numbers(blockwise(logits, part.corpus, CONTEXT), part.size)
        if model.config.model_type == "rwkv":
            found[name]["state_carried"] = numbers(carried(stepping, part.corpus), part.size)
    bins = loss_by_position(logits, parts["all"].corpus, EDGES)
    found["windows"] = bins[0].tokens // EDGES[1]
    found["loss_by_position"] = [
        {"from": a, "to": b, "loss": round(bin.loss, 4)}
        for (a, b), bin in zip(pairwise(EDGES), bins)
    ]
    return found


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


def table(results: dict[str, Any], part: str) -> None:
    """Print one part's losses as Markdown."""
    print(f"\n{part}\n| | parameters | loss | perplexity | bits per byte |\n|---|---|---|---|---|")
    for name, found in results.items():
        row, size = found[part], f"{found['parameters']:,}"
        for label, r in ((name, row), (f"{name}, state carried", row.get("state_carried"))):
            if r:
                print(
                    f"| {label} | {size} | {r['loss']:.3f} | {r['perplexity']:.1f} "
                    f"| {r['bits_per_byte']:.3f} |"
                )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--corpus", type=Path, default=Path("runs/corpus"), help="the texts")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wkv.register()

    with (options.corpus / "validation.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        novels = [line for line in lines if line["source"] in NOVELS]
        parts = {
            "all": Texts.of(lines, Path(folder) / "all"),
            "novels": Texts.of(novels, Path(folder) / "novels"),
        }
        written: list[dict[str, str]] = []
        for argument in options.models:
            name, _, where = argument.partition("=")
            model = AutoModelForCausalLM.from_pretrained(where).eval()
            results[name] = measure(model, parts)
            written = written or samples(model, AutoTokenizer.from_pretrained(BUNDLED))

    for part in ("all", "novels"):
        table(results, part)
    print(f"\n| position | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for row in zip(*(found["loss_by_position"] for found in results.values())):
        losses = " | ".join(f"{cell['loss']:.3f}" for cell in row)
        print(f"| {row[0]['from']}–{row[0]['to']} | {losses} |")
    for sample in written:
        print(f"\n> **{sample['prompt']}**{sample['text']}")
    if options.out:
        record = {"context": CONTEXT, "models": results, "samples": written}
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
