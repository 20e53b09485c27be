"""Shards of an evaluation: whose a prompt is, and what the environment says."""

from __future__ import annotations

import pytest

from dkv_lab import shard
from dkv_lab.needles import Row

VARIABLES = [name for job in shard._JOBS for name in job if name]


def row(*tokens: int, key: str = "k") -> Row:
    return Row(key, "text", "", list(tokens), [], ())


@pytest.fixture
def job(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_each_prompt_is_of_one_shard_by_its_tokens_alone():
    rows = [row(n, n + 1) for n in range(40)]
    parts = [[r for r in rows if shard.Shard(index, 4).has(r)] for index in range(4)]

    assert sorted(r.tokens for part in parts for r in part) == [r.tokens for r in rows]
    assert all(parts)
    assert all(shard.Shard(index, 4).has(row(7, 8)) == shard.Shard(index, 4).has(row(7, 8, key="other")) for index in range(4))
    assert all(shard.Shard().has(r) for r in rows)


def test_a_shard_is_what_is_said_or_what_the_array_job_says(job):
    assert shard.parse("3/4") == shard.Shard(3, 4)
    job("JOB_COMPLETION_INDEX", "5")
    assert shard.parse("auto/8") == shard.Shard(5, 8)
    with pytest.raises(ValueError, match=r"^auto: JOB_COMPLETION_INDEX is 5, but nothing says how many there are: give auto/N$"):
        shard.parse("auto")
    job("SLURM_ARRAY_TASK_ID", "7")
    job("SLURM_ARRAY_TASK_COUNT", "4")
    job("SLURM_ARRAY_TASK_MIN", "1")
    job("SLURM_ARRAY_TASK_STEP", "2")
    assert shard.parse("auto") == shard.Shard(3, 4)


@pytest.mark.parametrize("text", ["4/4", "0/0", "1", "-1/4", "auto/0", "auto/", "a/4"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match=f"^{text}: expected I/N with I from 0 to N-1, auto, or auto/N$"):
        shard.parse(text)


def test_what_the_environment_cannot_mean_is_refused_by_name(job):
    with pytest.raises(ValueError, match=r"^auto: SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX and TASK_ID are not set: give I/N$"):
        shard.parse("auto")
    job("TASK_ID", "4")
    with pytest.raises(ValueError, match=r"^auto/4: TASK_ID is 4: an array of 4 runs from 0 to 3$"):
        shard.parse("auto/4")
    job("TASK_ID", "one")
    with pytest.raises(ValueError, match=r"^auto/4: TASK_ID is 'one', not a count$"):
        shard.parse("auto/4")
