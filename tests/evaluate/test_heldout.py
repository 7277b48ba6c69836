import math

import numpy as np
import pytest
import torch

from wkv.config import ModelConfig
from wkv.data import Binidx, BinidxWriter
from wkv.errors import ConfigError, CorpusError
from wkv.evaluate import blockwise, carried, loss_by_position
from wkv.model.rwkv4 import Rwkv4


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    with BinidxWriter(tmp_path / "c") as writer:
        for size in (40, 7, 90):
            writer.append(rng.integers(1, 11, size))
    return Binidx(tmp_path / "c")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Rwkv4(ModelConfig(vocab_size=11, hidden_size=16, num_hidden_layers=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def uniform(ids):
    return torch.zeros(*ids.shape, 11)


def nats_of(model, ids, labels):
    probabilities = torch.softmax(model(torch.tensor([ids]))[0][0].double(), -1)
    return [-math.log(probabilities[i, label].item()) for i, label in enumerate(labels)]


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(corpus):
    found = blockwise(uniform, corpus, 16)
    assert found.tokens == 136
    assert found.perplexity == pytest.approx(11)
    assert found.bits_per_byte(136) == pytest.approx(math.log2(11))


def test_blockwise_adds_up_the_losses_of_separate_blocks(corpus, model):
    with torch.no_grad():
        found = blockwise(lambda ids: model(ids)[0], corpus, 50, batch=2)
        stream = corpus.tokens.astype(int).tolist()
        expected = sum(
            sum(nats_of(model, stream[s : min(s + 50, 136)], stream[s + 1 : s + 51]))
            for s in (0, 50, 100)
        )
    assert found.nats == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 13, 512])
def test_carrying_the_state_gives_the_loss_of_whole_documents(corpus, model, chunk):
    with torch.no_grad():
        found = carried(lambda ids, state: model(ids, state), corpus, chunk)
        expected = 0.0
        for number in range(3):
            document = corpus.document(number).astype(int).tolist()
            expected += sum(nats_of(model, [0, *document[:-1]], document))
    assert found.tokens == 137
    assert found.nats == pytest.approx(expected, rel=1e-5)


def test_loss_by_position_averages_windows_inside_documents(corpus, model):
    with torch.no_grad():
        bins = loss_by_position(lambda ids: model(ids)[0], corpus, (0, 5, 30))
        rows = []
        for number, start in ((0, 0), (2, 0), (2, 30)):
            document = corpus.document(number).astype(int).tolist()
            window = document[start : start + 31]
            rows.append(nats_of(model, window[:-1], window[1:]))
    expected = np.array(rows)
    # The last document's third window would need one token more than it has.
    assert [b.tokens for b in bins] == [15, 75]
    assert bins[0].nats == pytest.approx(expected[:, :5].sum(), rel=1e-5)
    assert bins[1].nats == pytest.approx(expected[:, 5:].sum(), rel=1e-5)


def test_positions_must_rise(corpus):
    for edges in ((0,), (0, 0), (5, 3), (-1, 4)):
        with pytest.raises(ConfigError, match="positions"):
            loss_by_position(uniform, corpus, edges)


def test_windows_longer_than_every_document_are_refused(corpus):
    with pytest.raises(CorpusError, match="no document has 501 tokens"):
        loss_by_position(uniform, corpus, (0, 500))
