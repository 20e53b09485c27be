"""risk= of dkv.hf.Cache and --risk of dkv eval: the size that `dkv certify` stored, as `dkv policy show --risk` chooses it."""

from __future__ import annotations

import pytest
from conftest import make_tiny_llama
from test_cache import greedy
from test_lab_run import tiny  # noqa: F401
from test_profiles import own_folders, saved  # noqa: F401

import dkv
import dkv.hf
from dkv.errors import UserError
from dkv.hf import profile_file as files
from dkv_lab import evaluate, results

pytestmark = pytest.mark.e2e

KERNEL = {"kernel": 5, "pool": "avg", "reduce": "mean"}


def certified(path, *certificates: dict):
    profile = files.load(path)
    for index, one in enumerate(certificates):
        made = {"capacity": 40, "tau": 0.1, "epsilon": 0.05, "delta": 0.05, "tasks": "60 needle shown", "tokens": [150, 250]}
        profile.figures[f"certified c{index}"] = made | {"flags": {"policy": "snapkv", "window": 8} | KERNEL} | one
    profile.save(path)
    return path


@pytest.fixture
def mine(tmp_path):
    return certified(saved(tmp_path / "mine" / "tiny.json", make_tiny_llama()), {}, {"epsilon": 0.2, "capacity": 24})


@pytest.mark.parametrize("profile", ["file", None, "auto"])
def test_a_cache_takes_size_and_parameters_from_the_certificate(tiny_llama, sidecar, prompt, mine, profile):
    profile = mine if profile == "file" else profile

    cache = dkv.hf.Cache(tiny_llama, "snapkv", endpoint=sidecar.endpoint, risk=0.1, profile=profile)
    greedy(tiny_llama, prompt(200), 2, past_key_values=cache)

    report = cache.report()
    assert (report.compressed, report.policy, report.capacity, report.window) == (True, "snapkv", 40, 8)
    assert set(map(tuple, report.kept_per_head)) == {(40, 40)} and report.certificate == "certified c0"
    assert cache._wish.items() >= ({"name": "snapkv", "capacity": 40, "window": 8} | KERNEL).items()
    # More is kept than another certificate needs, which is of a larger risk.
    assert dkv.hf.Cache(tiny_llama, "snapkv", endpoint=sidecar.endpoint, risk=0.3, profile=profile)._wish["capacity"] == 40


def test_a_prompt_that_the_certificate_says_nothing_of_stays_whole(tiny_llama, sidecar, prompt, mine):
    cache = dkv.hf.Cache(tiny_llama, "snapkv", endpoint=sidecar.endpoint, risk=0.05, profile=mine)
    plain = greedy(tiny_llama, prompt(300), 4)

    assert greedy(tiny_llama, prompt(300), 4, past_key_values=cache) == plain
    report = cache.report()
    assert not report.compressed and report.failure is None
    assert report.kept_whole == "the prompt has 300 tokens, and 'certified c0' is of prompts of 150 to 250: give a size instead of a risk"
    cache.reset()
    greedy(tiny_llama, prompt(200), 2, past_key_values=cache)
    assert cache.report().compressed


def test_a_risk_without_a_certificate_is_refused_in_dkvs_words(tiny_llama, tmp_path, mine):
    with pytest.raises(files.ProfileError, match="has no certificate of snapkv at a risk of at most 0.01; it has certified c0 at risk 0.05"):
        dkv.hf.Cache(tiny_llama, "snapkv", risk=0.01, profile=mine)
    with pytest.raises(files.ProfileError, match="has no certificate of auto at .* it has none at all"):
        dkv.hf.Cache(tiny_llama, risk=0.05)
    whole = certified(saved(tmp_path / "whole.json", tiny_llama), {"capacity": 0, "flags": {"policy": "auto"}})
    with pytest.raises(files.ProfileError, match=r"it has certified c0 at risk 0.05 \(none: keep it whole\)"):
        dkv.hf.Cache(tiny_llama, risk=0.05, profile=whole)
    with pytest.raises(files.ProfileError, match="^risk needs a profile with a certificate, and there is none of this LlamaForCausalLM"):
        dkv.hf.Cache(make_tiny_llama(seed=3), risk=0.05)
    with pytest.raises(files.ProfileError, match="was made for other weights"):
        dkv.hf.Cache(make_tiny_llama(seed=3), "snapkv", risk=0.05, profile=mine)
    with pytest.raises(files.ProfileError, match="^/nowhere cannot be read: No such file or directory$"):
        dkv.hf.Cache(tiny_llama, risk=0.05, profile="/nowhere")


@pytest.mark.parametrize(
    "beside, words",
    [
        ({"capacity": 64}, "risk takes capacity from the certificate: leave it out"),
        ({"kernel": 7}, "risk takes kernel from the certificate: leave it out"),
        ({"force_profile": True}, "risk goes with no force_profile: a certificate is of the weights that it was measured on"),
        ({"profile": dkv.Profile("p", [[1.0]], 1.0, 0.2)}, "risk needs the profile's file, which holds the certificates, and profile is a dkv.Profile"),
    ],
)
def test_what_a_risk_does_not_go_with_is_refused(tiny_llama, mine, beside, words):
    with pytest.raises(dkv.DkvError) as refused:
        dkv.hf.Cache(tiny_llama, "snapkv", risk=0.05, **beside)

    assert refused.value.status == dkv.Status.INVALID_ARGUMENT and refused.value.message == words


EVAL = ["--tokens", "200", "--needles", "2", "--texts", "0", "--question", "shown", "--inline", "--window", "16"]
NAMED = ["--policies", "snapkv/kernel=5/pool=avg/window=8"]


def test_an_evaluation_under_a_risk_has_the_certified_size(tiny, mine, tmp_path, capsys):  # noqa: F811
    output = tmp_path / "r.csv"
    arguments = ["tiny", *EVAL, *NAMED, "--profile", str(mine), "--risk", "0.1", "-o", str(output)]
    assert evaluate.main(arguments) == 0

    lines = results.read([output])
    assert {(line["policy"], line["capacity"]) for line in lines} == {("fullkv", "0"), (NAMED[1], "40")}
    assert f"{NAMED[1]} at 40, certified c0: at most 5 % of such requests lose more than 0.1, with confidence 0.95" in capsys.readouterr().err
    # Another certificate would make other results of the same command.
    certified(mine, {"capacity": 48})
    with pytest.raises(UserError, match=r"^the profile's certificate is not the record's: \['certified c0', 48\], and it was \['certified c0', 40\]$"):
        evaluate.main(["--again", str(results.runs_path(output))])
    certified(mine, {"capacity": 40})
    assert evaluate.main(["--again", str(results.runs_path(output))]) == 0


def test_an_evaluation_refuses_a_risk_that_it_cannot_measure(tiny, mine, tmp_path, capsys):  # noqa: F811
    arguments = ["tiny", *EVAL, "--profile", str(mine), "-o", str(tmp_path / "r.csv"), "--risk"]
    with pytest.raises(UserError, match=r"^'certified c0' is not of snapkv as it is measured here \(window 8, kernel 5, pool avg\): name the"):
        evaluate.main([*arguments, "0.1", "--policies", "snapkv"])
    with pytest.raises(UserError, match="the prompt has 300 tokens, and 'certified c0' is of prompts of 150 to 250"):
        evaluate.main([*arguments, "0.1", *NAMED, "--tokens", "300"])
    with pytest.raises(UserError, match="has no certificate of snapkv at a risk of at most 0.01"):
        evaluate.main([*arguments, "0.01", *NAMED])
    for more in (["0.1", "--policies", "snapkv,h2o"], ["0.1", *NAMED, "--capacity", "48"], ["2", *NAMED]):
        with pytest.raises(SystemExit, match="^2$"):
            evaluate.main([*arguments, *more])
    assert "--risk takes the size of one policy from its certificate" in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists()
