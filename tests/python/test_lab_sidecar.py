"""The evaluation through a real dkvd keeps what the pure-torch path keeps."""

from __future__ import annotations

import dataclasses
import os
import subprocess

import pytest
import torch
from conftest import ROOT, make_tiny_llama
from test_lab_probe import make_tiny_gpt_oss
from test_lab_run import calibrated, tiny  # noqa: F401

import dkv
from dkv.hf import profile_file as profile
from dkv.hf import surrogate_file
from dkv_lab import evaluate, policies, results, scores
from dkv_lab import sidecar as lab_sidecar
from dkv_lab.probe import Probe

pytestmark = pytest.mark.e2e

UNPROFILED = [
    "streamingllm",
    "snapkv",
    "snapkv/kernel=3/pool=avg/reduce=max",
    "pyramidkv",
    "pyramidkv/beta=5",
    "dynamickv",
    "dynamickv/m=0/r_min=0.3",
    "h2o",
]
PROFILED = ["profile", "profile/alpha=0.5/floor=0.4", "reuse", "joined", "joined/kernel=3", "replay"]
NEAR = 1e-4  # Scores whose relative difference is below this are equal but for rounding.


def random_profile(prompt, model) -> profile.Profile:
    generator, shape = torch.Generator().manual_seed(5), (len(prompt.compressed), prompt.kv_heads)
    weights = torch.rand(*shape, generator=generator, dtype=torch.float64) ** 4
    count = surrogate_file.feature_count(prompt.kv_heads, prompt.layers[0].keys.shape[-1])
    rows = [torch.randn(prompt.kv_heads, count, generator=generator) for _ in prompt.compressed]
    rope = surrogate_file.rope_of_model(model)
    predicts = surrogate_file.Surrogate("kvzip", rope, rows, [[0.0] * shape[1]] * shape[0]).as_json()
    geometry = profile.Geometry(len(prompt.layers), prompt.compressed, 1, shape[1], prompt.layers[0].keys.shape[-1])
    described = {"geometry": dataclasses.asdict(geometry)}
    return profile.Profile(described, {}, "head", 0.85, 0.2, weights.tolist(), kernel=5, surrogate=predicts)


def facts_of(model, tokens: torch.Tensor) -> policies.Facts:
    prompt = Probe(model, 32).prefill(tokens, accumulate=True)
    generator = torch.Generator().manual_seed(6)
    found = [torch.rand(prompt.kv_heads, prompt.tokens, generator=generator) for _ in prompt.compressed]
    return policies.Facts(prompt, {"made": random_profile(prompt, model)}, lambda: found)


@pytest.fixture
def chooser(sidecar):
    made = lab_sidecar.Chooser(sidecar.endpoint, "test")
    yield made
    made.close()


def differences(facts: policies.Facts, name: str, capacity: int, chooser) -> tuple[int, int]:
    """Tokens that one side alone keeps, and all tokens kept. Those must be near-ties with the budget's last token."""
    facts = policies.facts_for(name, facts)
    variant = policies.variant(name, facts, capacity)
    with chooser.lend(facts.prompt, lambda: facts.replayed) as loan:
        kept = loan.kept(policies.wish(name, facts, capacity))
    prompt, odd, total = facts.prompt, 0, 0
    order, budgets = facts.rankings.orders[variant.ranking], variant.budgets
    assert [[len(positions) - prompt.window for positions in layer] for layer in kept] == budgets.tolist()
    for layer, index in enumerate(prompt.compressed):
        for head, positions in enumerate(kept[layer]):
            assert positions == sorted(set(positions))
            mine = {*order[layer][head, : budgets[layer, head]].tolist(), *range(prompt.prefix, prompt.tokens)}
            total += len(mine)
            odd += len(mine ^ set(positions))
            if mine != set(positions):
                assert_near_ties(scores_of(facts, name, variant, index)[head], mine ^ set(positions))
    return odd, total


def scores_of(facts: policies.Facts, name: str, variant, index: int) -> torch.Tensor:
    layer = facts.prompt.layers[index]
    if name == "h2o":
        return layer.accumulated
    if name == "replay":
        return facts.replayed[facts.prompt.compressed.index(index)][:, : facts.prompt.prefix]
    if variant.ranking in facts.foreseen:
        return facts.foreseen[variant.ranking][facts.prompt.compressed.index(index)].exp()
    options = policies.ranked_options(facts, *policies.parse(name))
    return scores.pool(scores.window_scores(layer, options["reduce"]), int(options["kernel"]), options["pool"])


def assert_near_ties(ranked: torch.Tensor, tokens: set[int]) -> None:
    values = ranked[sorted(tokens)]
    assert float(values.max() - values.min()) <= NEAR * float(values.max()), "kept otherwise, and no tie"


@pytest.mark.parametrize("capacity", [48, 100])
@pytest.mark.parametrize("name", UNPROFILED + PROFILED)
def test_both_paths_keep_the_same_positions_of_a_random_models_prompt(name, capacity, chooser):
    tokens = torch.randint(2, 512, (300,), generator=torch.Generator().manual_seed(4))

    odd, total = differences(facts_of(make_tiny_llama(), tokens), name, capacity, chooser)

    assert odd <= 0.01 * total


@pytest.mark.parametrize("name", ["snapkv", "h2o", "dynamickv/m=0/r_min=0.3"])
def test_both_paths_put_learned_sinks_into_the_sum(name, chooser):
    tokens = torch.randint(2, 512, (300,), generator=torch.Generator().manual_seed(4))

    odd, total = differences(facts_of(make_tiny_gpt_oss(), tokens), name, 48, chooser)

    assert odd <= 0.01 * total


@pytest.mark.model
def test_both_paths_keep_the_same_positions_of_a_real_models_prompt(smollm2, chooser):
    model, tokenizer = smollm2
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0, :600]
    facts = facts_of(model, tokens)

    for name in UNPROFILED + PROFILED:
        odd, total = differences(facts, name, 128, chooser)
        assert odd <= 0.002 * total, name


@pytest.mark.long
def test_an_evaluation_through_the_sidecar_says_what_inline_says(tiny, tmp_path, sidecar, monkeypatch):
    made = calibrated(tmp_path)
    flags = ["tiny", "--profile", str(made), "--policies", "streamingllm,snapkv,pyramidkv,dynamickv,profile"]
    flags += ["--capacity", "48,64", "--tokens", "300", "--needles", "2", "--texts", "2"]

    lines = {}
    for path, more in (("inline", ["--inline"]), ("sidecar", ["--endpoint", sidecar.endpoint])):
        output = tmp_path / f"{path}.csv"
        assert evaluate.main([*flags, *more, "-o", str(output)]) == 0
        lines[path] = results.read([output])

    assert len(lines["inline"]) == len(lines["sidecar"]) == (4 + 3 + 2) * (1 + 2 * 5)  # A hidden context has three questions.
    for inline, through in zip(lines["inline"], lines["sidecar"]):
        assert inline["through"] == "inline"
        assert through["through"] == ("inline" if through["policy"] == "fullkv" else "sidecar")
        same = ("key", "policy", "capacity", "kept", "bytes", "found")
        assert [inline[column] for column in same] == [through[column] for column in same]
        for column in ("kl", "logprob"):
            if inline[column]:
                assert float(through[column]) == pytest.approx(float(inline[column]), rel=0.02, abs=1e-3)


def test_an_evaluation_without_an_endpoint_starts_a_sidecar_and_ends_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("DKV_BIN_DIR", str(os.environ.get("DKV_BIN_DIR", ROOT / "build" / "release" / "bin")))
    processes = []
    original = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(original(*a, **k)) or processes[-1])
    flags = ["tiny", "--policies", "snapkv", "--capacity", "48", "--tokens", "300", "--needles", "1", "--texts", "1"]

    assert evaluate.main([*flags, "-o", str(tmp_path / "r.csv")]) == 0

    started = [one for one in processes if any(str(word).endswith("/dkvd") for word in one.args)]
    assert len(started) == 1 and started[0].returncode is not None
    assert {line["through"] for line in results.read([tmp_path / "r.csv"])} == {"inline", "sidecar"}


def test_no_dkvd_and_a_silent_endpoint_are_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("DKV_BIN_DIR", str(tmp_path))
    with pytest.raises(lab_sidecar.SidecarError, match="no dkvd was found: build it, or set DKV_BIN_DIR, or give --endpoint or --inline"):
        with lab_sidecar.private_sidecar():
            pass

    monkeypatch.setattr(lab_sidecar, "_START_SECONDS", 0.2)
    facts = facts_of(make_tiny_llama(), torch.arange(2, 102))
    lender = lab_sidecar.Chooser(f"ipc://{tmp_path}/nobody.sock")
    with pytest.raises(lab_sidecar.SidecarError, match="no sidecar to evaluate with: .*give another --endpoint, or --inline"):
        with lender.lend(facts.prompt):
            pass
