"""Questions that come after the compression."""

import csv

import pytest
import torch
from conftest import make_tiny_llama
from test_lab_run import Bytes, calibrated, tiny  # noqa: F401

from dkv_lab import evaluate, hidden, needles, results, ruler
from dkv_lab.probe import Probe, Rankings, Variant
from dkv_lab.report import tables


def text_of(tokens) -> str:
    return bytes(token - 2 for token in tokens).decode()


def test_what_is_compressed_has_the_facts_and_not_the_questions(tiny):
    rows = hidden.needle_rows(Bytes(), "report", "report", 7, 900, 3)

    assert len(rows) == 3  # Three questions each.
    assert {len(row.tokens) for row in rows} == {900}
    orders = []
    for row in rows:
        context = text_of(row.tokens)
        assert "Question" not in context
        assert [text_of(row.tokens[b:e]).endswith(".\n") or '",' in text_of(row.tokens[b:e]) for b, e in row.facts] == [True] * 3
        for ask in row.asks:
            assert text_of(ask.question).startswith("\n\nQuestion: ")
            assert text_of(ask.answer).strip() in context
        orders.append(sorted(ask.depth for ask in row.asks) == [ask.depth for ask in row.asks])
    assert not all(orders)  # Not asked in the order in which they stand.
    assert len({key for row in rows for key in row.keys}) == 9


def test_rulers_tasks_ask_one_question_for_each_context(tiny):
    rows = hidden.ruler_rows(Bytes(), "report", 8, 900, 3, ruler.RULER)

    assert {row.template for row in rows} == set(ruler.RULER)
    assert all(len(row.asks) == 1 and "Question" not in text_of(row.tokens) for row in rows)


def test_texts_of_the_report_are_asked_other_questions_than_those_of_the_tuning_part():
    assert not set(hidden.OF_TEXTS["report"]) & set(hidden.OF_TEXTS["tuning"])


def test_the_full_cache_answers_as_the_model_does(tiny):
    model, row = make_tiny_llama(), hidden.needle_rows(Bytes(), "report", "report", 3, 300, 3)[0]
    tail = [token for ask in row.asks for token in (*ask.question, *ask.answer)]
    judged = torch.tensor([5, 9, len(tail) - 1])
    with torch.no_grad():
        logits = model(torch.tensor([row.tokens + tail])).logits[0].log_softmax(-1)
    expected = torch.stack([logits[299 + at, tail[at]] for at in judged.tolist()])
    probe = Probe(model, 32)
    prompt = probe.prefill(torch.tensor(row.tokens))
    whole = Variant("whole", torch.full((4, 2), prompt.prefix))

    found = probe.force(prompt, torch.tensor(tail), [whole], Rankings(), True, judged)
    first = probe.force(prompt, torch.tensor(tail), [whole], Rankings(), judged=torch.tensor([0]))

    torch.testing.assert_close(found.logprob[0], expected, rtol=1e-4, atol=1e-4)
    assert found.kl.abs().max() < 1e-5
    torch.testing.assert_close(first.logprob[0, 0], logits[299, tail[0]], rtol=1e-4, atol=1e-4)
    assert probe.greedy(prompt, 3, tuple(tail[:6])).tolist() == greedy(make_tiny_llama(), row.tokens + tail[:6], 3)


@torch.no_grad()
def greedy(model, tokens, count):
    for _ in range(count):
        tokens = tokens + [int(model(torch.tensor([tokens])).logits[0, -1].argmax())]
    return tokens[-count:]


def run(tmp_path, *more):
    output = tmp_path / "r.csv"
    flags = ["tiny", "--profile", str(calibrated(tmp_path)), "--policies", "snapkv,profile,replay", "--capacity", "48"]
    flags += ["--tokens", "300", "--needles", "3", "--texts", "1", "--inline", "-o", str(output)]
    assert evaluate.main([*flags, *more]) == 0
    with output.open() as file:
        return list(csv.DictReader(file))


def test_an_evaluation_says_for_each_row_when_the_question_was_known(tiny, tmp_path, capsys):
    lines = run(tmp_path)

    counts = {q: sum(line["question"] == q for line in lines) for q in tables.QUESTIONS}
    assert counts == {"shown": 4 * 4, "hidden": 4 * 4}
    assert {int(line["kept"]) for line in lines if line["capacity"] == "48"} == {48 * 8}
    full = [float(line["kl"]) for line in lines if line["policy"] == "fullkv" and line["kl"]]
    assert len(full) == 2 and max(full) < 1e-4
    out = capsys.readouterr().out
    assert "KL to the full cache, question shown, 300 tokens" in out
    assert "KL to the full cache, question hidden, 300 tokens" in out
    assert len(run(tmp_path)) == len(lines)  # All there: nothing is run or written again.


@pytest.mark.parametrize("question", tables.QUESTIONS)
def test_one_protocol_alone(tiny, tmp_path, question):
    assert {line["question"] for line in run(tmp_path, "--question", question)} == {question}


def test_results_of_an_earlier_build_are_of_shown_questions(tiny, tmp_path):
    old = tmp_path / "r.csv"
    columns = results.COLUMNS[:-1]
    old.write_text(",".join(columns) + "\n" + ",".join(["k", "text", "manual", "300", "snapkv", "48", *[""] * (len(columns) - 6)]) + "\n")

    assert [line["question"] for line in results.read([old])] == ["shown"]
    with pytest.raises(results.ResultsError, match="has no column for hidden questions: choose another output, or --question shown"):
        run(tmp_path, "--question", "hidden")


def test_rows_of_the_needles_are_the_same_as_before_questions_could_be_hidden(tiny):
    row = needles.needle_rows(Bytes(), "report", "report", 1, 600, 3)[0]

    assert row.asks == () and row.keys == [row.key]
    assert text_of(row.tokens).count("\n\nQuestion: ") == 1
