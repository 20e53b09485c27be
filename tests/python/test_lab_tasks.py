"""Tasks, metrics, greedy decoding under variants, tables and figures."""

from __future__ import annotations

import collections
import csv
import json
import random
import re

import pytest
import torch
import yaml
from conftest import ROOT, make_tiny_llama
from test_lab_hidden import text_of
from test_lab_probe import make_tiny_gemma
from test_lab_run import Bytes, calibrated, tiny  # noqa: F401

from dkv import command
from dkv.errors import UserError
from dkv_lab import decode, evaluate, hidden, longbench, metrics, needles, quick, results, ruler, scores
from dkv_lab.probe import Probe, Rankings, Variant
from dkv_lab.report import eval_figures, tables

MADE = ROOT / "tests" / "data" / "longbench" / "made.jsonl"


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    "task, prediction, answers, expected",
    [
        ("hotpotqa", "The Keeper, Marta.", ["keeper Marta", "x"], 1.0),
        ("hotpotqa", "marta quintela lives", ["Marta"], 0.5),
        ("hotpotqa", "", ["Marta"], 0.0),
        ("triviaqa", "\nParis\nQuestion: what else", ["Paris"], 1.0),
        ("passage_count", "There are 5, not 6", ["5"], 0.5),
        ("passage_retrieval_en", "Paragraph 12", ["Paragraph 12"], 1.0),
        ("passage_retrieval_zh", "段落3", ["段落12"], 0.0),
        ("passage_count", "none", ["5"], 0.0),
        ("lcc", "# a comment\n    return x\n", ["    return x"], 1.0),
        ("lcc", "", ["    return x"], 0.0),
        ("gov_report", "the cat sat on the mat", ["the cat sat on the mat"], 1.0),
        ("gov_report", "", ["the cat"], 0.0),
    ],
)
def test_a_metric_says_what_an_answer_is_worth(task, prediction, answers, expected):
    assert metrics.score(task, prediction, answers) == pytest.approx(expected, abs=1e-6)


def test_a_class_counts_as_one_of_those_named():
    classes = ["Person", "Person group", "Location"]

    assert metrics.score("trec", "Person or Location", ["Person"], classes) == 0.5
    assert metrics.score("trec", "Person group", ["Person group"], classes) == 1.0  # Its part is not held against it.
    assert metrics.score("trec", "Location\nPerson", ["Person"], classes) == 0.0


def test_every_task_of_longbench_has_a_prompt_a_length_and_a_metric():
    assert set(longbench.tasks()) == set(metrics.METRICS)
    assert len(longbench.tasks()) == 21
    for task in longbench.tasks().values():
        assert "{context}" in task["prompt"] and task["tokens"] >= 32


# ---------------------------------------------------------------- LongBench's files


class Spelling(Bytes):
    """Bytes with what LongBench needs of a tokenizer."""

    def decode(self, row, skip_special_tokens=False):
        return bytes(max(0, token - 2) % 256 for token in row).decode("utf-8", "replace")


def test_a_long_prompt_loses_its_middle():
    entry = json.loads(MADE.read_text().splitlines()[0])
    whole = longbench.prompt_tokens(Spelling(), "hotpotqa", entry, 100_000)

    cut = longbench.prompt_tokens(Spelling(), "hotpotqa", entry, 600)

    assert len(cut) == 600
    assert cut == whole[:300] + whole[-300:]


def test_rows_come_from_a_file_or_a_folder_and_know_their_task():
    from_file = longbench.rows(Spelling(), MADE, 5000, None)
    from_folder = longbench.rows(Spelling(), MADE.parent, 5000, 1)

    assert [row.template for row in from_file] == ["hotpotqa", "hotpotqa", "trec", "lcc"]
    assert [row.template for row in from_folder] == ["hotpotqa", "trec", "lcc"]
    assert [row.writes for row in from_folder] == [32, 64, 64]
    assert from_file[0].judge("Marta Quintela") == 1.0
    assert from_file[2].judge(" Person\nQuestion: Location") == 1.0


@pytest.mark.parametrize(
    "line, words",
    [
        ("[1]", "is not a JSON object"),
        ('{"input": "x"}', "has no context, answers"),
        ('{"input": "", "context": "", "answers": [], "dataset": "nosuch"}', "is of task nosuch: there are narrativeqa, "),
    ],
)
def test_what_is_no_row_of_longbench_is_refused_with_its_line(tmp_path, line, words):
    (tmp_path / "hotpotqa.jsonl").write_text("\n" + line + "\n")

    with pytest.raises(longbench.LongBenchError, match=rf"hotpotqa\.jsonl:2 {words}"):
        longbench.rows(Spelling(), tmp_path, 500, None)
    with pytest.raises(longbench.LongBenchError, match="is neither a LongBench file nor a folder"):
        longbench.rows(Spelling(), tmp_path / "absent", 500, None)


# ---------------------------------------------------------------- needles


def test_a_grid_has_a_needle_at_every_length_and_depth(tiny):
    rows = needles.grid_rows(Bytes(), "report", "report", [600, 900], [0.1, 0.9], 2, 1)

    assert len({row.key for row in rows}) == len(rows) == 8
    for row in rows:
        length, depth = int(row.key.split("-")[2]), float(row.key.split("-")[3])
        assert len(row.tokens) == length
        assert row.depth == depth
        assert (row.facts[0][0] < length / 2) == (depth < 0.5)


def test_two_questions_at_once_have_two_answers(tiny):
    rows = needles.needle_rows(Bytes(), "ruler", "report", 8, 1200, 3, "ruler", ruler.RULER)

    row = next(row for row in rows if row.template == "multi-query")
    text = text_of(row.tokens)
    first, second = text_of(row.answer).strip().split(" and ")
    assert len(row.facts) == 4
    asked = text.rsplit("magic numbers for ", 1)[1].removesuffix(" are:").split(" and ")
    for place, code in zip(asked, (first, second)):
        assert f"magic numbers for {place} is: {code}." in text


def test_a_list_of_words_fills_the_prompt_and_its_most_frequent_words_are_the_answer(tiny):
    rows = needles.needle_rows(Bytes(), "ruler", "report", 12, 1600, 3, "ruler", ruler.RULER)

    for template, appearances in (("common words", [6] * 10), ("frequent words", None)):
        own = [row for row in rows if row.template == template]
        assert len({tuple(row.tokens) for row in own}) == len(own) == 2
        for row in own:
            listed, _, question = text_of(row.tokens).partition("\n\nQuestion: ")
            answer = text_of(row.answer).strip().split(", ")
            counts = collections.Counter(re.findall(r"\b[a-z]+\b", listed.split("\n", 1)[1]))
            assert 1500 < len(row.tokens) <= 1600
            assert row.facts == () and row.depth is None
            assert "words" in question
            assert sorted(answer) == sorted(word for word, _ in counts.most_common(len(answer)))
            assert appearances is None or [counts[word] for word in answer] == appearances
            assert counts[answer[-1]] > max(count for word, count in counts.items() if word not in answer)


def test_a_list_longer_than_the_prompt_is_refused(tiny):
    with pytest.raises(ValueError, match="^300 tokens are too few for common words$"):
        hidden.ruler_rows(Bytes(), "report", 1, 300, 3, {"common words": ruler.RULER["common words"]})


def test_a_fact_that_is_a_whole_list_is_asked_alone():
    rng = random.Random(3)
    facts = [ruler.RULER[name](rng) for name in ("multi-key", "common words")]
    with pytest.raises(ValueError, match="^mixed: a fact that is a whole listing is asked alone, and there are 2$"):
        needles.context_of(Bytes(), facts, None, rng, 900, "mixed")


# ---------------------------------------------------------------- greedy decoding


@pytest.mark.parametrize("make", [make_tiny_llama, make_tiny_gemma])
def test_what_is_written_is_what_forcing_it_finds_most_likely(make):
    probe = Probe(make(), 8)
    prompt = probe.prefill(torch.randint(2, 512, (60,), generator=torch.Generator().manual_seed(4)))
    rankings = scores.prompt_rankings(prompt, scores.prompt_scores(prompt))
    shape = (len(prompt.compressed), prompt.kv_heads)
    ragged = torch.randint(0, prompt.prefix + 1, shape, generator=torch.Generator().manual_seed(1))
    ragged[0, 0] = prompt.prefix
    variants = [
        Variant("whole", torch.full(shape, prompt.prefix)),
        Variant("ragged", ragged),
        Variant("few", torch.full(shape, 3), "positions"),
        Variant("none", torch.zeros(shape, dtype=torch.int64)),
    ]

    written = decode.greedy(probe, prompt, variants, rankings, 14, set())

    assert written[0] == probe.greedy(prompt, 14).tolist()
    for variant, tokens in zip(variants, written):
        assert probe.force(prompt, torch.tensor(tokens), [variant], rankings).hit.all(), variant.name


def test_writing_ends_where_the_model_ends():
    probe = Probe(make_tiny_llama(), 8)
    prompt = probe.prefill(torch.arange(2, 52))
    whole = Variant("whole", torch.full((4, 2), prompt.prefix))
    free = decode.greedy(probe, prompt, [whole], scores.prompt_rankings(prompt, scores.prompt_scores(prompt)), 9, set())[0]

    ended = decode.greedy(probe, prompt, [whole], Rankings(), 9, {free[4]})[0]

    assert ended == free[: free.index(free[4])]


# ---------------------------------------------------------------- the command line


@pytest.fixture
def evaluated(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Bytes, "decode", Spelling.decode, raising=False)
    flags = ["tiny", "--inline", "--policies", "snapkv,dynamickv", "--capacity", "64,128", "--tokens", "400", "--needles", "2"]
    flags += ["--texts", "1", "--ruler", "1", "--grid", "400,600:0.2,0.8", "--longbench", str(MADE), "--rows", "1", "--longest", "500"]
    flags += ["--perplexity", "-o", str(tmp_path / "r.csv")]
    flags[flags.index("--ruler") + 1] = "0"  # RULER's four statements are longer than 400 bytes.
    assert evaluate.main(flags) == 0
    return tmp_path / "r.csv"


def test_answers_become_the_folders_that_kvpress_makes(evaluated, capsys, tmp_path):
    capsys.readouterr()
    arguments = [str(evaluated), "--format", "kvpress", "-o", str(tmp_path / "k")]
    assert tables.main(arguments) == 0

    lines = [line for line in results.read([evaluated]) if line["task"] == "longbench"]
    groups = {(line["template"], line["policy"], line["capacity"]) for line in lines}
    made = [tmp_path / "k" / name for name in capsys.readouterr().out.split()]
    assert len(made) == len(set(made)) == len(groups)
    assert tmp_path / "k" / "longbench__hotpotqa__tiny__no_press__0.00__fraction0.500__max_context500__query_aware" in made
    cut = next(path for path in made if path.name.startswith("longbench__hotpotqa__tiny__dkv_snapkv__"))
    config, (row,) = yaml.safe_load((cut / "config.yaml").read_text()), csv.DictReader((cut / "predictions.csv").open())
    line = row_of(cut, lines)
    assert cut.name.split("__")[4] == f"{config['compression_ratio']:.2f}"
    assert (config["dataset"], config["data_dir"], config["press_name"], config["query_aware"]) == ("longbench", "hotpotqa", "dkv_snapkv", True)
    assert (row["question"], row["task"]) == ("Who is the keeper of the archive in Lisbon?", "hotpotqa")
    assert float(row["compression_ratio"]) == pytest.approx(1 - int(line["capacity"]) / int(line["tokens"]), abs=1e-4)
    assert json.loads((cut / "metrics.json").read_text()) == round(100 * float(line["score"]), 2)

    tables.main(arguments)  # What is there is not written over: kvpress numbers them.
    assert (cut / "1" / "metrics.json").read_bytes() == (cut / "metrics.json").read_bytes()


def row_of(folder, lines) -> dict:
    """The line of the results that a folder of one hotpotqa prompt is made of."""
    ratio = float(folder.name.split("__")[4])
    mine = [each for each in lines if (each["template"], each["policy"]) == ("hotpotqa", "snapkv")]
    return min(mine, key=lambda each: abs(1 - int(each["capacity"]) / int(each["tokens"]) - ratio))


def test_results_without_a_written_answer_are_not_kvpresss(tmp_path):
    results.Results(tmp_path / "r.csv")

    with pytest.raises(UserError, match="^no answer that was written: kvpress's format is of LongBench's tasks"):
        tables.main([str(tmp_path / "r.csv"), "--format", "kvpress"])


def test_every_task_ends_in_one_table(evaluated, capsys, tmp_path):
    lines = results.read([evaluated])
    assert {line["task"] for line in lines} == {"needle", "text", "grid", "longbench"}
    assert all(0 <= float(line["score"]) <= 1 for line in lines if line["task"] == "longbench")
    short = [line for line in lines if line["template"] == "trec" and line["capacity"] == "128"]
    assert {line["policy"] for line in short} == {"snapkv", "dynamickv"}
    row_bytes = 4 * 2 * 16
    assert all(int(line["bytes"]) == int(line["kept"]) * row_bytes for line in lines)
    budgets = results.read_budgets([evaluated])
    assert len(budgets) == sum(line["policy"] != "fullkv" for line in lines)

    capsys.readouterr()
    made = tmp_path / "tables"
    assert tables.main([str(evaluated), "--csv", f"{made}.csv", "--json", f"{made}.json"]) == 0

    out = capsys.readouterr().out
    assert out.startswith("tiny, weights ") and "seed 1" in out
    for title in ("### NLL of the continuation, question shown, 400 tokens", "### LongBench's score, question shown, hotpotqa", "| 64 (0.06 MiB) |"):
        assert title in out
    table = out.split("### KL to the full cache")[1].split("\n")
    assert table[4].startswith("| fullkv |")
    entries = json.loads((tmp_path / "tables.json").read_text())["entries"]
    with open(f"{made}.csv") as file:
        notes = [line for line in file if line.startswith("#")]
        assert any("dkv eval tiny --inline" in note for note in notes)
    with open(f"{made}.csv") as file:
        assert len(list(csv.DictReader(line for line in file if not line.startswith("#")))) == len(entries)


@pytest.mark.long
def test_figures_are_drawn_of_everything(evaluated, tmp_path, tiny):
    made = calibrated(tmp_path)

    eval_figures.main([str(evaluated), "--profile", str(made), "--format", "svg", "-o", str(tmp_path / "f")])

    names = {path.name for path in (tmp_path / "f").glob("*.svg")}
    assert {"grid-64.svg", "grid-128.svg", "budgets-64.svg", "text-kl-400.svg", "profile-tiny.svg"} <= names


def test_what_a_user_can_mend_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DKV_COMMAND", "dkv eval")

    assert command.run(lambda: tables.main([str(tmp_path / "absent.csv")])) == 1
    assert capsys.readouterr().err == f"dkv eval: {tmp_path}/absent.csv: No such file or directory\n"
    assert command.run(lambda: evaluate.main(["/nowhere"])) == 1
    assert capsys.readouterr().err == "dkv eval: /nowhere is not a folder with a model\n"

    def interrupted():
        raise KeyboardInterrupt

    assert command.run(interrupted, "stopped; the same command goes on from here") == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def line_of(policy, kept, **columns):
    line = dict.fromkeys(results.COLUMNS, "") | {"key": "k", "task": "text", "tokens": "512", "through": "sidecar", "question": "shown"}
    return line | {"policy": policy, "capacity": "0" if policy == "fullkv" else "128", "kept": str(kept)} | columns


def test_eval_quick_finds_lost_rows_a_beaten_full_cache_and_a_useless_profile():
    good = [line_of("fullkv", 512 * 8, kl="0.0"), line_of("snapkv", 1024, kl="0.4"), line_of("profile", 1024, kl="0.2")]

    assert quick.problems(good, 8) == []
    bad = [good[0] | {"kl": "0.3"}, good[1] | {"kept": "1000"}, good[2] | {"kl": "0.5", "through": "inline"}]
    found = quick.problems(bad, 8)
    assert found[0] == "snapkv at 128 keeps 1000 rows of k, not 1024"
    assert found[1] == "profile was not chosen by the sidecar"
    assert "profile's KL 0.5000 is no better than SnapKV's 0.4000" in found[-1]
    assert quick.problems([good[0] | {"kl": "0.5"}, *good[1:]], 8) != []
