"""How well a model answers held-out instructions: loss of the answers, and how many are right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

import wkv
from wkv.data import template
from wkv.data.templates import encode_example

# Whose answers are not the only good ones: no share of right answers is given.
OPEN = {
    "use",
    "list",
    "continue",
    "next sentence",
    "finish",
    "manner",
    "begin",
    "about",
    "dialogue",
}
OPEN |= {"scene", "verse", "tell", "hacker slang", "devil's dictionary", "itself", "define"}
OPEN |= {"synonym", "word for"}


def answers(
    model: wkv.LanguageModel, records: Iterable[dict[str, str]], form: str, most: int = 40
) -> dict[str, dict[str, Any]]:
    """Loss (nats a token, the end included) and, greedily, the share of exactly right answers.

    Args:
        model: any.
        records: instructions with a ``task``; others are passed over.
        form: name of the template.
        most: records of a task that are looked at.
    """
    found: dict[str, dict[str, Any]] = {}
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for record in records:
        task = record.get("task")
        if task is None or sums[task][0] == most:
            continue
        segments = template(form).segments(record)
        ids, counts = encode_example(segments, model.tokenizer)
        begin = counts.index(1)
        logits, _ = model.engine.forward([ids[:-1]], None, logits="all")
        shifted = logits.astype(np.float64)[begin - 1 :]
        shifted -= shifted.max(-1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(shifted)), ids[begin:]]
        row = sums[task]
        row[0] += 1
        row[1] += float(losses.sum())
        row[2] += len(losses)
        if task not in OPEN:
            # Teacher forcing decides as greedy decoding would: the first wrong token is enough.
            row[3] += bool((shifted.argmax(-1) == ids[begin:]).all())
    for task, (count, nats, tokens, right) in sums.items():
        found[task] = {
            "examples": int(count),
            "loss": round(nats / tokens, 4),
            "tokens": int(tokens),
            "right": None if task in OPEN else round(right / count, 4),
        }
    return found
