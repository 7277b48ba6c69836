import pytest
import torch

from tests.oracles.models import random_weights, torch_model
from wkv.config import ModelConfig
from wkv.hf import RwkvConfig, RwkvForCausalLM
from wkv.state import FIELDS, State
from wkv.train.bptt import chunked_backward
from wkv.train.rows import run_rows

CONFIG = ModelConfig(vocab_size=23, hidden_size=16, num_hidden_layers=2, attention_hidden_size=24)


def model_of(dtype):
    model = RwkvForCausalLM(RwkvConfig.of(CONFIG))
    model.load_state_dict(torch_model(CONFIG, random_weights(CONFIG)).state_dict())
    return model.to(dtype)


def loss_of(logits, labels):
    return (
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        / 100
    )


def batch(length, rows=2):
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 23, (rows, length + 1), generator=g)
    resets = torch.zeros(rows, length, dtype=torch.bool)
    resets[0, [0, 3, 11, 12]] = True
    resets[1, [7]] = True
    return ids[:, :-1], ids[:, 1:], resets


def state_of(dtype, rows=2):
    """What some text leaves behind, as a leaf with gradients."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        ids = torch.randint(0, 23, (rows, 9), generator=g)
        state = model_of(dtype)(ids, use_cache=True).state
    return State(**{n: x.requires_grad_() for n, x in state.fields().items()})


def gradients(model):
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("chunk", [1, 5, 8, 20, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_chunked_gradients_equal_the_unchunked_ones(dtype, tolerance, chunk, packed):
    model = model_of(dtype)
    ids, labels, resets = batch(20)
    resets = resets if packed else None
    whole = loss_of(run_rows(model, ids, resets=resets)[0], labels)
    whole.backward()
    expected = gradients(model)
    total = chunked_backward(model, ids, labels, loss_of, chunk, resets=resets)
    assert total.item() == pytest.approx(whole.item(), rel=1e-6)
    for (name, _), got, want in zip(model.named_parameters(), gradients(model), expected):
        # Decay and bonus are used, and get their gradients, in float32 whatever the model's dtype.
        wide = not name.endswith(("time_decay", "time_first"))
        bound = tolerance if wide else max(tolerance, 1e-6)
        assert (got - want).abs().max() <= bound * want.abs().max()


def test_gradients_reach_the_initial_state_through_every_chunk():
    model = model_of(torch.float64)
    ids, labels, _ = batch(20)
    state = state_of(torch.float64)
    loss_of(run_rows(model, ids, state)[0], labels).backward()
    expected = {n: x.grad.clone() for n, x in state.fields().items()}
    for x in state.fields().values():
        x.grad = None
    chunked_backward(model, ids, labels, loss_of, 6, state=state, state_needs_grad=True)
    for name in FIELDS:
        got = getattr(state, name).grad
        assert expected[name].abs().max() > 0
        torch.testing.assert_close(got, expected[name], rtol=1e-10, atol=1e-14)


def test_truncation_cuts_the_gradient_at_the_seams_and_carries_the_state():
    model = model_of(torch.float64)
    ids, labels, _ = batch(20)
    chunked_backward(model, ids, labels, loss_of, 8, gradients="truncated")
    got = gradients(model)
    state = None
    for begin in (0, 8, 16):
        logits, state = run_rows(model, ids[:, begin : begin + 8], state)
        loss_of(logits, labels[:, begin : begin + 8]).backward()
        state = state.detach()
    expected = gradients(model)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    loss_of(model(ids).logits, labels).backward()
    whole = gradients(model)
    assert max((a - b).abs().max() / b.abs().max() for a, b in zip(got, whole)) > 1e-3


def test_kept_activations_do_not_grow_with_the_context():
    model = model_of(torch.float32)

    def peak(length):
        live, most = 0, 0

        class Kept:
            def __init__(self, x):
                nonlocal live, most
                self.x, self.size = x, x.numel() * x.element_size()
                live += self.size
                most = max(most, live)

            def __del__(self):
                nonlocal live
                live -= self.size

        ids, labels, _ = batch(length)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x):
            chunked_backward(model, ids, labels, loss_of, 16)
        return most

    assert peak(512) == peak(64)


def test_gradients_are_exchanged_once_whatever_the_number_of_chunks():
    model, entered = model_of(torch.float32), []

    class NoSync:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *error):
            pass

    ids, labels, _ = batch(20)
    for gradients in ("full", "truncated"):
        entered.clear()
        chunked_backward(model, ids, labels, loss_of, 5, gradients=gradients, no_sync=NoSync)
        assert len(entered) == 3
