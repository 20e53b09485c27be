"""A sweep's lines as a page: what is read, compared, said and drawn."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dkv.errors import UserError
from dkv_lab.report import means, sweep as results, words
from dkv_lab.report.means import Study

LAYERS, HEADS = 6, 2


def line(policy="snapkv", capacity=64, file="a/one.safetensors", mass=0.8, error=0.1, layers=None, **more) -> dict:
    rows = layers or [capacity] * LAYERS
    return {
        "file": file,
        "model": "tiny",
        "prompt_tokens": 1000,
        "policy": policy,
        "capacity": capacity,
        "params": {"window": 32, "kernel": 7},
        "bytes_kept": sum(rows) * HEADS * 64,
        "bytes_full": 1000 * LAYERS * HEADS * 64,
        "mass_kept": None if mass is None else [mass] * LAYERS,
        "error_l2": None if error is None else [error] * LAYERS,
        "lengths": [[row] * HEADS for row in rows],
        "error": "",
        **more,
    }


def lost(policy="h2o", capacity=64, file="a/one.safetensors", why="h2o needs the queries of the last 1000 tokens") -> dict:
    return line(policy, capacity, file, None, None) | {"lengths": [], "error": why}


@pytest.fixture
def sweep(tmp_path):
    def write(*lines: dict, name: str = "sweep.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(each) + "\n" for each in lines))
        return path

    return write


@pytest.fixture
def study(sweep):
    def make(*lines: dict) -> Study:
        return Study("tiny", results.read([sweep(*lines)])[0])

    return make


def test_a_later_line_of_the_same_point_counts_and_the_head_is_passed_over(sweep):
    path = sweep({"sweep": {"dkv": "7.8.9"}}, line(mass=0.5), line("knorm"), line(mass=0.7))

    points, missing = results.read([path])

    assert [(point.policy, round(point.mean_mass, 6)) for point in points] == [("snapkv", 0.7), ("knorm", 0.8)]
    assert missing == []


def test_a_last_line_that_was_cut_off_is_passed_over_and_any_other_is_refused(sweep):
    path = sweep(line(), line("knorm"))
    whole = path.read_text()
    path.write_text(whole[:-40])
    assert [point.policy for point in results.read([path])[0]] == ["snapkv"]

    path.write_text("{broken\n" + whole)
    with pytest.raises(UserError, match=rf"^{path}:1: no line of a sweep: "):
        results.read([path])
    path.write_text('{"file": "x", "policy": "y", "lengths": [[1]]}\n')
    with pytest.raises(UserError, match="there is no 'prompt_tokens'"):
        results.read([path])
    with pytest.raises(UserError, match="mass_kept has 1 entries for 6 layers"):
        results.read([sweep(line(mass_kept=[0.5]))])


def test_the_files_of_shards_are_read_in_the_order_of_one_run(tmp_path):
    lines = [line(policy, file=file) for file in ("a", "b", "c") for policy in ("snapkv", "knorm")]
    for name, part in {"whole": lines, "0": lines[4:], "1": lines[:4]}.items():
        (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in part))

    assert results.read([tmp_path / "0", tmp_path / "1"]) == results.read([tmp_path / "whole"])


def test_means_are_over_the_prompts_that_every_policy_has(study):
    made = study(
        line("snapkv", file="one", error=0.1),
        line("snapkv", file="two", error=0.9),
        line("dynamickv", file="one", error=0.2),
    )

    assert made.common(64) == {"one"}
    assert [(mean.variant, round(mean.value, 6), mean.prompts) for mean in made.means(means.error)] == [
        ("dynamickv", 0.2, 1),
        ("snapkv", 0.1, 1),
    ]
    assert any("Means are over the prompts that every policy has" in each for each in words.summary(made, []))


def test_a_parameter_that_was_varied_names_the_variant(study):
    made = study(
        line("snapkv", params={"window": 16, "kernel": 7}), line("snapkv", params={"window": 32, "kernel": 7}), line("knorm")
    )

    assert made.variants == ["snapkv window=16", "snapkv window=32", "knorm"]


def test_the_best_policy_is_the_one_with_the_least_error_or_else_the_most_mass(study):
    with_error = study(line("snapkv", error=0.2), line("dynamickv", error=0.1, mass=0.7))
    without = study(line("snapkv", error=None, mass=0.9), line("dynamickv", error=None, mass=0.7))

    (best,) = words.best_by_size(with_error)
    assert (best.variant, best.second, best.lead) == ("dynamickv", "snapkv", "error 2.00 times as large")
    (best,) = words.best_by_size(without)
    assert (best.variant, best.lead, best.error) == ("snapkv", "20 points more mass", None)


def test_damage_ranks_before_error_and_mass(study):
    made = study(
        line("snapkv", damage=[0.3] * LAYERS, error=0.1, mass=0.9), line("dynamickv", damage=[0.2] * LAYERS, error=0.2, mass=0.7)
    )

    (best,) = words.best_by_size(made)
    assert (best.variant, best.second, best.lead) == ("dynamickv", "snapkv", "damage 1.50 times as large")
    assert best.damage == pytest.approx(0.2)
    said = words.summary(made, [])
    assert said[1].startswith("dynamickv does the least damage at every size.") and not any("No damage" in each for each in said)


def test_the_summary_says_who_wins_what_it_costs_and_what_could_not_be_had(study):
    made = study(
        line("dynamickv", 64, error=0.10),
        line("snapkv", 64, error=0.20),
        line("dynamickv", 128, error=0.04),
        line("snapkv", 128, error=0.015),
    )
    missing = [results.Missing("one", "tiny", "h2o", 64, f"h2o needs the last {count} tokens") for count in (10, 20)]

    said = words.summary(made, missing)

    assert said == [
        "2 policies at 2 capacities (64, 128 tokens per layer and KV head) over 1 prompt of tiny, 1,000 tokens long.",
        "dynamickv reconstructs attention best at 1 of 2 sizes (snapkv at 128). At the smallest, 64 tokens or 6.4 % of the "
        "bytes, dynamickv keeps 80.0 % of the attention mass with an error of 10.0 %.",
        "No damage is known, since the model has no profile: mass and error see the window alone, and often rank policies backwards.",
        "A mean error below 5 % takes 96 KiB (12.8 %; dynamickv at 128), below 2 % takes 96 KiB (12.8 %; snapkv at 128).",
        "2 points cannot be had. h2o (2): h2o needs the last … tokens.",
    ]


def test_prompts_are_named_by_as_much_of_their_path_as_tells_them_apart(study):
    made = study(line(file="x/a/p.safetensors"), line(file="x/b/p.safetensors"))

    assert list(made.labels().values()) == ["a/p", "b/p"]


def test_tasks_are_rows_of_the_heat_map_where_there_are_tasks(study):
    made = study(
        line(file="one", task="qa", layers=[10] * 6),
        line(file="two", task="qa", layers=[30] * 6),
        line(file="three", task="code", layers=[40] * 6),
    )

    assert made.rows_of_heat("snapkv", 64) == {"qa": [20.0] * 6, "code": [40.0] * 6}


def run(*arguments):
    command = [sys.executable, "-m", "dkv_lab", "report", *map(str, arguments)]
    environment = os.environ | {"DKV_COMMAND": "dkv report"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def grid(*policies: str, files=("one", "two"), capacities=(64, 128, 256)) -> list[dict]:
    made = []
    for number, policy in enumerate(policies):
        for place, file in enumerate(files):
            for step, capacity in enumerate(capacities):
                layers = [capacity + (number and 8 * (layer - 2)) for layer in range(LAYERS)]
                more = {"mass": 0.5 + 0.1 * step + 0.01 * number + 0.001 * place, "error": 0.3 / (1 + step + 0.1 * number)}
                made.append(line(policy, capacity, file, layers=layers, **more))
    return made


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        self.links += [named[key] for key in ("src", "href", "xlink:href", "srcset") if named.get(key)]


@pytest.mark.long
def test_the_page_holds_its_figures_and_asks_nothing_of_the_network(sweep, tmp_path):
    pytest.importorskip("matplotlib")
    path = sweep(*grid("snapkv", "dynamickv", capacities=(64, 128)), lost())

    done = run(path, "-o", tmp_path / "out", "--title", "Tom & Jerry's <budgets>")

    assert done.returncode == 0, done.stderr
    made = {entry.name for entry in (tmp_path / "out").iterdir()}
    names = {"mass-capacity", "error-bytes", "side-by-side", *(f"{n}-{c}" for n in ("budgets", "layers") for c in (64, 128))}
    assert made == {"report.html", *(f"{name}.{kind}" for name in names for kind in ("svg", "png"))}
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == len(names) and "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "Tom &amp; Jerry&#39;s &lt;budgets&gt;" in text
    assert "h2o (1): h2o needs the queries" in text and "h2o (1)" in done.stdout
    assert (tmp_path / "out" / "error-bytes.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_same_lines_make_the_same_bytes(sweep, tmp_path):
    pytest.importorskip("matplotlib")
    path = sweep(*grid("snapkv", "dynamickv", files=("one",), capacities=(64,)))

    for folder in ("a", "b"):
        assert run(path, "-o", tmp_path / folder).returncode == 0

    for entry in (tmp_path / "a").iterdir():
        assert entry.read_bytes() == (tmp_path / "b" / entry.name).read_bytes(), entry.name
    assert (tmp_path / "a" / "budgets.png").exists()  # One prompt: its rows are capacities.


def test_files_without_queries_make_a_page_of_sizes_alone(sweep, tmp_path):
    pytest.importorskip("matplotlib")
    path = sweep(*(each | {"mass_kept": None, "error_l2": None} for each in grid("knorm", "streamingllm", capacities=(64,))))

    done = run(path, "-o", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    assert "the files have no queries, so only sizes can be told" in done.stdout
    assert not (tmp_path / "out" / "error-bytes.png").exists()


def test_what_cannot_be_reported_is_one_line(sweep, tmp_path):
    assert run(tmp_path / "none").stderr == f"dkv report: {tmp_path}/none: No such file or directory\n"
    path = sweep(lost())
    done = run(path, "-o", tmp_path / "out")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert done.stderr == (
        f"dkv report: {path}: there is no point of a sweep; h2o needs the queries of the last 1000 tokens\n"
    )
    (tmp_path / "file").write_text("")
    done = run(sweep(line()), "-o", tmp_path / "file")
    assert done.returncode == 1 and done.stderr == f"dkv report: {tmp_path}/file: File exists\n"
