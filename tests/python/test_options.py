"""What Cache(), dkv.Policy and python -m dkv.hf refuse at once, and in which words."""

from __future__ import annotations

import numpy
import pytest
import torch

import dkv
import dkv.hf
from dkv.hf import __main__ as runner

WRONG = [
    ({"capacity": "64"}, "capacity is '64' (str), not an integer of at least 0"),
    ({"capacity": 64.5}, "capacity is 64.5, not an integer of at least 0"),
    ({"capacity": 64.0}, "capacity is 64.0, not an integer of at least 0"),
    ({"capacity": True}, "capacity is True, not an integer of at least 0"),
    ({"capacity": -1}, "capacity is -1, not an integer of at least 0"),
    ({"capacity": 1 << 32}, "capacity is 4294967296, not an integer of at least 0 and at most 4294967294"),
    ({"capacity": numpy.float32(64)}, "capacity is np.float32(64.0) (float32), not an integer of at least 0"),
    ({"capacity": torch.tensor(True)}, "capacity is tensor(True) (Tensor), not an integer of at least 0"),
    ({"capacity": torch.tensor([1, 2])}, "capacity is tensor([1, 2]) (Tensor), not an integer of at least 0"),
    ({"capacity": [64]}, "capacity is [64] (list), not an integer of at least 0"),
    ({"window": "8"}, "window is '8' (str), not an integer of at least 0"),
    ({"kernel": 7.0}, "kernel is 7.0, not an integer of at least 0"),
    ({"update_interval": 1j}, "update_interval is 1j (complex), not an integer of at least 0"),
    ({"sinks": False}, "sinks is False, not an integer of at least 0"),
    ({"bytes": 0}, "bytes is 0, not an integer of at least 1"),
    ({"bytes": 1e6}, "bytes is 1000000.0, not an integer of at least 1"),
    ({"pool": "median"}, "pool is 'median' (str), not one of max, avg"),
    ({"pool": max}, "pool is <built-in function max> (builtin_function_or_method), not one of max, avg"),
    ({"reduce": "none"}, "reduce is 'none' (str), not one of mean, max, sum"),
    ({"granularity": "token"}, "granularity is 'token' (str), not one of layer, head, layer-head"),
    ({"score_norm": 1}, "score_norm is 1, not one of none, layer, layer-nosink"),
    ({"query_norm": 1}, "query_norm is 1, not True or False"),
    ({"r_max": 0.5}, "r_max is 0.5, not a number of at least 1"),
    ({"r_max": "10"}, "r_max is '10' (str), not a number of at least 1"),
    ({"r_min": -0.1}, "r_min is -0.1, not a number of 0 … 1"),
    ({"beta": float("nan")}, "beta is nan, not a number of at least 1"),
    ({"beta": float("inf")}, "beta is inf, not a number of at least 1"),
    ({"ratio": 0}, "ratio is 0, not a number above 0 and at most 1"),
    ({"ratio": 25}, "ratio is 25, not a number above 0 and at most 1"),
    ({"keep_mass": True}, "keep_mass is True, not a number above 0 and at most 1"),
    ({"preset": 1}, "preset is 1, not a string that is not empty"),
    ({"capacity": 64, "ratio": 0.5}, "capacity and ratio are given: one size is enough"),
]
WRONG_CACHE = [
    ({"policy": 7}, "policy is 7, not a string that is not empty"),
    ({"policy": ""}, "policy is '' (str), not a string that is not empty"),
    ({"endpoint": 5555}, "endpoint is 5555, not a string that is not empty"),
    ({"endpoint": b"ipc:///x"}, "endpoint is b'ipc:///x' (bytes), not a string that is not empty"),
    ({"timeout_s": "10"}, "timeout_s is '10' (str), not a number of seconds of at least 0"),
    ({"timeout_s": None}, "timeout_s is None, not a number of seconds of at least 0"),
    ({"timeout_s": -1}, "timeout_s is -1, not a number of seconds of at least 0"),
    ({"timeout_s": float("nan")}, "timeout_s is nan, not a number of seconds of at least 0"),
    ({"prompt_tokens": 0}, "prompt_tokens is 0, not an integer of at least 1"),
    ({"prompt_tokens": "100"}, "prompt_tokens is '100' (str), not an integer of at least 1"),
    ({"strict": "yes"}, "strict is 'yes' (str), not True or False"),
    ({"progressive": 1}, "progressive is 1, not True or False"),
    ({"force_profile": None}, "force_profile is None, not True or False"),
    ({"risk": 5}, "risk is 5, not a share of 0 … 1"),
    ({"risk": "low"}, "risk is 'low' (str), not a share of 0 … 1"),
    ({"engine": "dkv"}, "engine is 'dkv' (str), not a dkv.Engine"),
    ({"profile": 3}, "profile is 3, not the path of a file, a dkv.Profile or \"auto\""),
]


@pytest.mark.parametrize("wish, words", WRONG + WRONG_CACHE, ids=str)
def test_a_cache_refuses_a_value_that_cannot_be_right_when_it_is_made(tiny_llama, wish, words):
    with pytest.raises(dkv.DkvError) as refused:
        dkv.hf.Cache(tiny_llama, **wish)

    assert refused.value.status == dkv.Status.INVALID_ARGUMENT
    assert refused.value.message == words


@pytest.mark.parametrize("wish, words", WRONG, ids=str)
def test_a_policy_is_checked_alike_without_transformers(wish, words):
    with pytest.raises(dkv.DkvError) as refused:
        dkv.Policy(**wish)

    assert refused.value.message == words


@pytest.mark.parametrize(
    "name, meant", [("kernal", "kernel"), ("capcity", "capacity"), ("timeout", "timeout_s"), ("Window", "window")]
)
def test_a_misspelt_option_is_refused_with_the_one_that_was_meant(tiny_llama, name, meant):
    with pytest.raises(TypeError, match=rf"^Cache\(\) has no option '{name}': did you mean '{meant}'\? There are ") as refused:
        dkv.hf.Cache(tiny_llama, policy="snapkv", **{name: 7})

    for known in ("capacity", "window", "kernel", "keep_mass", "prompt_tokens", "strict"):
        assert f" {known}" in str(refused.value)


def test_an_option_like_no_other_is_refused_without_a_guess(tiny_llama):
    with pytest.raises(TypeError, match=r"^Cache\(\) has no option 'zzz': There are policy, capacity, window, "):
        dkv.hf.Cache(tiny_llama, zzz=1)


@pytest.mark.parametrize("model", ["gpt2", None, torch.nn.Linear(2, 2)], ids=["a name", "None", "a module"])
def test_what_is_not_a_model_is_refused(model):
    with pytest.raises(TypeError, match="^model is a (str|NoneType|Linear), not a model of transformers$"):
        dkv.hf.Cache(model)


def test_integers_of_numpy_and_torch_are_integers(tiny_llama, tmp_path):
    wish = {
        "capacity": numpy.int64(64), "window": torch.tensor(16), "kernel": numpy.uint8(5), "beta": numpy.float32(5),
        "r_min": torch.tensor(0.5), "query_norm": numpy.bool_(True), "sinks": None, "pool": None,
    }  # fmt: skip

    policy = dkv.Policy(**wish)
    dkv.hf.Cache(tiny_llama, endpoint=f"ipc://{tmp_path}/none.sock", prompt_tokens=numpy.int32(9), timeout_s=numpy.float64(1), **wish)

    assert policy == dkv.Policy(capacity=64, window=16, kernel=5, beta=5.0, r_min=0.5, query_norm=True)
    assert {type(policy.capacity), type(policy.window), type(policy.kernel)} == {int}


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"weights": None}, "profile.weights is None, not [layers][KV heads] numbers, every layer alike"),
        ({"weights": []}, "profile.weights is [] (list), not [layers][KV heads] numbers, every layer alike"),
        ({"weights": [[1, 2], [1]]}, "profile.weights is [[1, 2], [1]] (list), not [layers][KV heads] numbers, every layer alike"),
        ({"alpha": "1"}, "profile.alpha is '1' (str), not a number"),
        ({"floor": None}, "profile.floor is None, not a number"),
        ({"kernel": 7.5}, "profile.kernel is 7.5, not an integer of at least 0"),
        ({"name": 1}, "profile.name is 1, not a string that is not empty"),
    ],
)
def test_a_profile_of_ones_own_is_checked(wrong, words):
    with pytest.raises(dkv.DkvError) as refused:
        dkv.Profile(**{"name": "mine", "weights": [[1.0, 2.0]], "alpha": 1.0, "floor": 0.1} | wrong)

    assert refused.value.message == words


def test_an_engine_is_checked_before_numbers_are_cut_to_their_fields(tmp_path):
    endpoint = f"ipc://{tmp_path}/none.sock"
    with pytest.raises(dkv.DkvError, match="^layers is 4.0, not an integer of at least 0$"):
        dkv.Geometry(layers=4.0, q_heads=4, kv_heads=2, head_dim=16, dtype="f32")
    with pytest.raises(dkv.DkvError, match="^kv_heads is -2, not an integer of at least 0$"):
        dkv.Geometry(layers=4, q_heads=4, kv_heads=-2, head_dim=16, dtype="f32")
    geometry = dkv.Geometry(layers=4, q_heads=4, kv_heads=2, head_dim=16, dtype="f32")
    for wrong, words in [
        ({"timeout_s": "2"}, r"^timeout_s is '2' \(str\), not a number of seconds of at least 0$"),
        ({"group": -1}, "^group is -1, not an integer of at least 0$"),
        ({"endpoint": 5}, "^endpoint is 5, not a string that is not empty$"),
    ]:
        with pytest.raises(dkv.DkvError, match=words):
            dkv.Engine(geometry, **{"endpoint": endpoint} | wrong)
    with dkv.Engine(geometry, endpoint=endpoint, timeout_s=0.1) as engine:
        with pytest.raises(dkv.DkvError, match=r"^prompt_tokens is \(1 << 32\) \+ 5|^prompt_tokens is 4294967301, not "):
            engine.open_session((1 << 32) + 5)
        with pytest.raises(dkv.DkvError, match=r"^policy is \{'capacity': 64\} \(dict\), not a dkv.Policy$"):
            engine.open_session(100, {"capacity": 64})


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--capacity", "-5"], "capacity is -5, not an integer of at least 0"),
        (["--capacity", "64.5"], "invalid int value: '64.5'"),
        (["--policy", ""], "name is '' (str), not a string that is not empty"),
        (["--kernal", "7"], "unrecognized arguments: --kernal"),
    ],
)
def test_the_runner_refuses_before_the_script_begins(tmp_path, capsys, flags, words):
    script = tmp_path / "script.py"
    script.write_text("print('it ran')\n")

    with pytest.raises(SystemExit) as left:
        runner.main([*flags, str(script)])

    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert words in err and "it ran" not in out
