"""Which layers share a block table in vLLM."""

from __future__ import annotations

import json

from dkv.profile_folders import SHIPPED
from dkv.vllm import groups


def rows(found: list[int], shares: list[list[float]]) -> float:
    """That all layers keep: in a group the most that one of its layers is given, head by head."""
    members = [[shares[layer] for layer, group in enumerate(found) if group == each] for each in set(found)]
    return sum(len(group) * sum(max(heads) for heads in zip(*group)) for group in members)


def test_without_a_profile_neighbours_share():
    assert groups.of(6, 2) == [0, 0, 1, 1, 2, 2]
    assert groups.of(3, 1) == [0, 1, 2]


def test_layers_that_are_given_as_many_rows_share():
    found = groups.of(6, 2, [[9.0], [1.0], [5.0], [1.0], [9.0], [5.0]])

    assert found[0] == found[4] and found[1] == found[3] and found[2] == found[5]
    assert sorted(found) == [0, 0, 1, 1, 2, 2]


def test_layers_share_by_their_heads_and_not_by_their_sums():
    found = groups.of(4, 2, [[9.0, 1.0], [1.0, 9.0], [8.0, 2.0], [2.0, 8.0]])

    assert found[0] == found[2] != found[1] == found[3]


def test_a_real_profile_costs_far_fewer_rows_than_neighbours_do():
    made = json.loads((SHIPPED / "smollm2-135m-instruct.json").read_text())
    shares = [[weight ** made["alpha"] for weight in row] for row in made["weights"]]

    found = groups.of(len(shares), 2, shares)

    assert sorted(found) == sorted(groups.of(len(shares), 2))
    assert rows(found, shares) < 0.85 * rows(groups.of(len(shares), 2), shares)
    assert found == groups.of(len(shares), 2, shares)  # Each rank finds the same by itself.
