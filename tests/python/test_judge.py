"""`dkv report --model`: what a model says over the caches of a sweep."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import torch
from conftest import make_tiny_llama
from processes import program
from test_lab_run import Bytes

import dkv.hf
from dkv.errors import UserError
from dkv_lab import judge
from dkv_lab.judge import Question
from dkv_lab.report import measured, sweep
from dkv_lab.report.means import Study, damage, error

POLICIES, SIZES = ("snapkv", "streamingllm", "keydiff", "fullkv"), (24, 60)


@pytest.fixture(scope="module")
def model():
    return make_tiny_llama()


@pytest.fixture(scope="module")
def points(model, tmp_path_factory):
    """Of two prompts."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, seed in (("one", 1), ("two", 2)):
        ids = torch.randint(3, 250, (1, 200), generator=torch.Generator().manual_seed(seed))
        dkv.hf.save(model, ids, folder / f"{name}.safetensors", queries=8)
    flags = ["--policy", ",".join(POLICIES), "--capacity", ",".join(map(str, SIZES)), "--window", "8"]
    command = [program("dkv"), "sweep", *sorted(folder.glob("*.safetensors")), *flags, "-o", folder / "sweep.jsonl"]
    subprocess.run(command, check=True, capture_output=True)
    return sweep.read([folder / "sweep.jsonl"])[0]


def test_every_cache_is_asked_every_question_and_the_whole_one_loses_nothing(points, model):
    asked = [Question("What?"), Question("Who?", "me"), Question("Why?", "so", "two.safetensors")]

    verdicts = judge.judge(points, asked, model, Bytes())

    assert len(verdicts) == sum(3 if point.file.endswith("two.safetensors") else 2 for point in points)
    for verdict in verdicts:
        whole = verdict.point.policy == "fullkv"
        assert verdict.kl == pytest.approx(0, abs=1e-5) if whole else verdict.kl > 1e-5, verdict
        assert (verdict.found is None) == (verdict.whole_found is None) == (verdict.question.answer == "")
        assert verdict.agree == 1 or not whole


def test_what_a_cache_answers_is_what_the_model_says_over_it(points, model, tmp_path):
    """By another way: generate() from the compacted file."""
    point = next(point for point in points if (point.policy, point.capacity) == ("snapkv", 24))
    asked = torch.tensor(Bytes()("\n\nQuestion: What?\nAnswer:")["input_ids"])[None]
    small = tmp_path / "small.safetensors"
    size = ["--capacity", "24", "--window", "8"]
    subprocess.run([program("dkv"), "compact", point.file, "-o", small, "--policy", "snapkv", *size], check=True, capture_output=True)
    said = {}
    for path in (point.file, small):
        cache = dkv.hf.load(path, model)
        how = {"max_new_tokens": judge.FORCED, "do_sample": False, "eos_token_id": None}
        said[path] = dkv.hf.generate(model, cache, asked, **how)[0, -judge.FORCED :]

    verdict = judge.judge([point], [Question("What?")], model, Bytes())[0]

    assert (verdict.agree == 1) == torch.equal(*said.values())


def test_a_size_is_ranked_by_kl_and_the_sweep_s_own_numbers_beside_it(points, model):
    study = Study("", points)

    judged = measured.Judged(study, judge.judge(points, [Question("What?"), Question("Who?", "me")], model, Bytes()))

    rows = judged.rows
    for capacity in SIZES:
        kls = [row.kl for row in rows if row.capacity == capacity]
        assert kls == sorted(kls) and all(row.low <= row.kl <= row.high for row in rows)
    assert {row.questions for row in rows} == {4} and all(row.found <= row.asked <= 2 for row in rows)
    assert judged.spearman(damage) is None, "the model has no profile"
    assert -1 <= judged.spearman(error) <= 1
    assert "error" in judged.summary()[1] and "damage" not in judged.summary()[1]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "there is no question"),
        ('{"question": "What?", "reply": "me"}', ":1: no question: 'reply' is not known: question, answer and file are"),
        ('Why?\n{"answer": "me"}', ":2: no question: 'question' is missing, or something is not a text"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, text, words):
    (tmp_path / "q.txt").write_text(text)
    with pytest.raises(UserError) as refused:
        judge.read_questions(tmp_path / "q.txt")
    assert words in str(refused.value)


def test_questions_and_caches_that_do_not_meet_are_named(points, model):
    with pytest.raises(UserError, match="the question 'What\\?' is of 'three', which the sweep does not have"):
        judge.judge(points, [Question("What?", "", "three")], model, Bytes())
    with pytest.raises(UserError, match="two.safetensors: no question is of it"):
        judge.judge(points, [Question("What?", "", "one.safetensors")], model, Bytes())


def test_lines_that_do_not_say_what_was_asked_are_refused(tmp_path, points, model):
    import dataclasses

    old = dataclasses.replace(points[0], asked=())
    with pytest.raises(UserError, match="cannot be made again: the sweep's lines have no 'asked': an older dkv sweep wrote them"):
        judge.judge([old], [Question("What?")], model, Bytes())


def test_a_model_without_questions_is_refused(tmp_path):
    (tmp_path / "sweep.jsonl").write_text(json.dumps({"sweep": 1}) + "\n")
    command = [sys.executable, "-m", "dkv_lab", "report", tmp_path / "sweep.jsonl", "--model", "smollm2"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "--model and --question belong together" in refused.stderr


def test_every_verdict_is_a_line_of_the_table(points, model, tmp_path):
    verdicts = judge.judge(points[:2], [Question("Who?", "me")], model, Bytes())

    judge.write(tmp_path / "judged.csv", verdicts)

    with open(tmp_path / "judged.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["kl"]) for row in rows] == pytest.approx([verdict.kl for verdict in verdicts], rel=1e-4, abs=1e-9)
    assert json.loads(rows[0]["asked"])["policy"] == rows[0]["policy"] and rows[0]["found"] in "01"
