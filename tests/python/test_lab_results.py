"""The CSV of an evaluation: it goes on behind what a killed run left whole."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from dkv_lab import results


def line(key: str, policy: str, capacity: int) -> dict:
    return dict.fromkeys(results.COLUMNS, "") | {"key": key, "task": "needle", "policy": policy, "capacity": capacity, "depth": 0.25}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "r.csv"
    results.Results(path).append([line("a", "fullkv", 0), line("a", "p", 64), line("a", "p", 128)], [torch.ones(1, 2)] * 3)
    return path


@pytest.mark.parametrize("lost", [1, 2, 5, 12])
def test_a_line_that_was_cut_off_is_measured_again(written, lost):
    whole = written.read_bytes()
    budgets = results.budgets_path(written).read_bytes()
    written.write_bytes(whole[:-lost])
    results.budgets_path(written).write_bytes(budgets[:-lost])

    again = results.Results(written)
    assert again.has(["a"], 4096, ["p"], [64])
    assert not again.has(["a"], 4096, ["p"], [64, 128])
    again.append([line("a", "p", 128)], [torch.ones(1, 2)])

    assert written.read_bytes() == whole
    assert [int(row["capacity"]) for row in csv.DictReader(written.open())] == [0, 64, 128]
    assert [json.loads(row)["capacity"] for row in results.budgets_path(written).read_text().splitlines()] == [64, 128]


def test_a_heading_that_was_cut_off_is_written_again(tmp_path):
    (tmp_path / "r.csv").write_text("key,ta")

    results.Results(tmp_path / "r.csv").append([line("a", "fullkv", 0)], [torch.ones(1, 2)])

    assert [row["key"] for row in results.read([tmp_path / "r.csv"])] == ["a"]


def test_a_file_of_others_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "r.csv").write_text("a,b\n1,2")

    with pytest.raises(results.ResultsError, match="has other columns than this build writes"):
        results.Results(tmp_path / "r.csv")

    assert (tmp_path / "r.csv").read_text() == "a,b\n1,2"


def test_a_file_that_begins_with_comments_is_read_and_one_of_others_is_refused(written):
    rows = results.read([written])
    written.write_text("# report part, seed 1\n# dkv eval …\n" + written.read_text())
    assert results.read([written]) == rows

    (written.parent / "table.csv").write_text("task,policy\nneedle,snapkv")
    with pytest.raises(results.ResultsError, match=r"table\.csv has no column key: not what dkv eval writes$"):
        results.read([written, written.parent / "table.csv"])
