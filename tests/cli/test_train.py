import pytest
import yaml
from typer.testing import CliRunner

from tests.train.runs import recipe_values
from wkv.cli import app
from wkv.errors import ConfigError
from wkv.train.plan import plan
from wkv.train.recipe import Recipe


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe_values(tmp_path)))
    return path


def test_a_recipe_is_run_with_changes_and_goes_on_when_run_again(recipe, tmp_path):
    done = run(recipe, "run.steps=4")
    assert done.exit_code == 0, done.stderr
    assert "done after 4 steps" in done.stdout
    assert "step 4/4  loss" in done.stderr
    again = run(recipe, "run.steps=6")
    assert "step 4/" not in again.stderr
    assert "done after 6 steps" in again.stdout


def test_a_mistake_is_one_line_and_an_exit_code(recipe):
    done = run(recipe, "run.stepz=4")
    assert done.exit_code == 1
    assert done.stderr.strip() == "wkv: unknown key 'run.stepz'; did you mean 'steps'?"


def test_a_dry_run_tells_what_a_run_takes_and_writes_nothing(recipe, tmp_path):
    found = plan(Recipe.load(recipe, ["run.accumulate=3"]))
    assert found.parameters == found.trainable == Recipe.load(recipe).model.parameters
    assert (found.tokens_per_step, found.tokens) == (4 * 3 * 16, 4 * 3 * 16 * 8)
    assert found.memory["Adam's moments"] == 8 * found.parameters
    assert found.memory["kept for going back"] > 4 * 16 * 17 * 4  # the logits, at least
    assert found.step_seconds > 0
    text = "\n".join(found.lines(8))
    for part in ("parameters   ", "epochs)", "gradients", "tokens/s"):
        assert part in text
    assert not (tmp_path / "out").exists()


def test_a_dry_run_measures_less_memory_with_chunks(recipe):
    changes = ["data.context=128"]
    whole = plan(Recipe.load(recipe, changes)).memory["kept for going back"]
    chunked = plan(Recipe.load(recipe, [*changes, "bptt.chunk=16"])).memory["kept for going back"]
    assert chunked < whole / 4


def test_a_model_that_does_not_fit_is_counted_and_not_measured(recipe):
    found = plan(Recipe.load(recipe, ["model=14b"]), processes=64)
    assert found.parameters == 14_148_597_760
    assert found.step_seconds is None
    text = "\n".join(found.lines(8))
    assert "do not fit into this machine" in text
    assert "210.8 GiB a process, 3.3 GiB in pieces over 64 (FSDP2)" in text


def test_an_unknown_size_is_named(recipe):
    with pytest.raises(ConfigError, match="unknown size"):
        Recipe.load(recipe, ["model=15b"])
