import itertools

import numpy as np
import pytest
import torch

from tests.oracles.models import random_weights, torch_model
from tests.train.runs import recipe_of, write_corpus
from wkv.config import ModelConfig
from wkv.data import Binidx
from wkv.hf import RwkvConfig, RwkvForCausalLM
from wkv.train.build import build_blocks
from wkv.train.trainer import RecipeTrainer

CONFIG = ModelConfig(vocab_size=17, hidden_size=16, num_hidden_layers=2)


@pytest.mark.parametrize("boundaries", ["stream", "reset", "pack"])
@pytest.mark.parametrize("chunk", [0, 7])
def test_the_validation_loss_counts_every_label_once_whatever_the_cuts(tmp_path, boundaries, chunk):
    model = RwkvForCausalLM(RwkvConfig.of(CONFIG))
    plain = torch_model(CONFIG, random_weights(CONFIG))
    model.load_state_dict(plain.state_dict())
    write_corpus(tmp_path / "v", documents=5)
    corpus = Binidx(tmp_path / "v")
    recipe = recipe_of(
        tmp_path,
        data={"boundaries": boundaries, "context": 64},
        bptt={"chunk": chunk},
        run={"batch": 3},
    )
    blocks = build_blocks(recipe, corpus, None, None)
    sizes = np.arange(17, dtype=np.float32)  # token 3 stands for three bytes
    trainer = RecipeTrainer(model, recipe, blocks, blocks, token_bytes=sizes)
    found = trainer.evaluate()

    if boundaries == "stream":  # rows of 64 and what is left
        stream = corpus.tokens.astype(np.int64)
        pieces = [stream[i : i + 65] for i in range(0, len(stream) - 1, 64)]
    elif boundaries == "pack":  # no document is longer than a row
        pieces = [corpus.document(i).astype(np.int64) for i in range(len(corpus))]
    else:  # documents, cut where a row ends
        pieces = []
        for i in range(len(corpus)):
            start, end = int(corpus.starts[i]), int(corpus.starts[i + 1])
            cuts = [start, *range(-(-(start + 1) // 64) * 64, end - 1, 64), end - 1]
            pieces += [
                corpus.tokens[a : b + 1].astype(np.int64) for a, b in itertools.pairwise(cuts)
            ]
    total = count = size = 0.0
    for piece in pieces:
        ids = torch.from_numpy(piece)[None]
        with torch.no_grad():
            logits = plain(ids[:, :-1])[0].double()
        losses = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum")
        total, count = total + losses.item(), count + len(piece) - 1
        size += sizes[piece[1:]].sum()
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(np.exp(total / count), rel=1e-4)
    assert found["eval_bits_per_byte"] == pytest.approx(total / np.log(2) / size, rel=1e-5)
    assert trainer.loss_by_position[-1][0] == 64 or boundaries == "pack"
