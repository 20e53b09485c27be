"""Numbers that the lab's programs are given: in their ranges, or refused with what was found and expected."""

from __future__ import annotations

import pytest

from dkv_lab import calibrate, certify, evaluate, ray_work


@pytest.mark.parametrize(
    "flag, value, expected",
    [
        ("--needles", "-1", "an integer of at least 0"),
        ("--texts", "many", "an integer of at least 0"),
        ("--window", "0", "an integer of at least 1"),
        ("--threads", "0", "an integer of at least 1"),
        ("--capacity", "64,x", "integers of at least 1 with commas between them, 64,128"),
        ("--tokens", "0", "integers of at least 1 with commas between them, 64,128"),
        ("--risk", "1.5", "a number of 0 … 1"),
        ("--risk", "nan", "a number of 0 … 1"),
    ],
)
def test_an_evaluation_names_what_it_cannot_take(flag, value, expected, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        evaluate.parse(["smollm2", f"{flag}={value}"])

    assert f"argument {flag}: {value}: expected {expected}" in capsys.readouterr().err


def test_an_evaluation_without_prompts_is_refused(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        evaluate.parse(["smollm2", "--needles", "0", "--texts", "0"])

    assert "no prompts: --needles, --texts and --ruler are 0" in capsys.readouterr().err


def test_sizes_are_taken_once_and_in_order():
    options = evaluate.parse(["smollm2", "--capacity", "256,64,256", "--tokens", "2048,1024"])

    assert (options.capacity, options.tokens) == ([64, 256], [1024, 2048])


@pytest.mark.parametrize("flag, value", [("--needles", "-3"), ("--step", "0"), ("--alpha", "-1"), ("--alpha", "9"), ("--floor", "1.5"), ("--surrogate", "1")])
def test_a_calibration_names_what_it_cannot_take(flag, value, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        calibrate.parse(["smollm2", f"{flag}={value}"])

    assert f"argument {flag}: {value}: expected " in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--kernel", "14"], "--kernel 14: expected an odd number"),
        (["--alpha", "1"], "--alpha 1: expected a number between 0 and 1, or --restore 0"),
        (["--tokens", "120", "--cut", "60"], "--restore 128 is more than --tokens 120"),
    ],
)
def test_a_calibration_refuses_flags_that_do_not_go_together_before_it_measures(flags, message, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        calibrate.parse(["smollm2", *flags])

    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--group", "--workers"])
def test_ray_has_at_least_one_of_each(flag, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        ray_work.parse(["sweep", "caches", "-o", "out", f"{flag}=0"])

    assert f"argument {flag}: 0: expected an integer of at least 1" in capsys.readouterr().err


def test_a_certificate_s_risk_is_between_none_and_all(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        certify.parse(["r.csv", "--policy", "p", "--epsilon=0"])

    assert "argument --epsilon: 0: expected a number between 0 and 1" in capsys.readouterr().err
