"""Trains GPT-NeoX, as large as the bundled model, on the blocks that its first phase saw.

    python scripts/bundled_neox.py recipes/bundled/gpt_neox.yaml [section.key=value …]

for comparison: transformers' class, the same tokens in the same order; stops and resumes at any
checkpoint. RWKV models are trained by ``wkv train``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers.trainer_utils import get_last_checkpoint

from wkv.errors import ConfigError
from wkv.train.build import build_blocks, build_corpora
from wkv.train.memory import keep_freed_memory
from wkv.train.recipe import Recipe
from wkv.train.trainer import RecipeTrainer

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from peers import gpt_neox


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    recipe = Recipe.load(options.recipe, options.changes)
    if recipe.model is None:
        raise ConfigError(f"{options.recipe}: a peer is trained from nothing: give model")
    keep_freed_memory()
    run, data = recipe.run, recipe.data
    items = run.steps * run.batch * run.accumulate
    corpus, held = build_corpora(recipe)
    torch.manual_seed(run.seed)
    model = gpt_neox(recipe.model, data.context)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, {items * data.context:,} tokens in {run.steps} steps")
    output = Path(run.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1) + "\n")
    trainer = RecipeTrainer(
        model,
        recipe,
        build_blocks(recipe, corpus, items, data.seed),
        None if held is None else build_blocks(recipe, held, None, None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run.output))
    trainer.save_model(run.output)
    trainer.state.save_to_json(str(output / "trainer_state.json"))
    if held is not None:
        print(trainer.evaluate())


if __name__ == "__main__":
    main()
