"""Trains the bundled model's byte-level BPE on the corpus that ``bundled_corpus.py`` built.

    python scripts/bundled_tokenizer.py CORPUS OUT [--entries 4096]

writes OUT/tokenizer.json and OUT/tokenizer_config.json. Id 0 is ``<|endoftext|>``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def train(corpus: Path, out: Path, entries: int) -> Tokenizer:
    """Learn the merges from the training part only, and save them as transformers reads them."""

    def texts() -> Iterator[str]:
        with (corpus / "train.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    names = {f"{name}_token": END for name in ("bos", "eos", "unk", "pad")}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--entries", type=int, default=4096)
    arguments = parser.parse_args()
    tokenizer = train(arguments.corpus, arguments.out, arguments.entries)
    with (arguments.corpus / "validation.jsonl").open(encoding="utf-8") as lines:
        held_out = [json.loads(line)["text"] for line in lines]
    ids = sum(len(e.ids) for e in tokenizer.encode_batch(held_out))
    size = sum(len(text.encode()) for text in held_out)
    print(f"{tokenizer.get_vocab_size()} entries, {size / ids:.3f} bytes a token held out")
