import torch

from wkv.config import ModelConfig
from wkv.model.rwkv4 import Rwkv4
from wkv.train.optimizer import build_optimizer, parameter_groups


def names_by_group(model, groups):
    names = {id(p): n for n, p in model.named_parameters()}
    return [({names[id(p)].rpartition(".")[2] for p in g["params"]}, g) for g in groups]


def test_decay_learns_twice_and_first_three_times_as_fast():
    model = Rwkv4(ModelConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))
    groups = names_by_group(model, parameter_groups(model, 1e-3))
    rates = {name: g["lr"] for names, g in groups for name in names}
    assert rates["time_decay"] == 2e-3
    assert rates["time_first"] == 3e-3
    others = {r for n, r in rates.items() if n not in ("time_decay", "time_first")}
    assert others == {1e-3}


def test_every_trainable_parameter_is_in_one_group():
    model = Rwkv4(ModelConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))
    model.head.weight.requires_grad_(False)
    found = [id(p) for g in parameter_groups(model, 1e-3, 0.1) for p in g["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_weight_decay_never_touches_a_vector():
    model = Rwkv4(ModelConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))
    groups = names_by_group(model, parameter_groups(model, 1e-3, weight_decay=0.1))
    for names, group in groups:
        for parameter in group["params"]:
            vector = sum(s > 1 for s in parameter.shape) < 2
            assert group["weight_decay"] == (0.0 if vector else 0.1), names
    assert {g["weight_decay"] for _, g in groups} == {0.0, 0.1}


def test_without_weight_decay_a_step_is_adam():
    torch.manual_seed(0)
    ours = torch.nn.Linear(5, 3)
    theirs = torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-8)
    optimizer = build_optimizer(parameter_groups(ours, 1e-2))
    for _ in range(5):
        x = torch.randn(4, 5)
        for model, step in ((ours, optimizer), (theirs, adam)):
            step.zero_grad()
            model(x).square().sum().backward()
            step.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)
