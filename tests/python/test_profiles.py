"""Which profile a model gets: the one named, the one made for its weights, or a refusal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, make_tiny_llama
from test_cache import greedy

import dkv
import dkv.hf
from dkv import profile_folders
from dkv.hf import profile_file as files
from dkv.hf import profiles
from dkv_lab import budgets


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DKV_PROFILES", str(tmp_path / "mine"))
    monkeypatch.setenv("DKV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()


def saved(path, model, **changes):
    described = profiles.describe(model)
    geometry = described["geometry"]
    weights = [[1.0 + head + layer for head in range(geometry["kv_heads"])] for layer in range(geometry["layers"])]
    files.Profile(described | changes, {}, "head", 0.85, 0.2, weights, kernel=13).save(path)
    return path


def test_a_named_profile_is_read_as_it_is(tmp_path):
    model = make_tiny_llama()

    found = profiles.resolve(model, saved(tmp_path / "tiny.json", model))

    assert (found.name, found.alpha, found.floor, found.kernel) == ("tiny", 0.85, 0.2, 13)
    assert found.weights == [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0]]


def test_a_profile_of_another_geometry_is_refused_even_when_forced(tmp_path):
    path = saved(tmp_path / "p.json", make_tiny_llama(layers=3))

    for force in (False, True):
        with pytest.raises(files.ProfileError, match=r"^\S+p\.json is for 3 of 3 layers .* not for 4 of 4 layers .*: calibrate this model$"):
            profiles.resolve(make_tiny_llama(), path, force)


def test_a_profile_of_other_weights_is_refused_unless_forced(tmp_path):
    path = saved(tmp_path / "p.json", make_tiny_llama(seed=9))

    with pytest.raises(files.ProfileError, match="was made for other weights .* of the same shape: calibrate this model, or force it"):
        profiles.resolve(make_tiny_llama(), path)
    assert profiles.resolve(make_tiny_llama(), path, force=True).name == "p"


@pytest.mark.parametrize("content, words", [("{", "is not JSON"), ("{}", "is not a dkv-profile file")])
def test_what_is_no_profile_is_refused(tmp_path, content, words):
    (tmp_path / "p.json").write_text(content)

    with pytest.raises(files.ProfileError, match=words):
        dkv.hf.Cache(make_tiny_llama(), profile=tmp_path / "p.json")


def test_auto_finds_the_profile_of_these_weights_among_others(tmp_path):
    model, mine = make_tiny_llama(), tmp_path / "mine"
    (mine / "a-broken.json").write_text("{")
    saved(mine / "b-other-shape.json", make_tiny_llama(layers=2))
    saved(mine / "c-other-weights.json", make_tiny_llama(seed=9))
    saved(mine / "d-this.json", model)

    assert profiles.resolve(model, "auto").name == "d-this"
    # Another version of transformers writes another config; the weights decide.
    data = json.loads((mine / "d-this.json").read_text())
    data["model"]["config"] = "0" * 16
    (mine / "d-this.json").write_text(json.dumps(data))
    assert profiles.resolve(model, "auto").name == "d-this"
    assert profiles.resolve(make_tiny_llama(seed=5), "auto") is None


def test_auto_looks_into_the_users_cache_and_knows_the_model_in_bfloat16(tmp_path):
    (tmp_path / "cache" / "profiles").mkdir(parents=True)
    saved(tmp_path / "cache" / "profiles" / "tiny.json", make_tiny_llama())

    assert profiles.resolve(make_tiny_llama().to(torch.bfloat16), "auto").name == "tiny"


def test_a_profile_asks_for_dynamickv_unless_another_policy_is_named(tmp_path):
    model = make_tiny_llama()
    given = dkv.Profile("own", [[1.0]] * 4, 0.5, 0.2)

    assert dkv.hf.Cache(model, profile=given)._wish == {"name": "dynamickv", "profile": given}
    assert dkv.hf.Cache(model, policy="snapkv", profile=given)._wish["name"] == "snapkv"
    assert dkv.hf.Cache(model, profile="auto")._wish == {}
    assert dkv.hf.Cache(model, profile=given).report().profile == "own"


def test_a_profile_that_was_found_leaves_the_policy_to_the_sidecar(tmp_path):
    model = make_tiny_llama()
    saved(tmp_path / "mine" / "tiny.json", model)

    wish = dkv.hf.Cache(model)._wish

    assert set(wish) == {"profile"} and wish["profile"].name == "tiny"
    assert dkv.hf.Cache(model, policy="reuse")._wish["name"] == "reuse"


@pytest.mark.e2e
def test_the_profile_found_decides_the_budgets(tmp_path, prompt, sidecar):
    model = make_tiny_llama()
    made = files.load(saved(tmp_path / "mine" / "tiny.json", model))

    cache = dkv.hf.Cache(model, capacity=96, profile="auto", endpoint=sidecar.endpoint, timeout_s=60)
    greedy(model, prompt(500), 2, past_key_values=cache)

    report = cache.report()
    assert report.failure is None and (report.policy, report.profile) == ("dynamickv", "tiny")
    shape = budgets.Shape(4, 2, 500 - 32, 96 - 32)
    assert report.kept_per_head == (budgets.by_weights(shape, made.tensor(), 0.85, 0.2) + 32).tolist()


@pytest.mark.long
@pytest.mark.e2e
def test_a_script_gets_the_profile_under_the_runner(tmp_path, sidecar):
    saved(tmp_path / "mine" / "tiny.json", make_tiny_llama())
    script, reported = tmp_path / "script.py", tmp_path / "report.json"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(ROOT / 'tests' / 'python')!r})\n"
        "from conftest import make_tiny_llama\n"
        "tokens = torch.arange(2, 402)[None]\n"
        "make_tiny_llama().generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=3, do_sample=False)\n"
    )
    command = [sys.executable, "-m", "dkv.hf", "--profile", "auto", "--capacity", "96", "--endpoint", sidecar.endpoint]

    done = subprocess.run([*command, "--report", reported, script], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    (only,) = json.loads(reported.read_text())
    assert only["failure"] is None
    assert (only["policy"], only["profile"], sum(only["kept_per_layer"])) == ("dynamickv", "tiny", 4 * 96)
    assert len(set(only["kept_per_layer"])) > 1


def test_what_comes_with_dkv_can_be_read():
    shipped = list(profile_folders.SHIPPED.glob("*.json"))

    assert shipped
    for path in shipped:
        assert files.load(path).model["name"]


@pytest.mark.model
def test_smollm2_finds_the_profile_that_comes_with_dkv(smollm2):
    assert profiles.resolve(smollm2[0], "auto").name.startswith("smollm2-135m")
