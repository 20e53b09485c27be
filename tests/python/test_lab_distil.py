"""Training a surrogate on what its choice loses: gates, the gated forward, and that a loss falls."""

import math

import pytest
import torch
from conftest import make_tiny_llama
from test_lab_probe import make_tiny_gemma
from test_lab_run import Bytes, tiny  # noqa: F401

from dkv.hf.surrogate_file import feature_count, rope_of_model
from dkv_lab import distil, hidden, needles, scores, surrogate
from dkv_lab.needles import Ask, Row
from dkv_lab.probe import Probe, Rankings, Variant


def a_row(tokens: int = 90) -> Row:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(3, 250, (tokens,), generator=generator).tolist()
    return Row("r", "needle", "t", ids, [], continuation=(5, 6, 7, 8), asks=(Ask((40, 41), (50, 51, 52), "t"), Ask((60,), (70,), "t")))


def taught_by(model) -> tuple[Probe, list[distil.Lesson]]:
    probe = Probe(model, 20)
    return probe, distil.lessons(probe, Bytes(), a_row(), "What?")


def random_weights(prompt, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    head_dim = prompt.layers[0].keys.shape[-1]
    count = feature_count(prompt.kv_heads, head_dim)
    return [0.3 * torch.randn(prompt.kv_heads, count, generator=generator) for _ in prompt.compressed]


def student_of(probe: Probe, prompt, weights) -> distil.Student:
    return distil.Student(weights, rope_of_model(probe.model), [prompt], torch.ones(len(weights), prompt.kv_heads), 1.0, 0.0, 3)


def test_a_context_gives_lessons_of_its_facts_a_question_and_what_comes_next():
    _, (facts, question, more, *_) = taught_by(make_tiny_llama())

    assert facts.tail.tolist() == [40, 41, 50, 51, 52, 60, 70] and facts.judged.tolist() == [2, 3, 4, 6]
    assert question.tail.numel() - distil.FORCED == len(Bytes()("\n\nQuestion: What?\nAnswer:")["input_ids"])
    assert question.judged.tolist() == list(range(question.tail.numel() - distil.FORCED, question.tail.numel()))
    assert more.tail.tolist() == [5, 6, 7, 8] and more.judged.tolist() == [1, 2, 3]
    assert facts.prompt.window == distil.WINDOW and facts.full.exp().sum(-1).sum() == pytest.approx(4, abs=0.01)


def test_a_question_that_has_more_than_a_word_for_an_answer_is_also_shown_in_the_prompt():
    _, (facts, *_, shown) = taught_by(make_tiny_llama())

    assert [shown.shown, facts.shown] == [True, False]
    assert shown.prompt.tokens == 90 + 2 and shown.prompt.window == distil.WINDOW
    assert shown.tail.tolist() == [50, 51, 52] and shown.judged.tolist() == [1, 2]


def test_what_is_shown_trains_autos_choice_alone(monkeypatch):
    probe, taught = taught_by(make_tiny_llama())
    student = student_of(probe, taught[0].prompt, random_weights(taught[0].prompt))
    seen, lost = [], distil.lost
    monkeypatch.setattr(distil, "lost", lambda *given: seen.append((given[2].shown, given[4])) or lost(*given))

    distil.train(probe, student, taught, 40, 0.03, 0.0, (24,), 0)

    assert {joined for shown, joined in seen if shown} == {True}
    assert {joined for shown, joined in seen if not shown} == {True, False}


@pytest.mark.parametrize("make", [make_tiny_llama, make_tiny_gemma])
def test_hard_gates_lose_what_the_evaluation_says_and_open_ones_nothing(make):
    probe, taught = taught_by(make())
    lesson, prompt = taught[0], taught[0].prompt
    generator = torch.Generator().manual_seed(2)
    orders = [scores.rank(torch.rand(prompt.kv_heads, prompt.prefix, generator=generator)) for _ in prompt.compressed]
    budgets = torch.randint(1, 12, (len(orders), prompt.kv_heads), generator=generator)
    closed = []
    for order, row in zip(orders, budgets):
        gates = torch.full((prompt.kv_heads, prompt.tokens), -math.inf)
        gates[:, prompt.prefix :] = 0
        for head, budget in enumerate(row.tolist()):
            gates[head, order[head, :budget]] = 0
        closed.append(gates)

    found = probe.force(prompt, lesson.tail, [Variant("v", budgets, "o")], Rankings({"o": orders}), True, lesson.judged)

    assert found.kl.mean().item() > 1e-3
    assert distil.gated_kl(probe, lesson, closed).item() == pytest.approx(found.kl.mean().item(), rel=2e-2)
    opened = [torch.zeros_like(gates) for gates in closed]
    assert distil.gated_kl(probe, lesson, opened).item() == pytest.approx(0, abs=1e-4)


def test_gates_stand_between_the_last_row_kept_and_the_first_that_is_not():
    found = [torch.tensor([[3.0, 1.0, 2.0, -1.0]]), torch.tensor([[0.0, 5.0, -5.0, -6.0]])]

    gates = distil.open_gates(found, torch.tensor([[2], [1]]), 1, 0.01)

    assert [(row > -0.1).int().tolist() for row in torch.cat(gates)] == [[1, 0, 1, 0, 1], [0, 1, 0, 0, 1]]


def test_a_head_gains_rows_only_from_others():
    found = [torch.randn(2, 30, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in range(3)]

    gates = distil.open_gates(found, torch.full((3, 2), 8), 4, 0.5)
    sum(gate.exp().sum() for gate in gates).backward()

    assert sum(layer.grad.sum() for layer in found).item() == pytest.approx(0, abs=1e-4)


def test_training_lowers_what_is_lost_and_weights_mean_the_same_to_a_profile():
    probe, taught = taught_by(make_tiny_llama())
    prompt = taught[0].prompt
    student = student_of(probe, prompt, random_weights(prompt))
    assert all(torch.equal(*pair) for pair in zip(student.weights(), student.before))

    def lost() -> float:
        with torch.no_grad():
            return sum(distil.lost(probe, student, lesson, 24, False, 0.3).item() for lesson in taught)

    before = lost()
    distil.train(probe, student, taught, 40, 0.03, 0.0, (24,), 0)

    assert lost() < 0.8 * before
    by_profile = [surrogate.predicted(prompt.layers[i], w, student.rope)[:, : prompt.prefix] for i, w in enumerate(student.weights())]
    for ours, theirs in zip(student.scores(prompt, False), by_profile):
        torch.testing.assert_close(ours, theirs)


def test_a_level_changes_what_auto_sees_of_the_window_and_nothing_of_reuse():
    probe, taught = taught_by(make_tiny_llama())
    facts = taught[0]
    student = student_of(probe, facts.prompt, random_weights(facts.prompt))

    def kl(joined: bool) -> float:
        with torch.no_grad():
            return distil.lost(probe, student, facts, 24, joined, 0.02).item()

    reuse, auto = kl(False), kl(True)
    student.level = 20.0

    assert kl(False) == pytest.approx(reuse, rel=1e-4)
    assert abs(kl(True) - auto) > 1e-3 * auto


def test_the_level_is_that_of_the_least_loss_and_none_where_nothing_is_held_out(monkeypatch):
    probe, taught = taught_by(make_tiny_llama())
    student = student_of(probe, taught[0].prompt, random_weights(taught[0].prompt))
    # Hidden lessons want 1, the one shown, which counts as much as all of them, 2.
    monkeypatch.setattr(distil, "lost", lambda probe, student, lesson, *_: torch.tensor(abs(student.level - (2.0 if lesson.shown else 1.0)) ** 3))

    assert distil.best_level(probe, student, taught, (24,)) == 1.5
    assert distil.best_level(probe, student, [], (24,)) == 0.0


def test_facts_and_text_are_both_among_what_is_not_trained_on(tiny):
    found = distil.contexts(Bytes(), 12, 400, 0)

    assert {bool(row.asks) for row, _ in found[distil._HELD - 1 :: distil._HELD]} == {True, False}


def test_contexts_are_of_the_calibration_part_and_facts_and_text_take_turns(tiny):
    found = distil.contexts(Bytes(), 4, 400, 0)

    assert [bool(row.asks) for row, _ in found] == [True, False, True, False]
    assert [len(row.continuation) for row, _ in found] == [0, 32, 0, 32]
    assert all(len(row.tokens) == 400 for row, _ in found)
    own = {template for row, _ in found for template in (ask.template for ask in row.asks)}
    assert own <= set(needles.FAMILIES["calibration"])
    asked = {question for _, question in found}
    assert not asked & {*hidden.OF_TEXTS["tuning"], *hidden.OF_TEXTS["report"]}
