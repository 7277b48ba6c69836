import math

import pytest

from wkv.errors import ConfigError
from wkv.train.schedule import Schedule


def test_the_rate_decays_exponentially_from_the_first_to_the_last():
    schedule = Schedule(6e-4, 1e-5, 101)
    assert schedule(0) == pytest.approx(6e-4)
    assert schedule(50) == pytest.approx(math.sqrt(6e-4 * 1e-5))
    assert schedule(100) == pytest.approx(1e-5)
    ratios = [schedule(i + 1) / schedule(i) for i in range(100)]
    assert max(ratios) == pytest.approx(min(ratios))


def test_the_warm_up_multiplies_by_a_ramp_from_one_fifth():
    plain, warm = Schedule(1e-3, 1e-5, 100), Schedule(1e-3, 1e-5, 100, warmup=10)
    assert [warm(i) / plain(i) for i in (0, 5, 10, 50)] == pytest.approx([0.2, 0.6, 1, 1])


def test_cosine_is_half_way_in_the_middle():
    schedule = Schedule(1e-3, 1e-4, 101, shape="cosine")
    assert [schedule(i) for i in (0, 50, 100)] == pytest.approx([1e-3, 5.5e-4, 1e-4])


def test_one_step_divides_by_nothing():
    assert Schedule(1e-3, 1e-5, 1)(0) == pytest.approx(1e-3)


def test_steps_past_the_end_keep_the_final_rate():
    assert Schedule(1e-3, 1e-5, 10)(500) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "change", [{"initial": 0}, {"final": -1.0}, {"steps": 0}, {"warmup": -1}, {"shape": "linear"}]
)
def test_impossible_schedules_are_refused(change):
    with pytest.raises(ConfigError):
        Schedule(**{"initial": 1e-3, "final": 1e-5, "steps": 10, **change})
