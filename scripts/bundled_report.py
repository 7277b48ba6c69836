"""Measures language models on the bundled corpus's held-out part, and shows what they write.

    python scripts/bundled_report.py NAME=FOLDER … [--corpus DIR] [--instructions DIR] [--out FILE]

Each folder is a transformers model with the bundled tokenizer. Prints, as Markdown for the model
card, losses side by side by source and by position and, for RWKV models, ten fixed prompts and the
answers to held-out instructions; FILE gets the numbers as JSON.
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
from instructions.measure import answers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import wkv
from wkv.data import Binidx, template, tokenize
from wkv.evaluate import HeldOut, blockwise, carried, loss_by_position

BUNDLED = Path(__file__).parents[1] / "src/wkv/models/bundled"
CONTEXT = 512
EDGES = (0, 64, 128, 256, 512, 1024, 1536, 2048)
TEXTS = (
    "It is a truth universally acknowledged, that",
    '"My dear Emma,"',
    "The ship",
    "In the beginning",
    "HAMLET.\n",
)
INSTRUCTIONS = (
    ("What does the word brave mean?", ""),
    ("What is the capital of Portugal?", ""),
    ("Who opened the door?", "Mary opened the door, and the cat ran out into the garden."),
    ("Continue this story.", "The old man looked at the sea."),
    ("Who are you?", ""),
)
FORM = "raven"
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 0}


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


def samples(model: wkv.LanguageModel) -> list[dict[str, str]]:
    """What a model writes after each prompt, once; nothing is chosen."""
    form = template(FORM)
    asked = []
    for instruction, given in INSTRUCTIONS:
        prompt = form.prompt_with_input(instruction, given) if given else form.prompt(instruction)
        asked.append((" ⏎ ".join(filter(None, (instruction, given))), prompt))
    found = []
    for shown, prompt in [*((text, text) for text in TEXTS), *asked]:
        out = model.generate(prompt, max_tokens=80, **SAMPLING)
        found.append({"prompt": shown, "text": out.text})
    return found


def table(results: dict[str, Any]) -> None:
    """Print the losses on everything as Markdown."""
    print("| | parameters | loss | perplexity | bits per byte |\n|---|---|---|---|---|")
    for name, found in results.items():
        row, size = found["all"], f"{found['parameters']:,}"
        for label, r in ((name, row), (f"{name}, state carried", row.get("state_carried"))):
            if r:
                print(
                    f"| {label} | {size} | {r['loss']:.3f} | {r['perplexity']:.1f} "
                    f"| {r['bits_per_byte']:.3f} |"
                )


def by_source(results: dict[str, Any], sources: list[str], sizes: dict[str, int]) -> None:
    """Print bits per byte by source, the state carried where there is one."""
    print(f"\n| bits per byte | kB | {' | '.join(results)} |\n|---|---|{'---|' * len(results)}")
    for source in sources:
        rows = [found[source].get("state_carried", found[source]) for found in results.values()]
        cells = " | ".join(f"{row['bits_per_byte']:.3f}" for row in rows)
        print(f"| {source} | {sizes[source] / 1000:.0f} | {cells} |")


def by_task(results: dict[str, dict[str, Any]]) -> None:
    """Print loss of the answers, and how many are exactly right, by task."""
    if not results:
        return
    print(f"\n| answers: loss (right) | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for task in sorted(next(iter(results.values()))):
        cells = []
        for found in results.values():
            row = found[task]
            right = "" if row["right"] is None else f" ({row['right']:.0%})"
            cells.append(f"{row['loss']:.2f}{right}")
        print(f"| {task} | {' | '.join(cells)} |")


def quoted(text: str) -> str:
    """On one line of Markdown."""
    return " ⏎ ".join(text.strip().split("\n")).replace("*", "\\*").replace("_", "\\_")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--corpus", type=Path, default=Path("runs/corpus"), help="the texts")
    parser.add_argument("--instructions", type=Path, help="the folder of bundled_instructions.py")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wkv.register()

    with (options.corpus / "validation.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    questions: list[dict[str, str]] = []
    if options.instructions:
        with (options.instructions / "validation.jsonl").open(encoding="utf-8") as file:
            questions = [json.loads(line) for line in file]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        parts = {"all": Texts.of(lines, Path(folder) / "all")}
        for source in dict.fromkeys(line["source"] for line in lines):
            some = [line for line in lines if line["source"] == source]
            parts[source] = Texts.of(some, Path(folder) / source)
        for argument in options.models:
            name, _, where = argument.partition("=")
            model = AutoModelForCausalLM.from_pretrained(where).eval()
            results[name] = measure(model, parts)
            if model.config.model_type == "rwkv":
                writer = wkv.load(where)
                results[name]["samples"] = samples(writer)
                if questions:
                    results[name]["answers"] = answers(writer, questions, FORM)

    table(results)
    by_source(results, list(parts)[1:], {name: part.size for name, part in parts.items()})
    print(f"\n| position | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for row in zip(*(found["loss_by_position"] for found in results.values())):
        losses = " | ".join(f"{cell['loss']:.3f}" for cell in row)
        print(f"| {row[0]['from']}–{row[0]['to']} | {losses} |")
    written = {name: found for name, found in results.items() if "samples" in found}
    for row in zip(*(found["samples"] for found in written.values())):
        print(f"\n**{quoted(row[0]['prompt'])}**\n")
        for name, sample in zip(written, row):
            print(f"- *{name}*: {quoted(sample['text'])}")
    by_task({name: found["answers"] for name, found in written.items() if "answers" in found})
    if options.out:
        record = {"context": CONTEXT, "sampling": SAMPLING, "models": results}
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
