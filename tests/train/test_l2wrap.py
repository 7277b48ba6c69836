import pytest
import torch
from torch.nn import functional as F

from wkv.train.l2wrap import l2wrap


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (2, 5), generator=generator)
    return logits, labels


def gradient(logits, labels, factor, scale=1.0):
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    wrapped = l2wrap(loss, logits, factor)
    assert wrapped.item() == loss.item()
    (grad,) = torch.autograd.grad(wrapped * scale, logits)
    return grad


def test_the_backward_adds_the_pull_at_the_largest_logit_only(case):
    logits, labels = case
    extra = gradient(logits, labels, 0.1) - gradient(logits, labels, 0)
    top, where = logits.max(-1, keepdim=True)
    expected = torch.zeros_like(logits).scatter(-1, where, top * 0.1 / 10)
    torch.testing.assert_close(extra, expected.detach(), rtol=1e-12, atol=1e-15)


def test_it_is_the_gradient_of_half_the_mean_square_of_the_largest_logits(case):
    logits, labels = case
    penalty = 0.1 / 2 * logits.amax(-1).square().mean()
    (expected,) = torch.autograd.grad(penalty, logits)
    extra = gradient(logits, labels, 0.1) - gradient(logits, labels, 0)
    torch.testing.assert_close(extra, expected, rtol=1e-12, atol=1e-15)


def test_the_pull_keeps_its_proportion_under_loss_scaling(case):
    logits, labels = case
    torch.testing.assert_close(
        gradient(logits, labels, 0.1, scale=1024.0), 1024 * gradient(logits, labels, 0.1)
    )


def test_nothing_is_wrapped_without_gradients(case):
    logits, _ = case
    loss = torch.ones(())
    with torch.no_grad():
        assert l2wrap(loss, logits) is loss
    assert l2wrap(loss, logits, 0) is loss
