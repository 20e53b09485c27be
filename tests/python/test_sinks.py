"""Learned attention sinks through a real dkvd, and in dkv's own files."""

import json
import subprocess

import pytest
import torch
from processes import program

import dkv
from dkv.hf.files import SavedFile
from dkv.hf.write import About, LayerRows, write

LAYERS, Q_HEADS, KV_HEADS, TOKENS, DIM, WINDOW, CAPACITY = 2, 4, 2, 120, 16, 8, 30
SINKS = torch.tensor([[-5.0, 30.0, 2.0, 6.0], [0.0, 4.0, -1.0, 3.0]])


@pytest.fixture
def rows():
    torch.manual_seed(5)
    return [
        LayerRows(
            torch.randn(KV_HEADS, TOKENS, DIM), torch.randn(KV_HEADS, TOKENS, DIM), torch.randn(Q_HEADS, WINDOW, DIM)
        )
        for _ in range(LAYERS)
    ]


@pytest.fixture
def engine(sidecar):
    geometry = dkv.Geometry(LAYERS, Q_HEADS, KV_HEADS, DIM, "f32")
    with dkv.Engine(geometry, endpoint=sidecar.start().endpoint) as engine:
        engine.wait_attached(10)
        yield engine


def lent(tensor: torch.Tensor) -> dkv.Rows:
    heads, tokens, dim = tensor.shape
    arena = dkv.Arena(tensor.numel() * 4)
    torch.frombuffer(arena.buffer, dtype=torch.float32)[: tensor.numel()].copy_(tensor.flatten())
    return dkv.Rows(arena, 0, "f32", heads, tokens, dim, tokens * dim, dim)


def snapkv() -> dkv.Policy:
    return dkv.Policy(name="snapkv", capacity=CAPACITY, window=WINDOW, kernel=1, reduce="mean")


def kept_by_dkvd(engine, rows, sinks) -> tuple[list[list[list[int]]], list[float]]:
    with engine.open_session(TOKENS, snapkv()) as session:
        for index, layer in enumerate(rows):
            given = None if sinks is None else sinks[index]
            session.layer_ready(
                index, lent(layer.keys), lent(layer.values), lent(layer.queries), sink_logits=given
            )
        session.finish(20)
        views = [session.layer(index) for index in range(LAYERS)]
        return [view.positions for view in views], [view.mass_kept for view in views]


def attention(layer: LayerRows, sinks) -> torch.Tensor:
    """[KV heads, tokens] means over the window and the group, as transformers' gpt-oss has its softmax."""
    keys = layer.keys.double().repeat_interleave(Q_HEADS // KV_HEADS, 0)
    logits = layer.queries.double() @ keys.transpose(1, 2) / DIM**0.5
    logits += torch.full((WINDOW, TOKENS), -torch.inf).triu(TOKENS - WINDOW + 1)
    sinks = torch.full((Q_HEADS,), -torch.inf) if sinks is None else sinks
    column = sinks.double()[:, None, None].expand(-1, WINDOW, 1)
    shares = torch.cat([logits, column], -1).softmax(-1)[..., :-1]
    return shares.mean(1).view(KV_HEADS, -1, TOKENS).mean(1)


@pytest.mark.e2e
@pytest.mark.parametrize("form", ["none", "tensor", "list", "parameter"])
def test_a_sidecar_ranks_and_weighs_with_the_sinks(engine, rows, form):
    sinks = {
        "none": None,
        "tensor": SINKS,
        "list": SINKS.tolist(),
        "parameter": [torch.nn.Parameter(row.bfloat16()) for row in SINKS],
    }[form]

    positions, mass = kept_by_dkvd(engine, rows, sinks)

    for index, layer in enumerate(rows):
        shares = attention(layer, None if form == "none" else SINKS[index])
        prefix = shares[:, : TOKENS - WINDOW]
        best = prefix.topk(CAPACITY - WINDOW, -1).indices.sort(-1).values
        wanted = torch.cat([best, torch.arange(TOKENS - WINDOW, TOKENS).expand(KV_HEADS, -1)], -1)
        assert positions[index] == wanted.tolist()
        dropped = prefix.sum() - prefix.gather(-1, best).sum()
        assert mass[index] == pytest.approx(1 - dropped.item() / KV_HEADS, abs=1e-5)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "sinks, wrong",
    [
        ([1.0, 2.0], "layer 0: sink_logits has 2 values, not 4: one per query head"),
        ([1.0, 2.0, float("nan"), 4.0], "layer 0: sink_logits[2] is nan, not a finite number"),
        ([1.0, 2.0, 3.0, -torch.inf], "layer 0: sink_logits[3] is -inf, not a finite number"),
        (torch.zeros(4, 2), "layer 0: sink_logits is not a sequence of numbers, one per query head"),
        (3.0, "layer 0: sink_logits is not a sequence of numbers, one per query head"),
    ],
)
def test_sinks_that_do_not_fit_are_refused_and_the_layer_can_be_given_again(engine, rows, sinks, wrong):
    with engine.open_session(TOKENS, snapkv()) as session:
        parts = [lent(part) for part in (rows[0].keys, rows[0].values, rows[0].queries)]
        with pytest.raises(dkv.DkvError) as refused:
            session.layer_ready(0, *parts, sink_logits=sinks)
        assert str(refused.value) == wrong
        assert refused.value.name == "invalid_argument"
        session.layer_ready(0, *parts, sink_logits=SINKS[0])


@pytest.mark.e2e
def test_a_file_keeps_its_sinks_and_is_cut_as_a_sidecar_cuts_it(engine, rows, tmp_path):
    for layer, sinks in zip(rows, SINKS):
        layer.sink_logits = sinks
    path, cut, again = tmp_path / "whole", tmp_path / "cut", tmp_path / "again"
    write(path, About("m", TOKENS), rows)

    options = f"--policy snapkv --capacity {CAPACITY} --window {WINDOW} --kernel 1 --reduce mean".split()
    subprocess.run([program("dkv"), "compact", path, "-o", cut, *options], check=True, capture_output=True)
    subprocess.run([program("dkv"), "convert", cut, "-o", again], check=True, capture_output=True)

    positions, _ = kept_by_dkvd(engine, rows, SINKS)
    for file in (cut, again):
        opened = SavedFile.open(file)
        for index in range(LAYERS):
            assert opened.layer(index).positions == positions[index]
            torch.testing.assert_close(opened.layer(index).sink_logits, SINKS[index])
    said = subprocess.run([program("dkv"), "inspect", cut], check=True, capture_output=True, text=True).stdout
    assert "learned, a logit for each of 4 query heads in every layer" in said
    told = subprocess.run([program("dkv"), "inspect", cut, "--json"], check=True, capture_output=True, text=True).stdout
    assert json.loads(told)["files"][0]["sink_layers"] == LAYERS


def test_sinks_of_some_layers_only_are_written_for_those(rows, tmp_path):
    rows[1].sink_logits = SINKS[1].bfloat16()
    for layer in rows:
        layer.queries = None
    write(tmp_path / "file", About("m", TOKENS), rows)
    opened = SavedFile.open(tmp_path / "file")
    assert opened.layer(0).sink_logits is None
    assert opened.layer(1).sink_logits.tolist() == SINKS[1].tolist()

    rows[1].sink_logits = torch.tensor([0.0, 0.0, torch.inf, 0.0])
    with pytest.raises(dkv.DkvError, match=r"layers\[1\].sink_logits\[2\] is inf, not a finite number"):
        write(tmp_path / "file", About("m", TOKENS), rows)
    rows[0].sink_logits, rows[1].sink_logits = SINKS[0], SINKS[1][:2]
    with pytest.raises(dkv.DkvError, match=r"layers.1.sink_logits is \[2\], not \[4\]: one per query head"):
        write(tmp_path / "file", About("m", TOKENS), rows)
