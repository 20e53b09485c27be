"""The budgets that the sidecar is held against (tests/sidecar/config) are still those of dkv_lab.budgets."""

from __future__ import annotations

import json

import torch
from conftest import ROOT

from dkv_lab import budgets


def test_the_golden_budgets_are_what_the_lab_works_out():
    golden = json.loads((ROOT / "tests/data/profile_budgets.json").read_text())
    for case in golden["cases"]:
        weights = torch.tensor(golden["weights"][case["granularity"]], dtype=torch.float64)
        shape = budgets.Shape(len(weights), 3, case["tokens"] - golden["window"], case["capacity"] - golden["window"])
        assert budgets.by_weights(shape, weights, case["alpha"], case["floor"]).tolist() == case["budgets"]
