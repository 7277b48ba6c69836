"""Trains one model on the bundled corpus by a recipe; stops and resumes at any checkpoint.

    python scripts/bundled_train.py RECIPE [section.key=value …]
        [--corpus DIR --tokenizer FILE] [--architecture rwkv|gpt_neox]

With --corpus, the texts are tokenised first unless they are already. ``gpt_neox`` trains
transformers' GPT-NeoX of about the same size on the same blocks, for comparison.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from wkv.config import ModelConfig
from wkv.data import Binidx, Blocks, read_documents, tokenize
from wkv.hf import RwkvConfig, RwkvForCausalLM
from wkv.train.recipe import Recipe
from wkv.train.trainer import RecipeTrainer

BUNDLED = Path(__file__).parents[1] / "src/wkv/models/bundled"


def gpt_neox(config: ModelConfig, context: int) -> PreTrainedModel:
    """GPT-NeoX of the same width, depth and vocabulary, with heads of 32 channels.

    Its feed-forward layer is widened until it has as many parameters as RWKV, to within 0.1%.
    """

    def build(intermediate: int) -> GPTNeoXConfig:
        return GPTNeoXConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.hidden_size // 32,
            intermediate_size=intermediate,
            max_position_embeddings=4 * context,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )

    def parameters(intermediate: int) -> int:
        with torch.device("meta"):
            model = GPTNeoXForCausalLM(build(intermediate))
        return sum(p.numel() for p in model.parameters())

    widths = range(4 * config.hidden_size, 6 * config.hidden_size, 8)
    best = min(widths, key=lambda width: abs(parameters(width) - config.parameters))
    return GPTNeoXForCausalLM(build(best))


def corpus(base: Path, texts: Path, tokenizer: Path) -> Binidx:
    """The tokenised corpus at ``base``, written from the texts if it is not there."""
    if not base.with_suffix(".idx").is_file():
        tokenize(read_documents(texts), base, Tokenizer.from_file(str(tokenizer)))
    return Binidx(base)


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="*", metavar="section.key=value")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=BUNDLED / "tokenizer.json")
    parser.add_argument("--architecture", choices=("rwkv", "gpt_neox"), default="rwkv")
    options = parser.parse_intermixed_args()

    recipe = Recipe.load(options.recipe, options.changes)
    parts = {"train": Path(recipe.data.train), "validation": Path(recipe.data.validation or "")}
    if options.corpus:
        for name, base in parts.items():
            corpus(base, options.corpus / f"{name}.jsonl", options.tokenizer)
    run, data = recipe.run, recipe.data
    items = run.steps * run.batch * run.accumulate
    train = Blocks(Binidx(parts["train"]), data.context, items, data.seed)
    validation = Blocks(Binidx(parts["validation"]), data.context, seed=None)

    torch.manual_seed(run.seed)
    if options.architecture == "rwkv":
        model: PreTrainedModel = RwkvForCausalLM(RwkvConfig.of(recipe.model))
    else:
        model = gpt_neox(recipe.model, data.context)
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{options.architecture}: {size:,} parameters, {items * data.context:,} tokens in "
        f"{run.steps} steps ({items / train.per_epoch:.2f} epochs)"
    )
    output = Path(run.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1) + "\n")
    trainer = RecipeTrainer(model, recipe, train, validation)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run.output))
    trainer.save_model(run.output)
    trainer.state.save_to_json(str(output / "trainer_state.json"))
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
