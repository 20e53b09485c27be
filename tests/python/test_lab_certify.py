"""Certificates: what is certified from which losses, and that the guarantee holds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from test_lab_run import tiny  # noqa: F401

from dkv.errors import UserError
from dkv_lab import certify, evaluate, policies, record, results
from dkv_lab.results import COLUMNS
from dkv.hf import profile_file


KERNEL = {"kernel": 7, "pool": "max", "reduce": "mean"}


def line(key, policy, capacity, question="shown", **values) -> dict:
    return dict.fromkeys(COLUMNS, "") | {
        "key": key, "task": "needle", "tokens": "1024", "policy": policy, "capacity": str(capacity), "question": question, **values
    }  # fmt: skip


def requests(lost: dict[int, int], count: int = 100, policy: str = "p") -> list[dict]:
    """Needles that the full cache finds; at each size so many are not."""
    keys = [f"n{index}" for index in range(count)]
    lines = [line(key, "fullkv", 0, found="1") for key in keys]
    for size, losses in lost.items():
        lines += [line(key, policy, size, found=str(int(index >= losses))) for index, key in enumerate(keys)]
    return lines


def model(**other) -> dict:
    geometry = {"layers": 1, "compressed": [0], "q_heads": 1, "kv_heads": 1, "head_dim": 4}
    return {"name": "tiny", "geometry": geometry, "config": "c0", "weights": "w0"} | other


def write(path, lines) -> None:
    path.write_text("\n".join([",".join(COLUMNS), *(",".join(each[c] for c in COLUMNS) for each in lines)]) + "\n")


def test_the_tail_is_the_binomials():
    assert certify.p_value(0, 83, 0.036) == pytest.approx(0.964**83)
    assert certify.p_value(1, 10, 0.1) == pytest.approx(0.9**10 + 10 * 0.1 * 0.9**9)
    assert certify.p_value(10, 10, 0.1) == 1.0
    # 82 requests without a loss certify 3.6 %, 81 do not.
    assert certify.losses_allowed(82, 0.036, 0.05) == 0
    assert certify.losses_allowed(81, 0.036, 0.05) == -1


def test_the_walk_ends_at_the_first_size_that_fails():
    assert certify.walk([0, 1, 0, 5], 1) == 2
    assert certify.walk([0, 3, 0], 1) == 0
    assert certify.walk([2, 0], 1) is None


@pytest.mark.parametrize("requests_, epsilon, delta", [(60, 0.05, 0.05), (200, 0.05, 0.1), (400, 0.1, 0.05)])
@pytest.mark.parametrize("step", [0.0, 0.02, 0.2])
def test_a_size_whose_risk_is_too_high_is_certified_less_often_than_delta(requests_, epsilon, delta, step):
    # The hardest case: the sizes' risks begin just above epsilon; and one that is met on the way down.
    draws, rng = 10_000, np.random.default_rng(3)
    for risks in (epsilon + 1e-9 + step * np.arange(4), np.r_[epsilon / 4, epsilon / 2, epsilon + 1e-9, epsilon + step]):
        each = rng.random((draws, requests_))  # One request is lost at every size below the one where it is lost first.
        losses = np.stack([(each < risk).sum(1) for risk in risks], 1)
        allowed = certify.losses_allowed(requests_, epsilon, delta)

        shipped = [certify.walk(list(row), allowed) for row in losses]

        wrong = np.mean([index is not None and risks[index] > epsilon for index in shipped])
        assert wrong <= delta + 3 * np.sqrt(delta * (1 - delta) / draws)


def test_the_smallest_size_is_certified_and_stored_in_the_profile(tmp_path, capsys):
    write(tmp_path / "r.csv", requests({512: 0, 256: 1, 128: 9, 64: 0}, policy="snapkv"))
    results.runs_path(tmp_path / "r.csv").write_text(json.dumps([{"model": model(), "seed": 1, "window": 32}] * 2))
    profile_file.Profile(model(), {}, "head", 1.0, 0.2, [[1.0]]).save(tmp_path / "p.json")

    flags = ["--policy", "snapkv", "--epsilon", "0.05", "--delta", "0.05", "--profile", str(tmp_path / "p.json")]
    assert certify.main([str(tmp_path / "r.csv"), *flags]) == 0

    out = capsys.readouterr().out
    assert out.startswith("snapkv at 256 tokens a head: at most 5 % of such requests lose more than 0.1, with confidence 0.95. 100 requests")
    assert "0 lost at 512, 1 lost at 256, 9 lost at 128, 0 lost at 64" in out
    stored = json.loads((tmp_path / "p.json").read_text())["figures"]["certified snapkv, question both"]
    assert (stored["capacity"], stored["epsilon"], stored["requests"], stored["losses"]) == (256, 0.05, 100, 1)
    assert (stored["tokens"], stored["flags"], stored["seeds"]) == ([1024, 1024], KERNEL | {"policy": "snapkv", "window": 32}, [1])


def test_nothing_is_certified_from_too_few_requests(tmp_path, capsys):
    write(tmp_path / "r.csv", requests({512: 0}, count=20))

    assert certify.main([str(tmp_path / "r.csv"), "--policy", "p"]) == 0

    assert capsys.readouterr().out.endswith("59 requests are needed, none of them lost.\n")


def test_losses_are_those_of_the_measure_that_a_request_has():
    lines = [
        line("t", "fullkv", 0, kl="0.0"), line("t", "p", 64, kl="0.3"),
        line("s", "fullkv", 0, score="0.9"), line("s", "p", 64, score="0.85"),
        line("h-q0", "fullkv", 0, "hidden", found="1"), line("h-q0", "p", 64, "hidden", found="1"),
        line("h-q1", "fullkv", 0, "hidden", found="1"), line("h-q1", "p", 64, "hidden", found="0"),
        line("never", "fullkv", 0, found="0"), line("never", "p", 64, found="0"),
    ]  # fmt: skip

    made = certify.study(lines, "p", None, 0.1, "both")

    assert (made.requests, made.losses) == (4, [2])  # The text, and the context that lost one of its questions.
    assert certify.study(lines, "p", None, 0.1, "hidden").losses == [1]


@pytest.mark.parametrize(
    "lines, sizes, message",
    [
        (requests({64: 0}), [128, 64], r"p at 128 lacks 100 of 100 requests \(n0, …\): every size needs the same ones"),
        (requests({64: 0})[100:], None, "request n0 has no line of fullkv"),
        ([line("a", "q", 64, found="1")], None, "no request of policy p with question both: there are q"),
        ([], None, "^not results of dkv eval: there is no line$"),
        ([{"policy": "p", "mean": "1"}], None, "^not results of dkv eval: no column capacity$"),
        ([line("a", "fullkv", 0), line("a", "p", 64)], None, "request a of p has neither kl, found nor score"),
    ],
)
def test_what_cannot_be_certified_from_is_refused(lines, sizes, message):
    with pytest.raises(UserError, match=message):
        certify.study(lines, "p", sizes, 0.1, "both")


def test_a_loss_that_is_no_number_is_lost():
    lines = requests({64: 0}, count=2)
    lines[2] |= {"found": "", "kl": "nan"}
    lines[3] |= {"found": "", "score": "nan"}
    lines[1] |= {"score": "1"}

    assert certify.study(lines, "p", None, 0.1, "both").losses == [2]


@pytest.mark.parametrize("flag", ["--tau=nan", "--tau=inf", "--tau=-1", "--epsilon=nan", "--epsilon=inf", "--delta=nan", "--delta=1"])
def test_bounds_that_are_no_bounds_are_refused(flag, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        certify.parse(["r.csv", "--policy", "p", flag])

    assert f"argument {flag.split('=')[0]}: {flag.split('=')[1]}: expected a " in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["64,x", "64,", "0", "-64", "6.4"])
def test_sizes_that_are_none_are_refused_by_name(sizes, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        certify.parse(["r.csv", "--policy", "p", f"--capacity={sizes}"])

    assert f"argument --capacity: {sizes}: expected integers of at least 1 with commas between them, 64,128" in capsys.readouterr().err


@pytest.mark.parametrize(
    "runs, message",
    [
        ([model(), model(weights="w1")], r"^results of 2 models \(tiny \(config c0, weights w0\), tiny \(config c0, weights w1\)\): a cert"),
        ([model(config="c1")], r"^results of tiny \(config c1, weights w0\), and a profile of tiny \(config c0, weights w0\): another"),
        ([], r"^there is no \.runs\.json beside the results to say which model they are of"),
    ],
)
def test_a_profile_takes_no_certificate_of_another_model(tmp_path, runs, message):
    write(tmp_path / "r.csv", requests({512: 0}))
    if runs:
        results.runs_path(tmp_path / "r.csv").write_text(json.dumps([{"model": each} for each in runs]))
    profile_file.Profile(model(), {}, "head", 1.0, 0.2, [[1.0]]).save(tmp_path / "p.json")

    with pytest.raises(UserError, match=message):
        certify.main([str(tmp_path / "r.csv"), "--policy", "p", "--profile", str(tmp_path / "p.json")])

    assert profile_file.load(tmp_path / "p.json").figures == {}


@pytest.fixture
def mine(tmp_path):
    """A profile of the tiny model; certify stores in it."""
    from conftest import make_tiny_llama

    described = profile_file.describe_model(make_tiny_llama(), [None] * 4, "tiny")
    profile_file.Profile(described, {}, "head", 1.0, 0.2, [[1.0, 2.0]] * 4, kernel=5).save(tmp_path / "p.json")
    return tmp_path / "p.json"


MEASURED = ["--", "--needles", "3", "--texts", "0", "--tokens", "200", "--inline"]


def test_a_model_is_measured_on_requests_of_a_seed_that_is_drawn(tiny, mine, tmp_path, monkeypatch, capsys):  # noqa: F811
    own = ["tiny", "--policy", "profile/floor=0.3", "--question", "shown", "--capacity", "48,64", "--epsilon", "0.7", "--profile", str(mine)]
    arguments = [*own, "-o", str(tmp_path / "c.csv"), *MEASURED]
    assert certify.main(arguments) == 0

    (run,) = results.read_runs([tmp_path / "c.csv"])
    out = capsys.readouterr().out
    assert "3 requests (3 needle shown; 200 to 200 tokens)" in out
    stored = json.loads(mine.read_text())["figures"]["certified profile/floor=0.3, question shown"]
    assert stored["seeds"] == [run["seed"]] and run["arguments"][-4:-2] == ["--seed", str(run["seed"])]
    assert stored["flags"] == KERNEL | {"policy": "dynamickv", "window": 32, "kernel": 5, "profile_floor": 0.3}
    assert [size for size, _ in stored["tried"]] == [64, 48]

    # The same command goes on with the same requests, though the profile has a certificate now; another draws others.
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: pytest.fail("measured again"))
    assert certify.main(arguments) == 0
    assert capsys.readouterr().out == out
    with pytest.raises(UserError, match=r"c\.csv: other requests were measured into it: give another -o$"):
        certify.main([*own, "-o", str(tmp_path / "c.csv"), *MEASURED, "--ruler", "1"])
    drawn = []
    monkeypatch.setattr(evaluate, "run", lambda options, arguments: drawn.append(options.seed))
    for name in ("d", "e"):
        certify.measure(certify.parse([*own, "-o", str(tmp_path / f"{name}.csv"), *MEASURED]))
    assert len({run["seed"], *drawn}) == 3


def test_a_policy_that_no_certificate_can_hold_is_refused_before_it_is_measured(tiny, mine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(evaluate, "run", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="a certificate is of one profile: leave use out"):
        certify.main(["tiny", "--policy", "profile/use=own", "--profile", str(mine), *MEASURED])


def test_results_of_another_profile_are_refused(mine, tmp_path):
    write(tmp_path / "r.csv", requests({512: 0}, policy="joined") + requests({512: 0}, policy="snapkv")[100:])
    loaded = profile_file.load(mine)
    run = {"model": loaded.model, "seed": 1, "window": 32, "profiles": {"p": record.profile_hash(loaded)}}
    results.runs_path(tmp_path / "r.csv").write_text(json.dumps([run, run | {"profiles": {"q": "0"}}]))

    with pytest.raises(UserError, match="^the results were measured with another profile: a certificate is of the one"):
        certify.main([str(tmp_path / "r.csv"), "--policy", "joined", "--profile", str(mine)])
    # It says nothing of a policy that uses none.
    assert certify.main([str(tmp_path / "r.csv"), "--policy", "snapkv", "--profile", str(mine)]) == 0


def test_flags_of_the_evaluation_are_written_out(capsys):
    """Else `-- --par tuning` would pass for something that certify does not say itself."""
    with pytest.raises(SystemExit, match="^2$"):
        evaluate.parse(["tiny", "--par", "tuning"])

    assert "unrecognized arguments: --par tuning" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--seed=1", "--policies", "-o", "--part"])
def test_what_certify_says_itself_is_refused_behind_the_dashes(flag, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        certify.parse(["tiny", "--policy", "p", "--", flag])

    assert f"{flag} after --: certify says that itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, expected",
    [
        ("joined", KERNEL | {"policy": "auto", "window": 16, "kernel": 5}),
        ("reuse", {"policy": "reuse", "window": 16}),
        ("streamingllm", {"policy": "streamingllm", "window": 32}),
        ("snapkv/kernel=3/window=8", KERNEL | {"policy": "snapkv", "window": 8, "kernel": 3}),
        ("pyramidkv", KERNEL | {"policy": "pyramidkv", "window": 32, "beta": 20.0}),
    ],
)
def test_a_policy_is_said_in_dkvs_own_flags(mine, text, expected):
    assert policies.as_flags(text, 32, profile_file.load(mine)) == expected


def test_dynamickv_without_its_profile_is_not_certified_for_a_profile(mine):
    """With the profile, dynamickv gets the profile's budgets."""
    with pytest.raises(policies.UnknownPolicy, match="^dynamickv/m=2 goes by a profile where there is one, and this was measured without"):
        policies.as_flags("dynamickv/m=2", 32, profile_file.load(mine))

    flags = policies.as_flags("dynamickv/m=2", 32, None)
    assert flags.items() >= {"policy": "dynamickv", "window": 32, "update_interval": 2, "r_min": 0.1}.items()
