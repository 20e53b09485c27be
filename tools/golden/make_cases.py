#!/usr/bin/env python3
"""Makes golden cases for tools/golden/check: DynamicKV's released rules, transcribed once more.

The C++ in cli/saved/reference and this page were written from the same definition
(docs/POLICIES.md, "Reference forms") and share no code: here torch itself pools, ranks and divides.
Cases are drawn from a seed: ordinary prompts, prompts shorter than the budget, layers that no
update reaches, updates that raise.

    .venv/bin/python tools/golden/make_cases.py --seed 1 --count 40 -o cases.json
    tools/golden/check cases.json
"""
import argparse
import json
import random
import struct
import zlib

import torch
import torch.nn.functional as F

MASK = 2**64 - 1

WHAT = (
    "Outcomes of tools/golden/make_cases.py, a transcription of DynamicKV's released rules on CPU "
    "torch {torch}: budgets after each update, stored lengths, CRC-32 of the kept ids (zlib, "
    "uint32 little-endian, layers then heads, stored order). Made with: make_cases.py "
    "--seed {seed} --count {count}")
INPUTS = (
    "LCG64 x = x*6364136223846793005 + 1442695040888963407 (mod 2^64) seeded with `seed`; value = "
    "x >> 44, drawn per (layer, head, position) in that nesting, as float32. shape: flat = as is; "
    "skew: value >> (layer % 7). Then pool1d(kernel, pad kernel/2), `pooling` avg (divide by "
    "kernel) or max; top-B by score (CPU order); then ids N .. N+ws-1.")


def draw_layers(case):
    """Pooled scores of each layer, [H, N] (an even kernel: [H, N + 1])."""
    state = case["seed"]
    pool = F.max_pool1d if case["pooling"] == "max" else F.avg_pool1d
    for layer in range(case["L"]):
        shift = layer % 7 if case["shape"] == "skew" else 0
        values = []
        for _ in range(case["H"] * case["N"]):
            state = (state * 6364136223846793005 + 1442695040888963407) & MASK
            values.append(state >> 44 >> shift)
        scores = torch.tensor(values, dtype=torch.float32).view(case["H"], case["N"])
        kernel = case["kernel"]
        yield pool(scores[None], kernel_size=kernel, padding=kernel // 2, stride=1)[0]


def layer_counts(case, pooled):
    """How many of the globally largest scores each layer seen holds, as the release counts them."""
    seen = len(pooled)
    flat = torch.stack(pooled).flatten()
    wanted = case["base"] * case["H"] * seen
    top = torch.topk(flat, k=min(wanted, flat.numel()))
    is_last = seen == case["L"]
    if is_last:
        float(top.values[0])  # The release prints it; of none this raises.
    counts = torch.bincount(top.indices // pooled[0].numel(), minlength=seen) // seen
    if is_last and int(counts.sum()) != pooled[0].numel():
        counts[-1] += wanted // case["L"] - int(counts.sum())
    return counts


def layer_budgets(case, stage_limit, counts):
    shares = counts.to(torch.float32) / counts.sum().to(torch.float32)
    budgets = [int(float(tokens)) for tokens in torch.tensor(float(stage_limit)) * shares]
    wanted = case["base"] * case["L"]
    ratio = sum(budgets) / wanted
    budgets = [int(tokens // ratio) for tokens in budgets]
    budgets[-1] += wanted - sum(budgets)
    return budgets


def kept_lists(case):
    """(B, budgets after each update, error or None, kept ids [layer][head])."""
    window = case["ws"]
    stage_limit = min(int(case["radio_max"] * case["base"]), case["N"])
    pooled, kept, updates = [], [], []
    try:
        for layer, scores in enumerate(draw_layers(case)):
            pooled.append(scores)
            best = scores.topk(stage_limit, dim=-1).indices
            # What the release does with the ids: an even kernel's last column is not a key.
            torch.zeros(case["H"], case["N"]).gather(1, best)
            kept.append([ids + list(range(case["N"], case["N"] + window)) for ids in best.tolist()])
            if layer % case["m"] != case["m"] - 1:
                continue
            budgets = layer_budgets(case, stage_limit, layer_counts(case, pooled))
            updates.append(budgets)
            kept = [[ids[:min(budget, scores.shape[1])] + ids[-window:] for ids in heads]
                    for budget, heads in zip(budgets, kept)]
    except (ArithmeticError, ValueError, LookupError, RuntimeError) as error:
        return stage_limit, updates, f"{type(error).__name__}: {error}", kept
    return stage_limit, updates, None, kept


def outcome(case):
    """The case with what came out of it, as tools/golden/check reads it."""
    stage_limit, updates, error, kept = kept_lists(case)
    result = {**case, "B": stage_limit, "budgets_per_update": updates, "error": error}
    if error is None:
        lists = [ids for heads in kept for ids in heads]
        stored = b"".join(struct.pack(f"<{len(ids)}I", *ids) for ids in lists)
        result |= {
            "stored_len_per_layer": [len(heads[0]) for heads in kept],
            "kept_head0_layer0_first16": kept[0][0][:16],
            "kept_ids_crc32_all_layers_heads": zlib.crc32(stored),
            "duplicate_entries": sum(len(ids) - len(set(ids)) for ids in lists),
        }
    return result


def draw_case(rng, index):
    """One of the kinds of case in turn, its numbers at random."""
    kind = ("plain", "trailing", "short", "tiny", "coarse", "even")[index % 6]
    case = {
        "name": f"{kind}-{index}",
        "L": rng.choice((4, 6, 8, 12, 16, 28, 30)),
        "H": rng.choice((1, 2, 3, 4, 9)),
        "N": rng.randrange(40, 500),
        "base": rng.randrange(4, 40),
        "ws": rng.choice((1, 4, 8, 16, 32)),
        "kernel": rng.choice((1, 3, 5, 7, 13)),
        "radio_max": rng.choice((1.0, 1.5, 3.3, 5.0, 10.0, 10)),
        "m": 4,
        "seed": rng.randrange(2**64),
        "shape": rng.choice(("flat", "skew")),
        "pooling": rng.choice(("avg", "avg", "max")),
    }
    if kind == "trailing":
        case["m"] = rng.choice((3, 5, 7))
        case["L"] = case["m"] * rng.randrange(1, 5) + rng.randrange(1, case["m"])
    elif kind == "short":  # Fewer scores than the update wants: it counts all of them.
        case["N"] = rng.randrange(3, 30)
        case["base"] = rng.randrange(20, 200)
    elif kind == "tiny":  # Shares of nothing.
        case |= {"base": rng.randrange(0, 3), "H": rng.choice((1, 2)), "L": rng.choice((4, 28, 40))}
    elif kind == "coarse":  # Many equal scores; enough of them to sort partially.
        case |= {"N": rng.randrange(1000, 2500), "base": 4, "radio_max": 1.5, "shape": "skew",
                 "pooling": "max", "L": 8, "H": 2, "kernel": 13}
    elif kind == "even":
        case["kernel"] = rng.choice((2, 4, 6))
    return case


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    cases = [outcome(draw_case(rng, index)) for index in range(args.count)]
    what = WHAT.format(torch=torch.__version__.split("+")[0], seed=args.seed, count=args.count)
    with open(args.output, "w") as file:
        file.write(f'{{\n "what": {json.dumps(what)},\n "inputs": {json.dumps(INPUTS)},\n')
        file.write(' "cases": [\n')
        file.write(",\n".join("  " + json.dumps(case) for case in cases))
        file.write("\n ]\n}\n")
    raised = sum(case["error"] is not None for case in cases)
    print(f"{args.output}: {len(cases)} cases, {raised} of them raise")


if __name__ == "__main__":
    main()
