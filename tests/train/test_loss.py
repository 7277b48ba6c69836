import pytest
import torch
from torch.nn import functional as F

from wkv.train import loss as module
from wkv.train.loss import step_loss, token_losses

COUNT = 7.0


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (2, 5), generator=generator)
    labels[0, 1] = labels[1, 3] = -100
    return logits, labels


def gradient(logits, labels, pull=0.0, scale=1.0):
    (grad,) = torch.autograd.grad(step_loss(logits, labels, COUNT, pull) * scale, logits)
    return grad


def expected(logits, labels, pull=0.0):
    """Cross-entropy by PyTorch; the pull as half a mean square of the largest logits."""
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / COUNT
    top = logits.amax(-1)[labels != -100]
    (grad,) = torch.autograd.grad(loss + pull / 2 / COUNT * top.square().sum(), logits)
    return loss, grad


@pytest.mark.parametrize("pull", [0.0, 0.1])
def test_value_and_gradient_are_those_of_cross_entropy_and_the_pull(case, pull):
    logits, labels = case
    loss, grad = expected(logits, labels, pull)
    torch.testing.assert_close(step_loss(logits, labels, COUNT, pull), loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(logits, labels, pull), grad, rtol=1e-12, atol=1e-15)


def test_the_pull_has_no_value(case):
    logits, labels = case
    assert step_loss(logits, labels, COUNT, 0.1).item() == step_loss(logits, labels, COUNT).item()


def test_the_pull_acts_at_the_largest_logit_only(case):
    logits, labels = case
    extra = gradient(logits, labels, 0.1) - gradient(logits, labels)
    top, at = logits.detach().max(-1, keepdim=True)
    want = torch.zeros_like(top.expand_as(logits)).scatter(-1, at, top * 0.1 / COUNT)
    want *= (labels != -100)[..., None]
    torch.testing.assert_close(extra, want, rtol=1e-12, atol=1e-15)


def test_the_pull_keeps_its_proportion_under_loss_scaling(case):
    logits, labels = case
    torch.testing.assert_close(
        gradient(logits, labels, 0.1, scale=1024.0), 1024 * gradient(logits, labels, 0.1)
    )


@pytest.mark.parametrize("values", [1, 11, 34, 1 << 20])
def test_the_size_of_the_slices_changes_nothing(case, values, monkeypatch):
    logits, labels = case
    whole, grad = step_loss(logits, labels, COUNT, 0.1), gradient(logits, labels, 0.1)
    monkeypatch.setitem(module._SLICE, "cpu", values)
    torch.testing.assert_close(step_loss(logits, labels, COUNT, 0.1), whole, rtol=1e-14, atol=0)
    assert torch.equal(gradient(logits, labels, 0.1), grad)


def test_sixteen_bit_logits_are_summed_in_float32(case):
    logits, labels = case
    half = logits.detach().bfloat16().requires_grad_()
    loss, grad = expected(half.double(), labels)[0], gradient(half, labels)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(step_loss(half, labels, COUNT).double(), loss, rtol=1e-6, atol=0)


def test_enormous_logits_stay_finite(case):
    logits, labels = case
    wide = (logits.detach().float() * 1e4).requires_grad_()
    loss = step_loss(wide, labels, COUNT, 1e-4)
    (grad,) = torch.autograd.grad(loss, wide)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_a_logit_that_is_not_a_number_is_not_hidden(case):
    logits, labels = case
    broken = logits.detach().clone()
    broken[0, 0, 0] = float("nan")
    assert step_loss(broken, labels, COUNT).isnan()


def test_losses_of_places_sum_to_the_loss_of_the_step(case):
    logits, labels = case
    places = token_losses(logits, labels)
    assert not places[labels == -100].any()
    torch.testing.assert_close(places.sum() / COUNT, step_loss(logits, labels, COUNT))
