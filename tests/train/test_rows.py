import pytest
import torch

from tests.oracles.models import random_weights, torch_model
from wkv.config import ModelConfig
from wkv.hf import RwkvConfig, RwkvForCausalLM
from wkv.state import FIELDS
from wkv.train.loss import step_loss, token_losses
from wkv.train.rows import run_rows


@pytest.fixture
def model():
    config = ModelConfig(vocab_size=23, hidden_size=16, num_hidden_layers=2)
    model = RwkvForCausalLM(RwkvConfig.of(config))
    model.load_state_dict(torch_model(config, random_weights(config)).state_dict())
    return model.double()


def batch(lengths, places):
    """Rows of documents of the given lengths, filled up: ids, labels, resets."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 23, (len(lengths), places), generator=g)
    labels = torch.randint(0, 23, (len(lengths), places), generator=g)
    resets = torch.zeros(len(lengths), places, dtype=torch.bool)
    for row, documents in enumerate(lengths):
        at = 0
        for length in documents:
            resets[row, at] = True
            at += length
        resets[row, at:] = True
        labels[row, at:] = -100
    return ids, labels, resets


LENGTHS = [[5, 7, 3], [1, 16], [9]]


def test_the_packed_loss_equals_the_separate_losses_and_so_do_all_gradients(model):
    ids, labels, resets = batch(LENGTHS, 17)
    logits, _ = run_rows(model, ids, resets=resets)
    packed = token_losses(logits, labels)
    packed.sum().backward()
    packed_grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for row, documents in enumerate(LENGTHS):
        at = 0
        for length in documents:
            span = slice(at, at + length)
            alone = token_losses(model(ids[row, None, span]).logits, labels[row, None, span])
            torch.testing.assert_close(packed[row, span], alone[0], rtol=1e-12, atol=1e-12)
            alone.sum().backward()
            at += length
    for (name, p), grad in zip(model.named_parameters(), packed_grads, strict=True):
        # Decay and bonus are used, and get their gradients, in float32 whatever the model's dtype.
        bound = 1e-6 if name.endswith(("time_decay", "time_first")) else 1e-12
        assert (p.grad - grad).abs().max() <= bound * grad.abs().max()


def test_any_split_of_packed_rows_carries_the_state_and_drops_it_at_a_beginning(model):
    ids, _, resets = batch(LENGTHS, 17)
    whole, last = run_rows(model, ids, resets=resets)
    for cuts in ([5], [1, 2, 3], [6, 12], [16]):
        state, parts = None, []
        for begin, end in zip([0, *cuts], [*cuts, 17], strict=True):
            logits, state = run_rows(model, ids[:, begin:end], state, resets[:, begin:end])
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        for name in FIELDS:
            torch.testing.assert_close(getattr(state, name), getattr(last, name))


def test_without_a_beginning_rows_are_an_ordinary_batch(model):
    ids, _, resets = batch(LENGTHS, 17)
    plain = model(ids).logits
    assert torch.equal(run_rows(model, ids)[0], plain)
    assert torch.equal(run_rows(model, ids, resets=torch.zeros_like(resets))[0], plain)
    one = torch.zeros_like(resets)
    one[:, 0] = True
    torch.testing.assert_close(run_rows(model, ids, resets=one)[0], plain)


def test_a_batch_without_a_label_that_counts_has_a_loss_of_zero_and_no_gradient(model):
    ids, labels, _ = batch(LENGTHS, 17)
    logits = model(ids).logits
    loss = step_loss(logits, torch.full_like(labels, -100), 1.0, 1e-4)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_pull_acts_where_labels_count_and_shrinks_with_the_whole_step(model):
    ids, labels, _ = batch(LENGTHS, 17)
    logits = model(ids).logits.detach().requires_grad_()
    (plain,) = torch.autograd.grad(step_loss(logits, labels, 40.0), logits)
    (pulled,) = torch.autograd.grad(step_loss(logits, labels, 40.0, 0.1), logits)
    top, at = logits.detach().max(-1, keepdim=True)
    expected = torch.zeros_like(logits).scatter_(-1, at, 0.1 / 40 * top)
    expected *= (labels != -100)[..., None]
    torch.testing.assert_close(pulled - plain, expected, rtol=1e-9, atol=1e-12)
