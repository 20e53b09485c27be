"""Scores, pooling and rank order as docs/POLICIES.md defines them."""

import pytest
import torch
from conftest import make_tiny_llama
from test_lab_probe import make_tiny_gpt_oss

from dkv_lab import scores
from dkv_lab.probe import Probe


@pytest.fixture(scope="module")
def probed():
    ids = torch.randint(2, 512, (60,), generator=torch.Generator().manual_seed(4))
    return Probe(make_tiny_llama(), 8).prefill(ids, accumulate=True)


@pytest.fixture(scope="module")
def probed_with_sinks():
    ids = torch.randint(2, 512, (60,), generator=torch.Generator().manual_seed(4))
    return Probe(make_tiny_gpt_oss(["full_attention"] * 4), 8).prefill(ids, accumulate=True)


@pytest.fixture(params=["probed", "probed_with_sinks"])
def prompt_of(request):
    return request.getfixturevalue(request.param)


def shares(layer, query_head: int, w: int, seen: torch.Tensor) -> torch.Tensor:
    """What a query of the window gives each token seen, by hand."""
    logits = layer.keys[query_head // layer.group, seen] @ layer.queries[query_head, w] * layer.scale
    if layer.sinks is not None:
        logits = torch.cat([logits, layer.sinks[query_head : query_head + 1]])
    return logits.softmax(0)[: seen.numel()]


def test_scores_are_the_mean_attention_of_the_window(prompt_of):
    layer = prompt_of.layers[1]

    made = scores.window_scores(layer)

    for head in range(2):
        total = torch.zeros(52)
        for query_head in range(head * layer.group, (head + 1) * layer.group):
            for w in range(8):
                total += shares(layer, query_head, w, torch.arange(52 + w + 1))[:52]
        torch.testing.assert_close(made[head], total / (8 * layer.group), atol=1e-6, rtol=1e-5)


def test_the_group_is_reduced_as_asked(probed):
    layer = probed.layers[0]

    torch.testing.assert_close(scores.window_scores(layer, "sum"), 3 * scores.window_scores(layer, "mean"))
    assert (scores.window_scores(layer, "max") >= scores.window_scores(layer, "mean")).all()


def test_pooling_sees_nothing_outside_for_max_and_zeros_for_avg():
    row = torch.tensor([[-1.0, -5.0, -2.0, -7.0]])

    assert scores.pool(row, 3, "max").tolist() == [[-1, -1, -2, -2]]
    torch.testing.assert_close(scores.pool(row, 3, "avg"), torch.tensor([[-6.0, -8.0, -14.0, -9.0]]) / 3)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel is 4: it must be odd"):
        scores.pool(torch.ones(1, 9), 4)


def test_equal_scores_rank_the_lower_position_first_and_nan_last():
    order = scores.rank(torch.tensor([[1.0, 3.0, 1.0, float("nan"), 3.0]]))

    assert order.tolist() == [[1, 4, 0, 2, 3]]


def test_streaming_keeps_the_sinks_and_then_the_latest(probed):
    order = scores.rank_by_position(probed, 4)

    assert order[0, :6].tolist() == [0, 1, 2, 3, 51, 50]
    assert order[1].sort().values.tolist() == list(range(52))
