"""What an operator and a request choose in vLLM. It needs no vLLM: the tests with one are tests/vllm."""

from __future__ import annotations

import pytest

from dkv.vllm.settings import Choice, Settings


@pytest.mark.parametrize(
    "given, said",
    [
        ({"layer_per_group": 1}, "kv_connector_extra_config has 'layer_per_group': expected layers_per_group or endpoint"),
        ({"layers_per_group": 0}, "layers_per_group is 0: expected a whole number of at least 1"),
        ({"layers_per_group": "all"}, "layers_per_group is 'all': expected a whole number of at least 1"),
        ({"endpoint": 5}, "endpoint is 5: expected a string"),
    ],
)
def test_a_setting_that_is_not_known_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Settings.read(given)


def test_groups_are_of_equal_size():
    assert Settings(layers_per_group=5).layers_of_group(30) == 5
    assert [Settings().layers_of_group(layers) for layers in (6, 16, 30, 32, 80)] == [1, 1, 2, 2, 5]
    with pytest.raises(ValueError, match="layers_per_group is 4, which does not divide the model's 30 .*use one of 1, 2, 3"):
        Settings(layers_per_group=4).layers_of_group(30)


def test_a_request_chooses_parameters_of_a_policy_with_or_without_its_name():
    assert Choice.read(None) == Choice.read({"do_remote_prefill": False}) == Choice()
    assert Choice.read({"dkv": "off"}) == Choice(off=True)
    assert Choice.read({"dkv": {"granularity": "layer-head"}}).policy == (("granularity", "layer-head"),)
    assert Choice.read({"dkv": {"name": "snapkv", "capacity": 64}}).policy == (("capacity", 64), ("name", "snapkv"))


@pytest.mark.parametrize(
    "wish, said",
    [
        ("on", 'kv_transfer_params["dkv"] is \'on\': expected "off" or parameters of a policy'),
        (["off"], "is ['off']: expected"),
        ({"capasity": 64}, "has 'capasity': expected name, capacity"),
        ({"capacity": "much"}, "capacity is 'much'"),
        ({"capacity": 64, "ratio": 0.5}, "capacity and ratio are given: one size is enough"),
    ],
)
def test_a_wish_that_is_not_understood_is_said_and_fails_nothing(wish, said):
    choice = Choice.read({"dkv": wish})

    assert not choice.off and not choice.policy
    assert said in choice.wrong
