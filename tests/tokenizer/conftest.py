"""A byte-level BPE of our own, trained in a moment, in the form that checkpoints carry."""

from __future__ import annotations

import pytest

CORPUS = [
    "The quick brown fox jumps over the lazy dog.\n\nThe dog sleeps.\n\n\n\n",
    "A conversation is a state that can be saved, copied and resumed.\n\nUser: hi\n\nBob: hello\n",
    "été naïve 你好 世界 🙂🙂 straße — “quotes”\n",
] * 20


@pytest.fixture(scope="session")
def bpe_file(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def bpe(bpe_file):
    from wkv.tokenizer import BpeTokenizer

    return BpeTokenizer(bpe_file)


@pytest.fixture(scope="session")
def world():
    from wkv.tokenizer import WorldTokenizer

    return WorldTokenizer()


@pytest.fixture(params=["bpe", "world", "bytes", "bytes256"])
def tokenizer(request):
    from wkv.tokenizer import ByteTokenizer

    if request.param.startswith("bytes"):
        return ByteTokenizer(end_of_text=request.param == "bytes")
    return request.getfixturevalue(request.param)
