"""Calibration and evaluation from the command line's point of view, with a tiny model."""

import csv
import json

import pytest
import torch
from conftest import make_tiny_llama

from dkv.hf import models
from dkv.hf import profile_file as profile
from dkv_lab import calibrate, evaluate, needles, policies, restore, ruler, sources
from dkv_lab.report import tables


class Bytes:
    """A tokenizer of bytes: two more than the byte, so that a tiny vocabulary holds them."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [byte + 2 for byte in text.encode()]}

    def batch_decode(self, rows):
        return [bytes(token - 2 for token in row).decode("utf-8", "replace") for row in rows]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(models, "load", lambda folder: (make_tiny_llama(), Bytes(), "tiny"))
    documents = [
        sources.Document("manual", "page" + "abcdefghijkl"[index], f"Line {index} of the manual says nothing.\n" * 400)
        for index in range(12)
    ]
    monkeypatch.setattr(sources, "documents", lambda: tuple(documents))


def calibrated(tmp_path, *more):
    output = tmp_path / "p.json"
    flags = ["tiny", "--tokens", "300", "--cut", "60", "--needles", "2", "--texts", "2", "--forced", "3"]
    assert calibrate.main([*flags, "-o", str(output), *more]) == 0
    return output


def test_a_calibration_makes_a_profile_and_takes_up_where_it_stopped(tiny, tmp_path, monkeypatch):
    output = calibrated(tmp_path)
    made = profile.load(output)
    assert [len(row) for row in made.weights] == [2] * 4
    assert made.figures["text"]["prompts"] == 2

    journal = output.with_suffix(".jsonl")
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])  # As if stopped while writing.
    measured = []
    original = calibrate.measure
    monkeypatch.setattr(calibrate, "measure", lambda *a: measured.append(a[2].key) or original(*a))
    calibrated(tmp_path)

    assert len(measured) == 1
    assert profile.load(output).weights == made.weights


def test_a_journal_of_another_recipe_is_refused(tiny, tmp_path):
    calibrated(tmp_path)

    with pytest.raises(RuntimeError, match="another model or recipe"):
        calibrated(tmp_path, "--cut", "70")


def test_a_profile_of_another_geometry_is_refused(tiny, tmp_path):
    output = calibrated(tmp_path)

    other = profile.Geometry(4, [0, 1, 2, 3], 6, 3, 16)
    with pytest.raises(profile.ProfileError, match=r"is for 4 of 4 layers with 6/2 heads of 16, not for .* 6/3 heads"):
        profile.load(output, other)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(version=2), "has version 2; this build reads version 1"),
        (lambda d: d.update(format="x"), "is not a dkv-profile file"),
        (lambda d: d.update(granularity="token"), "granularity token, not layer or head"),
        (lambda d: d["weights"].pop(), "weights of another shape"),
        (lambda d: d.update(kernel=4), "has kernel 4: it must be odd"),
        (lambda d: d["weights"][0].__setitem__(0, -1), "negative or not finite"),
        (lambda d: d.pop("recipe"), "is malformed"),
    ],
)
def test_a_broken_profile_is_refused(tiny, tmp_path, change, message):
    output = calibrated(tmp_path)
    data = json.loads(output.read_text())
    change(data)
    output.write_text(json.dumps(data))

    with pytest.raises(profile.ProfileError, match=message):
        profile.load(output)


def test_an_evaluation_gives_every_policy_the_same_bytes(tiny, tmp_path, capsys):
    output, made = tmp_path / "r.csv", calibrated(tmp_path)
    names = "streamingllm,h2o,snapkv,snapkv/kernel=3/pool=avg/reduce=max,pyramidkv,dynamickv,profile,profile/alpha=0.5/floor=0"
    flags = ["tiny", "--profile", str(made), "--policies", names, "--capacity", "48,64", "--tokens", "300"]
    flags += ["--needles", "3", "--texts", "2", "--perplexity", "--inline", "--question", "shown", "-o", str(output)]

    assert evaluate.main(flags) == 0

    with output.open() as file:
        lines = list(csv.DictReader(file))
    assert {int(line["kept"]) for line in lines if line["capacity"] == "48"} == {48 * 8}
    assert len(lines) == 5 * (1 + 2 * 8)
    assert "KL to the full cache, question shown, 300 tokens" in capsys.readouterr().out
    full = [float(line["kl"]) for line in lines if line["policy"] == "fullkv" and line["kl"]]
    assert max(full) < 1e-4
    assert evaluate.main(flags) == 0  # All there: nothing is run or written again.
    with output.open() as file:
        assert len(list(csv.DictReader(file))) == len(lines)


@pytest.mark.long
def test_the_shards_of_an_evaluation_write_the_lines_of_the_whole(tiny, tmp_path, capsys):
    flags = ["tiny", "--policies", "streamingllm", "--capacity", "48", "--tokens", "300", "--needles", "3", "--texts", "4", "--inline"]
    paths = {part: tmp_path / f"{part.replace('/', '-')}.csv" for part in ("0/1", "0/2", "1/2")}

    for part, path in paths.items():
        assert evaluate.main([*flags, "--shard", part, "-o", str(path)]) == 0

    header, *whole = paths["0/1"].read_text().splitlines()
    parts = [paths[part].read_text().splitlines() for part in ("0/2", "1/2")]
    assert sorted(parts[0][1:] + parts[1][1:]) == sorted(whole)
    assert all(part[0] == header and len(part) > 1 for part in parts)
    assert capsys.readouterr().out.splitlines()[-1].endswith("of shard 1/2; dkv eval report joins the shards' files")


def test_a_facts_place_in_the_prompt_is_known(tiny):
    row = needles.needle_rows(Bytes(), "ruler", "report", 1, 900, 3, "ruler", ruler.RULER)[0]

    texts = [bytes(token - 2 for token in row.tokens[begin:end]).decode() for begin, end in row.facts]
    assert len(texts) == 4
    assert all(text.startswith(" One of the special magic numbers") and text.endswith(".\n") for text in texts)


def test_a_head_is_weighed_by_damage_and_gain():
    gains = {
        "gain": torch.tensor([[0.0, 0.5, -0.1]]),
        "budgets": torch.tensor([[900.0, 32.0, 32.0]]),
        "more": torch.tensor([[900.0, 96.0, 96.0]]),  # The first is whole already.
    }
    damage = torch.tensor([[1.0, 0.1, -0.2]]).double()

    sizes = restore.sizes(damage, gains, cut=96, window=32, alpha=0.5)

    assert sizes[0].tolist() == pytest.approx([128.0, 0.9 * 12.8 + 0.1 * 64.0, 0.0])


def test_a_profiles_kernel_is_used_where_the_policy_names_none(tiny, tmp_path):
    made = profile.load(calibrated(tmp_path, "--kernel", "5"))
    facts = policies.Facts(None, {"p": made})

    assert made.kernel == 5
    assert policies.ranked_options(facts, "profile", {})["kernel"] == 5
    assert policies.ranked_options(facts, "snapkv", {})["kernel"] == 7


def test_an_unknown_parameter_names_those_there_are():
    with pytest.raises(policies.UnknownPolicy, match="pyramidkv has no parameter alpha: it has beta, kernel, pool, reduce"):
        policies.parse("pyramidkv/alpha=1")


def test_rows_are_the_same_for_the_same_seed_and_of_the_length_asked_for(tiny):
    first, again = (needles.needle_rows(Bytes(), "report", "report", 5, 600, 3) for _ in range(2))

    assert first == again
    assert {len(row.tokens) for row in first} == {600}
    assert {row.template for row in first} == set(needles.FAMILIES["report"])


def test_prompts_begin_as_the_tokenizer_begins_them(tiny):
    class WithBos(Bytes):
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [1] * add_special_tokens + super().__call__(text)["input_ids"]}

    rows = needles.needle_rows(WithBos(), "report", "report", 2, 600, 3) + needles.text_rows(WithBos(), "report", 1, 300, 3)

    assert [len(row.tokens) for row in rows] == [600, 600, 300]
    assert [row.tokens.count(1) for row in rows] == [1, 1, 1]
    assert all(row.tokens[0] == 1 for row in rows)


def test_the_families_share_no_wording():
    import random

    texts = {
        family: {make(random.Random(0)).question for make in templates.values()}
        for family, templates in needles.FAMILIES.items()
    }
    names = [name for templates in needles.FAMILIES.values() for name in templates]
    assert sum(map(len, texts.values())) == len(set.union(*texts.values()))
    assert len(names) == len(set(names))


def test_parts_share_no_document(tiny):
    parts = [{d.name for d in sources.documents() if d.part == part} for part in sources.PARTS]

    assert sum(map(len, parts)) == len(set.union(*parts))


def test_an_interval_holds_its_mean_and_narrows_with_more_samples():
    few, many = tables.bootstrap(tables.mean, [0, 1] * 5), tables.bootstrap(tables.mean, [0, 1] * 500)

    assert few[1] < 0.5 < few[2]
    assert many[2] - many[1] < few[2] - few[1]
