"""Budgets are exact to the token, in the sidecar's way."""

import random

import pytest
import torch

from dkv_lab import budgets
from dkv_lab.budgets import Shape, allocate


@pytest.mark.parametrize("seed", range(200))
def test_shares_add_up_within_their_bounds_and_share_one_factor(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 12)
    weights = [rng.choice([0, 1, rng.randint(0, 10**9), 1 << 40]) for _ in range(count)]
    lower = [rng.randint(0, 20) for _ in range(count)]
    upper = [low + rng.randint(0, 200) for low in lower]
    total = rng.randint(sum(lower), sum(upper))

    shares = allocate(total, weights, lower, upper)

    assert sum(shares) == total, f"seed {seed}"
    assert all(low <= share <= high for low, share, high in zip(lower, shares, upper)), f"seed {seed}"
    free = [(s, w) for s, w, low, high in zip(shares, weights, lower, upper) if w > 0 and low < s < high]
    for (share_a, weight_a), (share_b, weight_b) in zip(free, free[1:]):
        assert abs(share_a * weight_b - share_b * weight_a) <= max(weight_a, weight_b) * 2, f"seed {seed}"


def test_fractions_go_by_largest_remainder_and_ties_to_the_lower_index():
    assert allocate(10, [1, 1, 1], [0, 0, 0], [10, 10, 10]) == [4, 3, 3]
    assert allocate(11, [1, 1, 1], [0, 0, 0], [10, 10, 10]) == [4, 4, 3]


def test_what_a_bound_clips_is_water_filled_over_the_others():
    assert allocate(100, [8, 1, 1], [0, 0, 0], [40, 100, 100]) == [40, 30, 30]
    assert allocate(100, [98, 1, 1], [0, 10, 10], [100, 100, 100]) == [80, 10, 10]


def test_shares_without_weight_rise_only_when_the_others_are_full():
    assert allocate(30, [1, 0], [0, 5], [100, 100]) == [25, 5]
    assert allocate(130, [1, 0], [0, 5], [100, 100]) == [100, 30]


def test_a_total_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="31 tokens do not fit between bounds of 0 and 30"):
        allocate(31, [1, 1], [0, 0], [15, 15])


def shape(base=24, layers=5, prefix=200):
    return Shape(layers, 2, prefix, base)


def random_scores(layers=5, prefix=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, prefix, generator=generator) ** (1 + layer) for layer in range(layers)]


@pytest.mark.parametrize("base", [0, 1, 7, 24, 150, 200])
@pytest.mark.parametrize("rule", ["uniform", "pyramid", "dynamickv", "once", "weights", "layers"])
def test_every_rule_spends_its_total_exactly(rule, base):
    s = shape(base)
    weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = {
        "uniform": lambda: budgets.uniform(s),
        "pyramid": lambda: budgets.pyramid(s),
        "dynamickv": lambda: budgets.dynamickv(s, random_scores()),
        "once": lambda: budgets.dynamickv(s, random_scores(), update_interval=None),
        "weights": lambda: budgets.by_weights(s, weights, 0.5, 0.2),
        "layers": lambda: budgets.by_weights(s, weights.sum(1, keepdim=True), 0.5, 0.2),
    }[rule]()

    assert int(made.sum()) == s.total
    assert int(made.min()) >= 0 and int(made.max()) <= s.prefix


def test_the_paper_rule_follows_the_counts_and_keeps_its_floor():
    scores = [torch.full((2, 200), 0.9), torch.full((2, 200), 0.1), torch.full((2, 200), 0.1)]

    made = budgets.dynamickv(Shape(3, 2, 200, 20), scores, update_interval=None)

    assert made[:, 0].tolist() == [56, 2, 2]


def test_progressive_budgets_never_grow():
    s, scores = shape(layers=8), random_scores(layers=8)
    progressive = budgets.dynamickv(s, scores)
    staged = budgets.dynamickv(Shape(4, 2, 200, 24), scores[:4])

    assert int(progressive.sum()) == s.total
    assert int(staged.sum()) == 4 * 2 * 24


def test_ties_at_the_threshold_go_to_the_lower_layer():
    assert budgets.tally([torch.ones(2, 3), torch.ones(2, 3)], 8) == [6, 2]


def test_the_profile_rule_is_proportional_above_its_floor():
    weights = torch.tensor([[4.0, 1.0], [1.0, 0.0]])

    made = budgets.by_weights(Shape(2, 2, 1000, 100), weights, 0.5, 0.2)

    # The floor takes 20 of 400; 380 are shared as 2 : 1 : 1.
    assert made.tolist() == [[190, 95], [95, 20]]
