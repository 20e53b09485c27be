"""The surrogate: un-rotated keys, the fit, the section of a profile file, what is refused."""

import importlib
import json
import math
import os

import pytest
import torch
from conftest import make_tiny_llama
from test_lab_probe import make_tiny_gemma
from test_lab_run import Bytes, calibrated, tiny  # noqa: F401

from dkv.errors import UserError
from dkv.hf import profile_file, surrogate_file
from dkv.hf.replay import Instruction
from dkv.hf.surrogate_file import Rope, Surrogate, SurrogateError
from dkv_lab import calibrate, distil, evaluate, policies, scores, surrogate
from dkv_lab.probe import Layer, Probe

THETA = {"rope_theta": 10000.0}
ROPES = {
    "plain": None,
    "linear": THETA | {"rope_type": "linear", "factor": 4.0},
    "llama3": THETA
    | {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": THETA | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("kind", ROPES)
def test_keys_are_unrotated_with_the_models_own_frequencies(kind):
    model = make_tiny_llama(rope=ROPES[kind])
    code = importlib.import_module("transformers.models.llama.modeling_llama")
    keys, rotary = torch.randn(2, 90, 16), model.model.rotary_emb
    cos, sin = rotary(keys, torch.arange(90)[None])
    turned = code.apply_rotary_pos_emb(keys[None], keys[None], cos, sin)[1][0]

    found = surrogate.unrotated(turned, surrogate_file.rope_of_model(model))

    torch.testing.assert_close(found, keys * rotary.attention_scaling, rtol=1e-4, atol=1e-4)


def test_a_hybrid_has_the_frequencies_of_its_layers_with_full_attention():
    model = make_tiny_gemma()

    rope = surrogate_file.rope_of_model(model)

    by_kind = getattr(model.config, "rope_parameters", None)  # transformers 5.
    theta = by_kind["full_attention"]["rope_theta"] if by_kind else model.config.rope_theta
    assert rope.frequencies == pytest.approx([theta ** (-i / 8) for i in range(8)])
    assert not rope.interleaved


def test_adjacent_pairs_and_dims_that_do_not_turn():
    keys = torch.tensor([[[9.0, 9.0, 5.0], [0.0, 2.0, 5.0]]])  # Position 1 was turned from (2, 0) by a right angle.

    found = surrogate.unrotated(keys, Rope((torch.pi / 2,), interleaved=True))

    torch.testing.assert_close(found, torch.tensor([[[9.0, 9.0, 5.0], [2.0, 0.0, 5.0]]]))
    assert surrogate.unrotated(keys, Rope()) is keys


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rope_that_changes_with_the_length_is_refused_by_name(kind):
    more = {"factor": 2.0} if kind == "dynamic" else {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0}
    model = make_tiny_llama(rope=THETA | {"rope_type": kind, "original_max_position_embeddings": 64} | more)

    with pytest.raises(SurrogateError, match=f"rope {kind} changes its frequencies with the length"):
        surrogate_file.rope_of_model(model)


def made_layer(tokens: int, seed: int) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(2, tokens, 6, generator=generator) for _ in range(2)]
    return Layer(*rows, torch.zeros(4, 1, 6), 1.0, None, None)


def test_features_stand_in_the_order_of_the_file():
    layer = made_layer(3, 1)

    found = surrogate.features(layer, Rope())

    assert found.shape == (3, surrogate_file.feature_count(2, 6))
    keys, values = layer.keys[:, 2], layer.values[:, 2]
    norms = [rows.norm().log() for rows in (*keys, *values)]
    torch.testing.assert_close(found[2], torch.cat([*keys, *values, torch.stack(norms), torch.ones(1)]))
    nothing = Layer(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), 1.0, None, None)
    assert surrogate.features(nothing, Rope())[0, -2].item() == pytest.approx(-20 * torch.log(torch.tensor(2.0)).item())


def test_a_fit_finds_the_weights_that_made_the_scores_and_a_file_keeps_them(tmp_path):
    rope = Rope((0.5, 0.01))
    truth = surrogate_file.rounded(torch.randn(2, surrogate_file.feature_count(2, 6), generator=torch.Generator().manual_seed(3)))
    sums = surrogate.Sums.empty(truth.shape[1], 2)
    for seed in range(4):
        layer = made_layer(200, seed)
        sums.add(surrogate.features(layer, rope), surrogate.predicted(layer, truth, rope))

    fitted = sums.fit(1e-9)
    section = surrogate.section([sums], [sums], "kvzip+", 1e-9, rope, {"texts": 4})
    read = surrogate_file.read(json.loads(json.dumps(section)), 1, 2, 6)

    torch.testing.assert_close(fitted.float(), truth, rtol=1e-3, atol=1e-3)
    assert torch.equal(read.weights[0], surrogate_file.rounded(fitted))
    assert (read.target, read.rope) == ("kvzip+", rope)
    assert read.r2[0] == pytest.approx([1.0, 1.0], abs=1e-3)
    assert section["features"] == 2 * 2 * 6 + 2 * 2 + 1


def test_weights_are_stored_as_little_endian_bf16_in_hexadecimal():
    section = Surrogate("kvzip", Rope(), [torch.tensor([[1.0, -2.0]])], [[0.0]]).as_json()

    assert section["weights"] == ["803f00c0"]


def test_a_fit_that_explains_nothing_has_an_r2_of_zero():
    sums, generator = surrogate.Sums.empty(29, 2), torch.Generator().manual_seed(1)
    sums.add(surrogate.features(made_layer(5000, 1), Rope()), torch.randn(2, 5000, generator=generator))

    assert sums.explained(sums.fit(1e-2)).tolist() == pytest.approx([0, 0], abs=0.02)


def whole_section() -> dict:
    weights = [torch.zeros(2, surrogate_file.feature_count(2, 16))] * 4
    return Surrogate("kvzip", Rope((1.0, 0.1)), weights, [[0.5, 0.5]] * 4).as_json()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update(version=2), "surrogate has version 2; this build reads version 1"),
        (lambda s: s.update(target="x"), "surrogate has target x, not kvzip or kvzip+"),
        (lambda s: s.update(features=70), "surrogate has features 70, not 69: 2 KV heads of 16"),
        (lambda s: s["weights"].pop(), "surrogate has weights of 3 layers, not 4"),
        (lambda s: s["weights"].__setitem__(1, "00"), "surrogate has 2 characters of weights in layer 1, not 552"),
        (lambda s: s["weights"].__setitem__(2, "zz" * 276), "surrogate has weights in layer 2 that are not hexadecimal"),
        (lambda s: s["weights"].__setitem__(3, "807f" * 138), "surrogate has a weight in layer 3 that is not finite"),
        (lambda s: s["rope"].pop("interleaved"), "surrogate has no rope with frequencies and interleaved"),
        (lambda s: s["rope"].update(frequencies=[1.0] * 9), "surrogate has 9 frequencies, more than half of head_dim 16"),
        (lambda s: s["rope"].update(frequencies=[-1.0]), "surrogate has a frequency that is not a finite number"),
        (lambda s: s["r2"].pop(), "surrogate has r2 of another shape"),
    ],
)
def test_a_broken_section_is_refused_with_its_file(tiny, tmp_path, change, message):
    output = calibrated(tmp_path)
    data = json.loads(output.read_text())
    assert "surrogate" not in data
    data["surrogate"] = whole_section()
    output.write_text(json.dumps(data))
    profile_file.load(output)
    change(data["surrogate"])
    output.write_text(json.dumps(data))

    with pytest.raises(profile_file.ProfileError) as refused:
        profile_file.load(output)

    assert str(refused.value).startswith(f"{output}: ") and message in str(refused.value)


@pytest.mark.long
def test_calibrate_adds_a_surrogate_to_the_profile_that_is_there(tiny, tmp_path, monkeypatch, capsys):
    output = calibrated(tmp_path)
    before = json.loads(output.read_text())
    monkeypatch.setattr(calibrate, "_calibrated", None)  # Nothing is measured again.

    certified = profile_file.load(output)
    certified.figures["certified joined, question both"] = {"flags": {"policy": "auto"}}
    certified.save(output)
    monkeypatch.setattr(distil, "PASSES", 1)
    assert calibrate.main(["tiny", "--tokens", "400", "--surrogate", "12", "--cut", "60", "-o", str(output)]) == 0
    assert set(profile_file.load(output).figures) == set(certified.figures) - {"certified joined, question both"}

    after = json.loads(output.read_text())
    assert {key: value for key, value in after.items() if key != "surrogate"} == before
    recipe = after["surrogate"]["recipe"]
    assert recipe["texts"] == 12 and recipe["lessons"]["contexts"] == 6
    assert recipe["lessons"]["after"] > 0 and recipe["lessons"]["after"] != recipe["lessons"]["before"]
    assert len(profile_file.load(output).predictor().weights) == 4
    said = capsys.readouterr().out
    assert "surrogate of kvzip" in said and f"KL of others {recipe['lessons']['before']} → {recipe['lessons']['after']}" in said


def test_a_new_calibration_keeps_the_surrogate(tiny, tmp_path):
    output = calibrated(tmp_path)
    data = json.loads(output.read_text())
    data["surrogate"] = whole_section()
    output.write_text(json.dumps(data))

    calibrated(tmp_path)

    assert json.loads(output.read_text())["surrogate"] == data["surrogate"]


def test_a_model_whose_keys_cannot_be_unrotated_gets_no_surrogate():
    rope = THETA | {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}
    probe = Probe(make_tiny_llama(rope=rope), 8)

    with pytest.raises(UserError, match="no surrogate for this model: rope dynamic changes"):
        surrogate.fit_model(probe, Bytes(), 2, 100, 0)


def test_a_token_counts_by_what_was_seen_or_is_foreseen_whichever_is_more():
    peaks, foreseen = torch.tensor([[0.5, 0.001, 0.0]]), torch.tensor([[-3.0, -3.0, -30.0]])

    assert torch.allclose(scores.joined(peaks, foreseen), torch.tensor([[math.log(0.5), -3.0, -20 * math.log(2.0)]]))


def test_reuse_and_joined_need_a_surrogate(tiny, tmp_path):
    made = profile_file.load(calibrated(tmp_path))
    facts = policies.Facts(Probe(make_tiny_llama(), 8).prefill(torch.arange(20, 80)), {"p": made})

    for name in ("reuse", "joined"):
        with pytest.raises(policies.UnknownPolicy, match="need a profile with a surrogate: dkv calibrate MODEL --surrogate"):
            policies.variant(name, facts, 32)


@pytest.mark.long
@pytest.mark.model
def test_the_smollm2_surrogate_explains_most_of_the_replay_scores(smollm2):
    model, tokenizer = smollm2
    made = profile_file.load(os.path.join(os.path.dirname(profile_file.__file__), "..", "profiles", "smollm2-135m-instruct.json"))
    text = open(__file__).read() * 2
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:600]
    before = model.config._attn_implementation
    try:
        probe = Probe(model, 32)
        prompt = probe.prefill(torch.tensor(ids))
        found = probe.replay(prompt, ids, Instruction.of(tokenizer))["kvzip"]
    finally:
        model.set_attn_implementation(before)

    shares = []
    for layer, weights, scored in zip(prompt.layers, made.predictor().weights, found):
        guessed = surrogate.predicted(layer, weights, made.predictor().rope)
        best, wanted = (rows.topk(150, dim=1).indices for rows in (guessed, scored))
        shares += [len(set(a) & set(b)) / 150 for a, b in zip(best.tolist(), wanted.tolist())]
    assert sum(shares) / len(shares) > 0.5  # By chance a quarter.
