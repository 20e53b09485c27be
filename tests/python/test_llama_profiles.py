"""dkv.llama's profiles: found by a GGUF's weights, and in llama.cpp's order of dims."""

from __future__ import annotations

import array
import json
import random

import pytest

import dkv
from dkv.hf import weights
from dkv.profile_folders import SHIPPED
from dkv.llama import profiles


def test_a_surrogates_weights_follow_the_dims_of_llama_cpps_keys():
    heads, dims, pairs = 2, 6, 2  # Dims 4 and 5 of a head do not turn.
    features = 2 * heads * dims + 2 * heads + 1
    numbers = random.Random(3)
    rows = [[numbers.randrange(1 << 16) for _ in range(features)] for _ in range(3 * heads)]
    given = dkv.Surrogate(heads, dims, array.array("H", sum(rows, [])).tobytes(), (1.0, 0.5), False)

    made = profiles.in_pairs(given)

    assert (made.interleaved, made.frequencies, made.layers) == (True, given.frequencies, 3)
    found = array.array("H", made.weights)
    for number, row in enumerate(rows):
        mine = found[number * features : (number + 1) * features].tolist()
        assert mine[heads * dims :] == row[heads * dims :]  # V, the lengths and 1 are where they were.
        for head in range(heads):
            theirs = row[head * dims : (head + 1) * dims]
            a, b = theirs[:pairs], theirs[pairs : 2 * pairs]
            assert mine[head * dims : (head + 1) * dims] == [a[0], b[0], a[1], b[1], *theirs[4:]]


@pytest.mark.model
def test_the_profile_of_a_gguf_is_found_by_its_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("DKV_CACHE", str(tmp_path))

    found = profiles.find(str(weights.gguf_path()[0]))

    assert found.name == "smollm2-135m-instruct"
    assert found.surrogate.interleaved and found.surrogate.layers == 30


def test_a_profile_of_other_weights_is_passed_over(tmp_path):
    (place,) = SHIPPED.glob("smollm2*.json")
    model = json.loads(place.read_text())["model"]
    assert profiles._read(place, model["weights"], model["geometry"]).name == place.stem

    assert profiles._read(place, "0" * 16, model["geometry"]) is None
    assert profiles._read(place, model["weights"], model["geometry"] | {"layers": 1}) is None
    for text in ("not JSON", "[]"):
        (tmp_path / "a.json").write_text(text)
        assert profiles._read(tmp_path / "a.json", model["weights"], model["geometry"]) is None


def test_a_file_that_gguf_cannot_read_has_no_profile(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))

    assert profiles.find(str(tmp_path / "model.gguf")) is None
    with pytest.raises(FileNotFoundError):
        profiles.find(str(tmp_path / "none.gguf"))
