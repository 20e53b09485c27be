"""What a long run says of itself, on a clock of the test's own."""

from __future__ import annotations

import pytest
from dkv_lab import progress
from dkv_lab.needles import Row, in_turn


def row(task: str, tokens: int = 100) -> Row:
    return Row(f"{task}-{tokens}", task, "", [0] * tokens, [])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def said_by(rows: list[Row], seconds: dict[str, float], capsys, known: int = 0, after: str = "") -> list[str]:
    """The lines on stderr, which is a pipe, of prompts that take so long per kind."""
    clock = Clock()
    with progress.of("calibrating", rows, known, after, clock) as done:
        for each in rows:
            clock.now += seconds[each.task]
            done(each)
    printed = capsys.readouterr()
    assert printed.out == "" and "\r" not in printed.err and "\x1b" not in printed.err
    return printed.err.splitlines()


def test_how_long_it_takes_is_said_once_every_kind_was_measured(capsys):
    rows = in_turn([[row("needle")] * 24, [row("text")] * 10])
    lines = said_by(rows, {"needle": 10.0, "text": 48.0}, capsys, after="; restoring comes next")
    assert lines[0] == "calibrating: 34 prompts; the first will show how long that takes"
    assert lines[1] == "calibrating: about 12 min for 34 prompts; restoring comes next"
    assert lines[-1] == "calibrating: 34 of 34 prompts in 12 min"


def test_a_line_comes_now_and_then_with_what_is_left(capsys):
    lines = said_by([row("text")] * 10, {"text": 40.0}, capsys)
    assert lines[1] == "calibrating: about 7 min for 10 prompts"
    assert lines[2] == "calibrating: 2 of 10 prompts in 80 s, about 5 min left"
    assert len(lines) == 1 + 10


def test_quick_prompts_share_a_line(capsys):
    lines = said_by([row("text")] * 100, {"text": 1.0}, capsys)
    assert lines[1] == "calibrating: about 2 min for 100 prompts"
    assert [line.split()[1] for line in lines[2:]] == ["31", "61", "91", "100"]


def test_longer_prompts_count_for_more(capsys):
    clock = Clock()
    rows = [row("needle", 100), row("needle", 900)]
    with progress.of("evaluating", rows, clock=clock) as done:
        clock.now = 5.0
        done(rows[0])
    assert "evaluating: about 50 s for 2 prompts" in capsys.readouterr().err


def test_a_kind_that_comes_late_does_not_keep_the_estimate_back(capsys):
    rows = [row("first")] * 30 + [row("second")] * 30
    lines = said_by(rows, {"first": 10.0, "second": 10.0}, capsys)
    assert [line for line in lines if "about 10 min for 60 prompts" in line]


def test_what_an_earlier_run_measured_is_not_counted(capsys):
    lines = said_by([row("text")] * 2, {"text": 1.0}, capsys, known=8)
    assert lines[0] == "calibrating: 8 of 10 prompts are known from an earlier run"
    assert lines[1] == "calibrating: about 2 s for 2 prompts"
    assert said_by([], {}, capsys, known=10) == ["calibrating: 10 of 10 prompts are known from an earlier run"]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.2, "1 s"), (40, "40 s"), (99, "99 s"), (101, "2 min"), (5999, "1 h 40 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_said_in_one_or_two_units(seconds, expected):
    assert progress.words(seconds) == expected
