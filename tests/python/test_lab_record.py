"""dkv eval --again: a record gives the same CSV, and says what is not as it was."""

from __future__ import annotations

import json
import re

import pytest
from test_lab_run import tiny  # noqa: F401

from dkv.errors import UserError
from dkv_lab import evaluate, record, sources
from dkv_lab.results import runs_path

FLAGS = ["tiny", "--policies", "streamingllm,snapkv", "--capacity", "48", "--tokens", "200"]
FLAGS += ["--needles", "2", "--texts", "1", "--question", "shown", "--inline"]


@pytest.fixture
def made(tiny, tmp_path):  # noqa: F811
    """A CSV with its record."""
    output = tmp_path / "r.csv"
    assert evaluate.main([*FLAGS, "-o", str(output)]) == 0
    return output


def change(path, **facts) -> None:
    runs = json.loads(runs_path(path).read_text())
    for key, value in facts.items():
        runs[-1][key] = value
    runs_path(path).write_text(json.dumps(runs))


def test_a_record_gives_the_same_csv_byte_for_byte(made, tmp_path, capsys):
    assert evaluate.main(["--again", str(runs_path(made))]) == 0

    again = tmp_path / "r.again.csv"
    assert again.read_bytes() == made.read_bytes()
    assert capsys.readouterr().err.splitlines()[-1] == f"dkv eval: {again}: the record's CSV, byte for byte"


def test_a_run_that_was_stopped_and_gone_on_with_is_one(made, tmp_path):
    whole, lines = made.read_bytes(), made.read_bytes().splitlines(keepends=True)
    runs = json.loads(runs_path(made).read_text())
    del runs[0]["csv"]
    runs_path(made).write_text(json.dumps(runs))
    made.write_bytes(b"".join(lines[:5]))

    with pytest.raises(UserError, match=r"the run of .* was not finished: dkv eval tiny .* goes on with it$"):
        evaluate.main(["--again", str(runs_path(made))])
    evaluate.main([*FLAGS, "-o", str(made)])
    assert made.read_bytes() == whole

    assert evaluate.main(["--again", str(runs_path(made)), "-o", str(tmp_path / "b.csv")]) == 0
    assert (tmp_path / "b.csv").read_bytes() == whole


def test_two_runs_into_one_csv_are_made_again_in_their_order(made, tmp_path):
    evaluate.main([*FLAGS[:2], "h2o", *FLAGS[3:], "-o", str(made)])

    assert evaluate.main(["--again", str(runs_path(made)), "-o", str(tmp_path / "b.csv")]) == 0
    assert (tmp_path / "b.csv").read_bytes() == made.read_bytes()


def test_other_versions_are_named_before_it_runs(made, capsys, monkeypatch):
    versions = json.loads(runs_path(made).read_text())[0]["versions"]
    change(made, versions=versions | {"torch": "1.0", "commit": "abc"}, machine={"cpu": "a 386", "threads": 1})
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: pytest.fail(capsys.readouterr().err))

    with pytest.raises(pytest.fail.Exception) as ran:
        evaluate.main(["--again", str(runs_path(made))])

    said = str(ran.value)
    assert f"dkv eval: torch was 1.0 and is {versions['torch']}\n" in said
    assert re.search(r"^dkv eval: commit was abc and is ", said, re.M) and re.search(r"^dkv eval: cpu was a 386 and is ", said, re.M)
    assert "transformers was" not in said


def test_another_csv_fails_the_run(made, capsys):
    change(made, csv="0" * 64)

    assert evaluate.main(["--again", str(runs_path(made))]) == 1
    assert re.search(r"r\.again\.csv: not the record's CSV: its SHA-256 is [0-9a-f]{64}, and was 0{64}\n$", capsys.readouterr().err)


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"prompts": "x"}, "^the prompts are not the record's: they are cut from texts of the machine, and this one has others$"),
        ({"model": {"weights": "w"}}, r"^the record is of weights w; tiny has [0-9a-f]{16}$"),
        ({"profiles": {"p": "q"}}, "^profile p is not the record's: None, and it was q$"),
    ],
)
def test_what_cannot_give_the_same_csv_is_refused(made, facts, message):
    change(made, **facts)

    with pytest.raises(UserError, match=message):
        evaluate.main(["--again", str(runs_path(made))])


def test_texts_that_changed_are_seen(made, monkeypatch):
    other = [sources.Document("manual", f"page{letter}", "Another line of the manual.\n" * 900) for letter in "abcdefghijkl"]
    monkeypatch.setattr(sources, "documents", lambda: tuple(other))

    with pytest.raises(UserError, match="^the prompts are not the record's"):
        evaluate.main(["--again", str(runs_path(made))])


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "has no run$"),
        ("{", "is not a record: dkv eval writes one beside its CSV, NAME.runs.json$"),
        ('[{"command": "dkv eval tiny"}]', "has a run without 'arguments': an earlier dkv made it, and it cannot be made again$"),
    ],
)
def test_what_is_not_a_record_is_refused(tmp_path, text, message):
    (tmp_path / "r.runs.json").write_text(text)

    with pytest.raises(record.RecordError, match=message):
        evaluate.main(["--again", str(tmp_path / "r.runs.json")])


def test_a_csv_that_is_there_is_not_written_over(made):
    with pytest.raises(UserError, match=r"r\.csv: is there already: give another output$"):
        evaluate.main(["--again", str(runs_path(made)), "-o", str(made)])
