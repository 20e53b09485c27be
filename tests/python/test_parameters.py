"""One table of a policy's parameters: dkv.h, dkv.Policy and dkv.hf.Cache have the same ones."""

from __future__ import annotations

import inspect
import pickle

import pytest
from conftest import make_tiny_llama
from test_cache import greedy

import dkv
import dkv.hf
from dkv import _abi, parameters, programs
from dkv.session import _policy

VALUES = {
    "capacity": 96, "window": 16, "kernel": 5, "pool": "avg", "reduce": "max", "r_max": 4.0, "r_min": 0.25, "update_interval": 2,
    "sinks": 3, "beta": 5.0, "granularity": "head", "score_norm": "layer", "query_norm": True, "ratio": 0.5, "bytes": 1 << 40,
    "keep_mass": 0.9, "preset": "paper", "profile_alpha": 0.5, "profile_floor": 0.1, "purpose": "reuse",
}  # fmt: skip
SIZES = [each.name for each in parameters.PARAMETERS if each.is_size]


def fields() -> list[str]:
    """Of dkv_policy, as dkv.h declares it."""
    _abi.library()
    return [name for name, _ in _abi.ffi.typeof("dkv_policy").fields]


def test_dkv_h_and_the_table_have_the_same_parameters():
    assert {*fields()} == {"struct_bytes", "name", *parameters.NAMES, "profile"}
    assert set(VALUES) == set(parameters.NAMES)


def test_a_parameter_has_what_its_line_of_the_table_says():
    found = {each.name: each for each in parameters.PARAMETERS}

    assert len(found) == programs.shared("policy/parameters.inc").count("\nDKV_") - 1  # The profile.
    assert found["pool"].words == ("max", "avg") and found["score_norm"].words == ("none", "layer", "layer-nosink")
    assert (found["r_min"].least, found["r_min"].most, found["r_max"].least) == (0, 1, 1)
    assert found["ratio"].above_least and found["ratio"].is_size and not found["window"].is_size
    assert found["capacity"].help == "mean tokens kept per layer and KV head, window included"


@pytest.mark.parametrize("name", parameters.NAMES)
def test_a_parameter_reaches_its_field_and_the_others_keep_their_default(name):
    plain, made = _policy(dkv.Policy()), _policy(dkv.Policy(**{name: VALUES[name]}))

    for field in fields():
        found, default = getattr(made, field), getattr(plain, field)
        if field != name:
            assert found == default, field
        elif isinstance(VALUES[name], str):
            assert _abi.ffi.string(found).decode() == VALUES[name]
        else:
            assert found == VALUES[name] != default


def test_a_cache_shows_and_takes_every_parameter(tiny_llama, tmp_path):
    shown = inspect.signature(dkv.hf.Cache).parameters

    assert list(shown)[:4] == ["model", "policy", "capacity", "window"]
    assert set(parameters.NAMES) <= set(shown)
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in shown.values())
    for size in SIZES:
        wish = {name: value for name, value in VALUES.items() if name == size or name not in SIZES}
        cache = dkv.hf.Cache(tiny_llama, "dynamickv", endpoint=f"ipc://{tmp_path}/none.sock", **wish)
        assert cache._wish == wish | {"name": "dynamickv"}


def test_a_cache_of_ones_own_shows_what_it_takes(tiny_llama):
    class Small(dkv.hf.Cache):
        def __init__(self, model, size):
            super().__init__(model, capacity=size)

    assert list(inspect.signature(Small).parameters) == ["model", "size"]
    assert Small(tiny_llama, 96)._wish == {"capacity": 96}


def test_a_policy_is_a_value():
    policy = dkv.Policy("snapkv", 64, kernel=5)

    assert pickle.loads(pickle.dumps(policy)) == policy == dkv.Policy(name="snapkv", capacity=64, kernel=5)
    assert hash(policy) == hash(dkv.Policy("snapkv", 64, kernel=5))
    with pytest.raises(AttributeError):
        policy.capacity = 65
    for name in parameters.NAMES:
        assert f" {name} " in dkv.Policy.__doc__


@pytest.mark.e2e
@pytest.mark.parametrize("wish", [{"ratio": 0.2}, {"bytes": 100 * 8 * 2 * 16 * 4}, {"granularity": "head", "capacity": 100}], ids=str)
def test_sizes_and_granularity_of_a_cache_are_the_sidecars(wish, prompt, sidecar):
    model = make_tiny_llama()
    cache = dkv.hf.Cache(model, "dynamickv", endpoint=sidecar.endpoint, timeout_s=60, **wish)

    greedy(model, prompt(500), 2, past_key_values=cache)

    report = cache.report()
    assert report.failure is None
    assert sum(map(sum, report.kept_per_head)) == 100 * 8
    assert any(len(set(heads)) > 1 for heads in report.kept_per_head) == (wish.get("granularity") == "head")
