"""dkv-lab ray before a cluster is started: what is refused, and which cluster it would be. The rest is in tests/ray."""

from __future__ import annotations

import json

import pytest
from test_lab_run import Bytes, tiny  # noqa: F401

from dkv.errors import UserError
from dkv.hf import models
from dkv_lab import evaluate, ray_eval, ray_work, record, results


def test_results_that_are_there_are_not_written_over(tmp_path):
    output = tmp_path / "r.jsonl"
    output.write_text("earlier rows\n")

    with pytest.raises(UserError, match="r.jsonl: is there already: give another output; dkv report takes both$"):
        ray_work.main(["sweep", str(tmp_path / "none"), "-o", str(output), "--", "--policy", "knorm"])

    assert output.read_text() == "earlier rows\n"
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    "flag", ["-r", "--recursive", "--shard", "--shard=0/2", "--csv", "--csv=a.csv", "-o", "-oout", "-ro", "--output=o", "--config"]
)
def test_flags_that_cannot_mean_what_they_say_behind_the_dashes_are_refused(flag, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        ray_work.parse(["sweep", "caches", "-o", "out", "--", "--policy", "knorm", flag])

    assert f"error: {flag} after --: " in capsys.readouterr().err


def test_flags_of_a_policy_are_passed_on():
    flags = ["--policy", "knorm,h2o", "--profile-alpha", "-0.5", "-j2", "--force", "--rope-dims=64"]

    assert ray_work.parse(["compact", "caches", "-o", "out", "--", *flags]).flags == flags


def test_only_an_address_that_was_given_is_attached_to():
    # Ray takes RAY_ADDRESS for an address that is None.
    parse = ray_work.parse
    assert ray_work.cluster(parse(["sweep", "c", "-o", "o", "--workers", "3"])) == {"address": "local", "num_cpus": 3}
    assert ray_work.cluster(parse(["sweep", "c", "-o", "o", "--address", "auto", "--workers", "3"])) == {"address": "auto"}


EVAL = ["--policies", "snapkv", "--capacity", "48", "--tokens", "200", "--needles", "3", "--texts", "2", "--inline"]


@pytest.fixture
def parts(tiny, tmp_path, monkeypatch):  # noqa: F811
    """A plan over two prompts a group, and its parts."""
    monkeypatch.setattr(models, "load_tokenizer", lambda folder: Bytes())
    plan = ray_eval.plan(ray_work.parse(["eval", "tiny", "-o", str(tmp_path / "many.csv"), "--group", "2", "--", *EVAL]))
    for command in plan.commands:
        assert command[1:4] == ["-m", "dkv_lab", "eval"] and evaluate.main(command[4:]) == 0
    return plan


def test_the_parts_of_an_evaluation_become_the_undivided_run(parts, tmp_path):
    one, many = tmp_path / "one.csv", tmp_path / "many.csv"
    evaluate.main(["tiny", *EVAL, "--threads", "1", "-o", str(one)])

    parts.join()

    assert len(parts.commands) > 1 and sum(parts.sizes) == 8
    assert many.read_bytes() == one.read_bytes()
    assert results.budgets_path(many).read_bytes() == results.budgets_path(one).read_bytes()
    assert evaluate.main(["--again", str(results.runs_path(many))]) == 0
    assert record.to_make_again(results.runs_path(many))[0]["csv"] == record.file_hash(one)


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"versions": {"torch": "1.0"}}, r"other versions than .*: remove .*\.parts and run again$"),
        ({"prompts": "x"}, "its prompts are not those of this machine: they are cut from a machine's texts, and a worker has others$"),
    ],
)
def test_parts_of_another_run_are_not_joined(parts, tmp_path, facts, message):
    path = sorted(parts.parts.glob("*.runs.json"))[-1]
    (run,) = json.loads(path.read_text())
    path.write_text(json.dumps([run | facts, run]))  # It was stopped, and gone on with otherwise.

    with pytest.raises(UserError, match=message):
        parts.join()
    assert not (tmp_path / "many.csv").exists()


def test_what_every_group_says_is_passed_on_once():
    noted: set[str] = set()
    said = "evaluating 1 of 2\nevaluate: joined left out: there is no profile of tiny; make one with calibrate\n"

    assert ray_work._notes(said, noted) == said.splitlines(keepends=True)[1]
    assert ray_work._notes(said, noted) == ""


def test_an_evaluation_takes_one_model(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        ray_work.parse(["eval", "a", "b", "-o", "out"])

    assert "a b: eval takes one model" in capsys.readouterr().err
