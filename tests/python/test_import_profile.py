"""Profiles from others' measurements: what becomes of their numbers, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import make_tiny_llama

from dkv.hf import commands, import_profile, models, profile_file
from dkv.hf.profile_file import Geometry, ProfileError

LAYERS, HEADS = 4, 2
GEOMETRY = Geometry(LAYERS, [0, 1, 2, 3], 6, HEADS, 16)
HYBRID = Geometry(4, [1, 3], 6, HEADS, 16)


def duo(folder, rows, **config):
    (folder / "full_attention_heads.tsv").write_text("\n".join("\t".join(f"{v:.18e}" for v in row) for row in rows) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_name": "models/tiny", "sink_size": 128, "recent_size": 256} | config))
    return folder


def shares(path, layers=range(LAYERS), heads=HEADS, **more):
    path.write_text(json.dumps({f"L{layer}H{head}": 0.1 * (layer + 1) + head for layer in layers for head in range(heads)} | more))
    return path


def scores(path, tensor):
    torch.save(tensor, path)
    return path


def test_duo_attentions_gates_are_clipped_as_it_does(tmp_path):
    found = import_profile.read([duo(tmp_path, [[0.5, 1.2], [-0.1, 0.0], [0.25, 1], [1, 1]])], GEOMETRY)

    assert found.weights == [[0.5, 1.0], [0.0, 0.0], [0.25, 1.0], [1.0, 1.0]]
    assert (found.method, found.floor) == ("duo-attention", 0.2)
    assert found.facts == {"sink_size": 128, "recent_size": 256, "trained_on": "models/tiny"}


def test_attention_matchings_shares_are_taken_as_they_are(tmp_path):
    found = import_profile.read([shares(tmp_path / "b.json")], GEOMETRY)

    assert found.weights == [[0.1 * (layer + 1), 0.1 * (layer + 1) + 1] for layer in range(LAYERS)]
    assert found.floor == 0.0
    # Of a hybrid it names the layers with full attention alone.
    assert len(import_profile.read([shares(tmp_path / "h.json", layers=[1, 3])], HYBRID).weights) == 2


def table(path, **cells):
    """LU-KV's: every head drops as much as all do, but for the cells, "R_L_H" in percent dropped, layer and head."""
    made = np.repeat(np.arange(1, 100)[:, None, None] / 100, LAYERS, 1).repeat(HEADS, 2)
    for place, value in cells.items():
        ratio, layer, head = map(int, place[1:].split("_"))
        made[ratio - 1, layer, head] = value
    np.save(path, made)
    return path


def test_lu_kvs_table_gives_what_each_head_keeps_at_a_ratio(tmp_path):
    path = table(tmp_path / "curve.npy", d75_2_1=0.25, d74_2_1=1.0)

    found = import_profile.read([path], GEOMETRY, 0.25)
    assert found.weights == pytest.approx(np.array([[0.25, 0.25], [0.25, 0.25], [0.25, 0.75], [0.25, 0.25]]))
    assert (found.method, found.floor, found.facts) == ("lu-kv", 0.0, {"ratio": 0.25})
    assert import_profile.read([path], GEOMETRY, 0.26).weights[2][1] == 0.0


@pytest.mark.parametrize(
    "array, ratio, message",
    [
        (np.zeros((99, 3, 2)), 0.5, "3 layers of 2 heads: the model has 4 layers of 2 KV heads$"),
        (np.zeros((4, 2)), 0.5, r"not LU-KV's table: \[99, layers, KV heads\] was expected, and this is \[4, 2\]$"),
        (np.zeros((99, 4, 2)), None, "--ratio goes with LU-KV's FILE.npy"),
        (np.zeros((99, 4, 2)), 1.0, "--ratio 1: its tables are of 0.01 to 0.99 kept$"),
        (np.full((99, 4, 2), 1.5), 0.5, "a head drops a share outside 0 to 1$"),
        (np.full((99, 4, 2), np.nan), 0.5, "a head drops a share outside 0 to 1$"),
        (np.array([{}]), 0.5, "not an array of numpy.save's: "),
    ],
)
def test_a_table_that_is_not_lu_kvs_is_refused(tmp_path, array, ratio, message):
    np.save(tmp_path / "curve.npy", array)

    with pytest.raises(ProfileError, match=message):
        import_profile.read([tmp_path / "curve.npy"], GEOMETRY, ratio)


def test_of_several_kvzip_scores_the_maximum_counts(tmp_path):
    one = torch.arange(8.0).view(1, 4, 2)
    files = [scores(tmp_path / "m-a.pt", one), scores(tmp_path / "m-b.pt", torch.full((4, 2), 3.0))]

    assert import_profile.read(files, GEOMETRY).weights == [[3, 3], [3, 3], [4, 5], [6, 7]]
    assert import_profile.read(files[:1], HYBRID).weights == [[2, 3], [6, 7]]


def test_kvzip_scores_of_one_kv_head_are_understood(tmp_path):
    of_one = dataclasses.replace(GEOMETRY, kv_heads=1)

    assert import_profile.read([scores(tmp_path / "s.pt", torch.arange(4.0).view(1, 4, 1))], of_one).weights == [[0], [1], [2], [3]]


@pytest.mark.parametrize("flags, wrong", [(["--alpha", "nan"], "nan: expected 0 to 8"), (["--floor", "7"], "7: expected 0 to 1")])
def test_numbers_that_a_profile_cannot_have_are_refused_before_a_model_is_loaded(flags, wrong, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        import_profile.main(["x", "--model", "m", "-o", "p.json", *flags])

    assert wrong in capsys.readouterr().err


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda f: duo(f, [[1, 1, 1]] * 4), r"full_attention_heads.tsv has 4 layers of 3 heads: the model has 4 layers of 2 KV heads$"),
        (lambda f: duo(f, [[1, 1]] * 4, sink_size="many"), "not a DuoAttention pattern: invalid literal"),
        (lambda f: f, "a DuoAttention pattern needs full_attention_heads.tsv, which is not there$"),
        (lambda f: shares(f / "b.json", layers=[0, 1, 2]), r"b.json lacks L3H0: the model has 4 layers of 2 KV heads$"),
        (lambda f: shares(f / "b.json", heads=3), "b.json has L0H2: the model has"),
        (lambda f: shares(f / "b.json", **{"16-19": [0.9]}), r"its keys are L0H0, L0H1 …, and this has '16-19'$"),
        (lambda f: shares(f / "b.json", L0H0="much"), "a share is not a number: could not convert string to float: 'much'$"),
        (lambda f: scores(f / "s.pt", torch.ones(4, 2, 7)), r"\[layers, KV heads\] was expected, and this is \[4, 2, 7\]$"),
        (lambda f: scores(f / "s.pt", {"a": torch.ones(2)}), "a tensor was expected, and this is dict$"),
        (lambda f: (f / "s.pt").write_bytes(b"no") and f / "s.pt", "s.pt: not a tensor of torch.save's"),
        (lambda f: (f / "lu.csv").write_text("0,1") and f / "lu.csv", "or LU-KV's FILE.npy$"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, make, message):
    with pytest.raises(ProfileError, match=message):
        import_profile.read([make(tmp_path)], GEOMETRY)


def test_a_pickle_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save(Evil(), tmp_path / "s.pt")

    with pytest.raises(ProfileError, match="not a tensor of torch.save's"):
        import_profile.read([tmp_path / "s.pt"], GEOMETRY)
    assert not (tmp_path / "owned").exists()


def test_the_command_writes_a_profile_of_these_weights(tmp_path, monkeypatch, capsys):
    model = make_tiny_llama()
    monkeypatch.setattr(models, "load", lambda folder, dtype=None: (model, None, "tiny"))
    budgets = shares(tmp_path / "b.json")

    commands.profile(["import", str(budgets), "--model", "tiny", "-o", str(tmp_path / "p.json")])

    made = profile_file.load(tmp_path / "p.json")
    assert capsys.readouterr().out == f"{tmp_path / 'p.json'}: attention-matching, 4 layers of 2 KV heads of tiny\n"
    assert made.model["weights"] == profile_file.describe_model(model, [None] * 4, "tiny")["weights"]
    assert (made.alpha, made.floor, made.recipe) == (1.0, 0.0, {"method": "attention-matching", "source": "b.json"})
    with pytest.raises(ProfileError, match="negative or not finite"):
        import_profile.make([shares(tmp_path / "n.json", L0H0=-1)], made.model, 1.0, None)
