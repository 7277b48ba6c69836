from pathlib import Path

import pytest

from wkv.errors import ConfigError
from wkv.train.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {
    "model": {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2},
    "data": {"train": "c"},
    "run": {"output": "out", "steps": 3},
}


def changed(section, **values):
    return {**SMALL, section: {**SMALL.get(section, {}), **values}}


def test_the_defaults_are_the_published_recipe():
    recipe = Recipe.from_dict(SMALL)
    o, s = recipe.optimizer, recipe.schedule
    assert (o.beta1, o.beta2, o.eps, o.weight_decay, o.clip) == (0.9, 0.99, 1e-8, 0.0, 1.0)
    assert o.multipliers == {"time_decay": 2.0, "time_first": 3.0}
    assert (s.initial, s.final, s.shape) == (6e-4, 1e-5, "exponential")
    assert recipe.l2wrap == 1e-4


def test_a_recipe_survives_the_round_trip_through_plain_values():
    recipe = Recipe.from_dict(changed("run", report_to=["tensorboard"]))
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (changed("run", stepz=4), "unknown key 'run.stepz'; did you mean 'steps'"),
        ({**SMALL, "modle": {}}, "unknown key 'modle'; did you mean 'model'"),
        (
            changed("model", hiden_size=4),
            "unknown key 'model.hiden_size'; did you mean 'hidden_size'",
        ),
        (changed("run", steps="many"), "run.steps is 'many': expected int"),
        (changed("run", steps=True), "run.steps is True: expected int"),
        (changed("run", steps=0), "run.steps is 0"),
        (changed("schedule", initial="fast"), "schedule.initial is 'fast': expected float"),
        (changed("run", precision="fp8"), "run.precision is 'fp8': choose from fp32, bf16"),
        (changed("optimizer", multipliers=3), "optimizer.multipliers is 3"),
        ({**SMALL, "data": {}}, "missing: data.train"),
        ({**SMALL, "data": "c"}, "data is 'c': expected a mapping"),
        ({}, "missing: data, run"),
        ({k: v for k, v in SMALL.items() if k != "model"}, "missing: model .* or start"),
        (changed("data", boundaries="cut"), "data.boundaries is 'cut': choose from stream, reset"),
        (changed("data", template="vicuna"), "data.template is 'vicuna': choose from raven"),
        (changed("data", template="alpaca+vicuna"), "data.template is 'vicuna': choose from raven"),
        (changed("data", holdout=0.1, validation="v"), "give one of them"),
        (changed("bptt", chunk=-1), "bptt.chunk is -1"),
        (changed("tune", method="lora"), "'lora' without start"),
        ({**changed("tune", dropout=0.1), "bptt": {"chunk": 8}}, "would drop different values"),
        ({**SMALL, "model": "170m"}, "unknown size '170m': choose from 169m"),
    ],
)
def test_a_mistake_is_named(values, problem):
    with pytest.raises(ConfigError, match=problem):
        Recipe.from_dict(values)


def test_a_model_is_named_by_its_published_size_with_any_number_changed():
    plain = Recipe.from_dict({**SMALL, "model": "169m"}).model
    assert (plain.hidden_size, plain.num_hidden_layers, plain.vocab_size) == (768, 12, 50277)
    world = Recipe.from_dict({**SMALL, "model": {"size": "430m", "vocab_size": 65536}}).model
    assert (world.hidden_size, world.vocab_size, world.parameters) == (1024, 65536, 461_647_872)


def test_yaml_is_read_and_changed_from_the_command_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {vocab_size: 11, hidden_size: 8, num_hidden_layers: 2}\n"
        "data: {train: c}\nrun: {output: out, steps: 3}\nschedule: {initial: 6e-4}\n"
    )
    recipe = Recipe.load(path, ["run.steps=5", "schedule.final=1e-6", "data.validation=v"])
    assert (recipe.run.steps, recipe.schedule.initial, recipe.schedule.final) == (5, 6e-4, 1e-6)
    assert recipe.data.validation == "v"
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        Recipe.load(path, ["steps"])
    with pytest.raises(ConfigError, match="train is no section"):
        Recipe.load(path, ["data.train.x=1"])


@pytest.mark.parametrize("content", ["- 1\n", "{", "\x00"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, content):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        Recipe.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such recipe"):
        Recipe.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(RECIPES.rglob("*.yaml")) if p.parent.name != "launch"],
    ids=lambda p: p.stem,
)
def test_every_recipe_of_the_repository_is_valid(path):
    assert Recipe.load(path).run.steps > 0


def test_a_small_recipe_of_the_repository_can_be_tried_dry():
    from wkv.train.plan import plan

    changes = ["run.batch=1", "data.context=32"]
    found = plan(Recipe.load(RECIPES / "bundled" / "rwkv.yaml", changes))
    assert found.parameters == 7_226_880
    assert found.step_seconds > 0
