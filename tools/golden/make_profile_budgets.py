#!/usr/bin/env python3
"""Budgets from a profile as dkv_lab.budgets works them out, for the sidecar to be held against.

    tools/golden/make_profile_budgets.py PROFILE.json > tests/data/profile_budgets.json

The file carries the weights, so that a profile may be calibrated anew without it.
"""

import json
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[2] / folder) for folder in ("protocol/python", "tools/lab")]

import torch  # noqa: E402
from dkv_lab import budgets  # noqa: E402

WINDOW = 32
CAPACITIES = (64, 128, 256, 512, 1024)
TOKENS = (1024, 4000)
RULES = ((0.5, 0.2), (0.85, 0.2), (1.0, 0.07), (0.0, 0.0))  # alpha, floor


def main():
    profile = json.loads(pathlib.Path(sys.argv[1]).read_text())
    by_head = torch.tensor(profile["weights"], dtype=torch.float64)
    kv_heads = profile["model"]["geometry"]["kv_heads"]
    cases = []
    for granularity, weights in (("head", by_head), ("layer", by_head.mean(1, keepdim=True))):
        for alpha, floor in RULES:
            for tokens in TOKENS:
                for capacity in CAPACITIES:
                    shape = budgets.Shape(len(by_head), kv_heads, tokens - WINDOW, capacity - WINDOW)
                    shares = budgets.by_weights(shape, weights, alpha, floor)
                    case = dict(granularity=granularity, alpha=alpha, floor=floor, tokens=tokens, capacity=capacity)
                    cases.append(case | {"budgets": shares.tolist()})
    head = {
        "made_by": "tools/golden/make_profile_budgets.py",
        "window": WINDOW,
        "weights": {"head": by_head.tolist(), "layer": by_head.mean(1, keepdim=True).tolist()},
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in head.items()]
    rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    print("{\n" + ",\n".join(lines) + ',\n"cases": [\n' + rows + "\n]}")


if __name__ == "__main__":
    main()
