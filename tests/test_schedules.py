"""Learning rates and optimisers, against values worked out by hand and the order of products that records rest on."""

import math

import pytest
import torch

from facepapers.common.training import optimizers, schedules


def test_warm_up_is_linear_and_ends():
    assert [schedules.warm_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert schedules.warm_up(0, 0) == 1


def test_a_cosine_falls_from_the_peak_to_zero():
    assert schedules.cosine(3.0, 0, 10) == 3 and schedules.cosine(3.0, 5, 10) == pytest.approx(1.5)
    assert schedules.cosine(3.0, 10, 10) == pytest.approx(0, abs=1e-15)


def test_drops_count_from_their_step_on():
    assert [round(schedules.drops(1.0, step, (2, 4)), 9) for step in range(6)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_a_rate_is_warm_up_times_drops_or_one_cosine():
    assert schedules.rate(0.1, 0, 100, 10, (50,)) == pytest.approx(0.01)
    assert schedules.rate(0.1, 60, 100, 10, (50,)) == pytest.approx(0.01)
    assert schedules.rate(0.1, 50, 100, 10) == pytest.approx(0.05)


def test_products_keep_their_order():
    """Records compare bits: warm-up times peak comes first, and the cosine multiplies before it divides."""
    for step in range(0, 700, 7):
        warm = min(1.0, (step + 1) / 30)
        expected = warm * 0.0023 * 0.5 * (1 + math.cos(math.pi * step / 701))
        assert schedules.rate(0.0023, step, 701, 30) == expected
        assert schedules.rate(0.0023, step, 701, 30, (99, 300)) == warm * 0.0023 * 0.1 ** sum(
            step >= drop for drop in (99, 300)
        )


def test_groups_have_their_own_rate_and_decay():
    weight, bias = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [optimizers.group([weight], 0.5), optimizers.group([bias], rate=2.0)]
    made = optimizers.make("sgd", groups, 1.0, momentum=0.5)
    schedules.set_rate(made, 0.1)
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in made.param_groups] == [(0.1, 0.5, 0.5), (0.2, 0, 0.5)]
    plain = optimizers.make("adamw", [weight], 1.0, 0.3)
    schedules.set_rate(plain, 0.1)
    assert plain.param_groups[0]["lr"] == 0.1


def test_optimisers_by_name():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (weight,) = optimizers.trained(model)
    assert weight is model.weight
    sgd = optimizers.make("sgd", [weight], 0.1, 0.2, nesterov=True)
    assert type(sgd) is torch.optim.SGD and sgd.defaults["nesterov"] and sgd.defaults["weight_decay"] == 0.2
    adam = optimizers.make("adam", [weight], 0.1, betas=(0.8, 0.9))
    assert type(adam) is torch.optim.Adam and adam.defaults["betas"] == (0.8, 0.9) and not adam.defaults["fused"]
    assert type(optimizers.make("adamw", [weight], 0.1, fused=True)) is torch.optim.AdamW
