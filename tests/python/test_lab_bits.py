"""Policies whose rows have fewer bits, at equal bytes."""

import csv

import pytest
import torch
from conftest import make_tiny_llama
from test_lab_run import Bytes, tiny  # noqa: F401

from dkv.hf import models
from dkv_lab import bits, decode, evaluate, policies
from dkv_lab.probe import Probe, Rankings, Variant


@pytest.mark.parametrize("count, share", [(8, 1 / 254 + 2**-11), (4, 1 / 8)])  # Of 4 bits one end is half a step off.
def test_a_row_comes_back_within_a_step_of_its_block(count, share):
    rows = torch.randn(3, 7, 96, generator=torch.Generator().manual_seed(5)) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    turned = bits._turned(rows)  # Runs of 32: each is a block.

    error = (bits._turned(bits.read_back(rows, count)) - turned).unflatten(-1, (-1, 32)).abs()

    largest = turned.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
    assert bool((error <= largest * share).all())
    assert bits.read_back(torch.zeros(2, 64), count).abs().max() == 0


def test_one_large_dim_does_not_cost_the_others_their_bits():
    rows = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    rows[:, 9] += 40.0

    error = (bits.read_back(rows, 4) - rows).square().mean().sqrt()

    blocks = bits._blocks(rows.unflatten(-1, (-1, 32)), 4).flatten(-2)  # Not turned.
    assert error < 0.6 * (blocks - rows).square().mean().sqrt()


def test_bytes_count_the_scales():
    assert [bits.bytes_of(name, 128) for name in bits.NAMES] == [256, 136, 72, 72]


@pytest.mark.parametrize("capacity, rows, share", [(20, 65, 0.0821), (50, 149, 0.1872), (70, 199, 0.2491), (80, 200, 0.4222), (120, 200, 1.0)])
def test_mixed_rows_are_refined_the_more_the_more_are_kept(capacity, rows, share):
    assert bits.in_the_bytes_of(capacity, "mixed", 200, 128) == (rows, pytest.approx(share, abs=1e-4))
    most = capacity * bits.bytes_of("16", 128)
    assert share == 1 or 0.98 * most < rows * (1 + share) * 72 <= most


@pytest.fixture
def wide(tiny, monkeypatch):  # noqa: F811
    monkeypatch.setattr(models, "load", lambda folder: (make_tiny_llama(head_dim=32), Bytes(), "tiny"))


def run(tmp_path, names):
    output = tmp_path / "r.csv"
    flags = ["tiny", "--policies", names, "--capacity", "48", "--tokens", "300", "--needles", "3", "--texts", "1", "--inline"]
    assert evaluate.main([*flags, "-o", str(output)]) == 0
    with output.open() as file:
        return list(csv.DictReader(file))


def test_fewer_bits_keep_more_rows_in_the_same_bytes(wide, tmp_path):
    lines = run(tmp_path, "snapkv/bits=16,snapkv/bits=8,snapkv/bits=4,snapkv/bits=mixed")

    kept = {line["policy"]: int(line["kept"]) // 8 for line in lines}
    assert kept == {"fullkv": 300, "snapkv/bits=16": 48, "snapkv/bits=8": 90, "snapkv/bits=4": 170, "snapkv/bits=mixed": 151}
    most = 48 * 8 * 128
    assert {0.99 * most < int(line["bytes"]) <= most for line in lines if line["policy"] != "fullkv"} == {True}


def test_a_policy_that_holds_every_row_loses_what_its_bits_lose_alone(wide):
    model = make_tiny_llama(head_dim=32)
    probe = Probe(model, 32)
    prompt = probe.prefill(torch.randint(0, 250, (100,), generator=torch.Generator().manual_seed(2)))
    facts = policies.Facts(prompt, {})

    made = policies.variant("snapkv/bits=4", facts, 99)

    assert int(made.budgets.min()) == prompt.prefix
    answer, whole = torch.arange(2, 8), Variant("whole", made.budgets)
    found = probe.force(prompt, answer, [whole, made], facts.rankings, True)
    assert found.kl[0].max() < 1e-6 < found.kl[1, 1:].min()
    exact = Variant("the same", made.budgets, layers=facts.in_bits(16))
    assert probe.force(prompt, answer, [exact], Rankings(), True).kl.max() < found.kl[1].max() / 10
    assert decode.greedy(probe, prompt, [whole, made], facts.rankings, 4, set())[0] == probe.greedy(prompt, 4).tolist()


@pytest.mark.parametrize(
    "names, message",
    [
        ("snapkv/bits=5", "snapkv/bits=5: bits are 16, 8, 4, mixed"),
        ("snapkv/bits=8", r"heads of 16 dims are not whole blocks of 32: leave bits out"),
    ],
)
def test_bits_that_rows_cannot_have_are_refused(tiny, tmp_path, names, message, capsys):  # noqa: F811
    with pytest.raises((policies.UnknownPolicy, SystemExit)) as refused:
        run(tmp_path, names)

    assert message in str(refused.value) + capsys.readouterr().err


def test_mixed_bits_need_the_order_of_the_rows(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(["tiny", "--policies", "snapkv/bits=mixed"])

    assert "snapkv/bits=mixed: a sidecar does not say in which order it would drop rows: give --inline" in capsys.readouterr().err


def test_a_certificate_is_of_rows_as_they_are():
    with pytest.raises(policies.UnknownPolicy, match="leave bits out"):
        policies.as_flags("snapkv/bits=8", 32, None)
