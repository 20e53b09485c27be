"""Profiles, granularities and shares of the attention, from Python through the C ABI and a real dkvd to the plan."""

from __future__ import annotations

import json

import pytest
import torch
from test_cache import greedy

import dkv
import dkv.hf
from dkv_lab import budgets

pytestmark = pytest.mark.e2e

LAYERS, KV_HEADS, TOKENS, WINDOW = 4, 2, 700, 32
WEIGHTS = [[1.0, 2.0], [8.0, 0.0], [3.0, 3.0], [0.5, 4.0]]


def kept(model, prompt, sidecar, **wish):
    cache = dkv.hf.Cache(model, endpoint=sidecar.endpoint, timeout_s=60, **wish)
    greedy(model, prompt(TOKENS), 2, past_key_values=cache)
    report = cache.report()
    assert report.failure is None and report.compressed
    return report


def expected(weights, alpha, floor, capacity=128):
    shape = budgets.Shape(LAYERS, KV_HEADS, TOKENS - WINDOW, capacity - WINDOW)
    return (budgets.by_weights(shape, torch.tensor(weights), alpha, floor) + WINDOW).tolist()


def test_a_profile_gives_the_budgets_that_the_lab_works_out(tiny_llama, prompt, sidecar):
    profile = dkv.Profile("own", WEIGHTS, alpha=0.7, floor=0.2)
    report = kept(tiny_llama, prompt, sidecar, policy="dynamickv", capacity=128, profile=profile)
    assert report.kept_per_head == expected(WEIGHTS, 0.7, 0.2)

    by_layer = dkv.Profile("layers", [[1.0], [2.0], [3.0], [4.0]], alpha=1, floor=0)
    report = kept(tiny_llama, prompt, sidecar, policy="dynamickv", capacity=128, profile=by_layer)
    assert report.kept_per_head == expected(by_layer.weights, 1, 0)


def test_an_operator_sets_a_profile_from_its_file(tiny_llama, prompt, sidecar, tmp_path):
    path = tmp_path / "profile.json"
    geometry = {"layers": LAYERS, "compressed": list(range(LAYERS)), "q_heads": 6, "kv_heads": KV_HEADS, "head_dim": 16}
    made = {
        "format": "dkv-profile",
        "version": 1,
        "model": {"name": "tiny", "geometry": geometry},
        "granularity": "head",
        "alpha": 0.5,
        "floor": 0.2,
        "kernel": 15,
        "weights": WEIGHTS,
    }
    path.write_text(json.dumps(made))
    sidecar.dkv("policy", "set", "dynamickv", "--profile", str(path), "--capacity", "128", "--profile-alpha", "1")

    report = kept(tiny_llama, prompt, sidecar, policy="snapkv", capacity=99)

    assert report.policy == "dynamickv"
    assert report.kept_per_head == expected(WEIGHTS, 1, 0.2)
    shown = json.loads(sidecar.dkv("--json", "policy", "show").stdout)["parameters"]
    assert shown["profile"] == {"name": "tiny", "layers": 4, "heads": 2, "alpha": 1, "floor": 0.2, "kernel": 15}
    assert shown["kernel"] == 15
    budget = json.loads(sidecar.dkv("--json", "profile", "show", str(path), "--tokens", str(TOKENS), "--capacity", "128").stdout)
    assert budget["budgets"]["lengths"] == expected(WEIGHTS, 0.5, 0.2)

    geometry["compressed"] = [0, 1, 2]
    path.write_text(json.dumps(made | {"weights": WEIGHTS[:3]}))
    sidecar.dkv("policy", "set", "dynamickv", "--profile", str(path))
    cache = dkv.hf.Cache(tiny_llama, endpoint=sidecar.endpoint, timeout_s=60)
    greedy(tiny_llama, prompt(TOKENS), 2, past_key_values=cache)
    assert "is for 3 layers of 2 KV heads, not for 4 of 2: calibrate this model" in cache.report().failure


@pytest.mark.parametrize("norm", ["none", "layer", "layer-nosink"])
@pytest.mark.parametrize("granularity", ["layer", "head", "layer-head"])
def test_granularities_keep_what_they_say_to_the_token(tiny_llama, prompt, sidecar, granularity, norm):
    report = kept(
        tiny_llama, prompt, sidecar, policy="dynamickv", capacity=128, granularity=granularity, score_norm=norm
    )
    lengths = torch.tensor(report.kept_per_head)
    assert lengths.sum() == LAYERS * KV_HEADS * 128
    if granularity == "layer":
        assert (lengths[:, 0] == lengths[:, 1]).all()
    if granularity == "head":
        assert (lengths.sum(1) == KV_HEADS * 128).all()
    assert lengths.min() >= WINDOW + 10  # ceil(0.1 * 96)


def test_keep_mass_keeps_the_share_in_every_layer(tiny_llama, prompt, sidecar):
    few = kept(tiny_llama, prompt, sidecar, policy="snapkv", keep_mass=0.3)
    many = kept(tiny_llama, prompt, sidecar, policy="snapkv", keep_mass=0.9)
    assert min(few.mass_kept_per_layer) >= 0.3 and min(many.mass_kept_per_layer) >= 0.9
    assert sum(map(sum, few.kept_per_head)) < sum(map(sum, many.kept_per_head)) < LAYERS * KV_HEADS * TOKENS


def test_ratio_and_bytes_are_sizes_too(tiny_llama, prompt, sidecar):
    report = kept(tiny_llama, prompt, sidecar, policy="snapkv", ratio=0.25)
    assert report.capacity == 175
    row = 16 * 4 * 2
    report = kept(tiny_llama, prompt, sidecar, policy="snapkv", bytes=row * LAYERS * KV_HEADS * 100 + 7)
    assert report.capacity == 100
    assert report.kept_per_head == [[100] * KV_HEADS] * LAYERS
