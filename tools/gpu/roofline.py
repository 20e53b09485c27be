#!/usr/bin/env python3
"""The least time that each op can take on a GPU: what it must move and what it must compute, against public peaks.

    roofline.py            prints the page's part
    roofline.py --write    puts it into docs/KERNELS.md

Computed, nothing here was measured. Peaks are those of NVIDIA's data sheets (dense, no sparsity): memory bandwidth,
tensor cores with f32 accumulation, f32 without tensor cores. exp2 runs on the special function units: 16 a clock and
multiprocessor (CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions"), at the boost clock.
"""
import argparse
import pathlib
import sys
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent

WINDOW = 32
TOKENS = (4096, 32768, 131072)


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float  # Bytes a second.
    tensor: float  # bf16 and f16, operations a second.
    f32: float
    exponentials: float  # A second.


# A100 80 GB SXM: 108 multiprocessors at 1.41 GHz; H100 SXM: 132 at 1.83 GHz; L4: 58 at 2.04 GHz.
GPUS = [
    Gpu("A100", 2039e9, 312e12, 19.5e12, 16 * 108 * 1.41e9),
    Gpu("H100", 3350e9, 989e12, 67e12, 16 * 132 * 1.83e9),
    Gpu("L4", 300e9, 121e12, 30.3e12, 16 * 58 * 2.04e9),
]
H100 = GPUS[1]

# Operations that a multiprocessor makes a clock: bf16 and f16 by compute capability, f32, exponentials.
TENSOR = {(8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (12, 0): 1024}
F32 = {(8, 0): 128}
F32_ELSE = 256
EXPONENTIALS = 16


@dataclass(frozen=True)
class Shape:
    model: str
    q_heads: int
    kv_heads: int
    head_dim: int
    layers: int = 32


LLAMA = Shape("llama-3-8b", 32, 8, 128)
MODELS = {shape.model: shape for shape in  # As in bench.cc.
          (LLAMA, Shape("smollm2-135m", 9, 3, 64, layers=30), Shape("tiny", 4, 2, 64, layers=2))}
ELEMENT = {"bf16": 2, "f16": 2, "f32": 4}
OPS = ["score", "accumulate", "key_norm", "key_diff", "pool", "select", "sum", "tally", "gather"]


@dataclass(frozen=True)
class Work:
    bytes: float
    flops: float = 0
    exponentials: float = 0


def work(op, shape, dtype, tokens):
    """What one call must at least move and compute; every input and output once for each pass over it."""
    element = ELEMENT[dtype]
    keys = shape.kv_heads * tokens * shape.head_dim * element
    queries = shape.q_heads * WINDOW * shape.head_dim * element
    columns = 4 * shape.kv_heads * (tokens - WINDOW)
    kept = tokens // 4
    logits = shape.q_heads * WINDOW * tokens
    products = 2 * logits * shape.head_dim
    seen = shape.q_heads * tokens * tokens / 2  # Logits of all queries, causal.
    return {
        "score": Work(2 * keys + queries + columns, 2 * products, 2 * logits),
        "accumulate": Work(keys * (1 + shape.q_heads // shape.kv_heads) + columns, 4 * seen * shape.head_dim, 2 * seen),
        "key_norm": Work(keys + columns, 2 * keys / element),
        "key_diff": Work(2 * keys + columns, 6 * keys / element),
        "pool": Work(2 * columns),
        "select": Work(columns + 4 * shape.kv_heads * kept),
        "sum": Work(columns),
        "tally": Work(columns * shape.layers),
        "gather": Work(2 * shape.kv_heads * kept * shape.head_dim * element),
    }[op]


def gpu_of(device):
    """The Gpu that dkv_gpu_bench's device is by its own clocks at most, or None when it does not say them."""
    clock, memory = device["clock_hz"], device["memory_bytes_per_s"]
    capability = tuple(map(int, device["compute_capability"].split(".")))
    if not clock or not memory or capability not in TENSOR:
        return None
    a_clock = device["multiprocessors"] * clock
    return Gpu(device["name"], memory, TENSOR[capability] * a_clock, F32.get(capability, F32_ELSE) * a_clock,
               EXPONENTIALS * a_clock)


def bound(gpu, what, dtype):
    """(seconds at least, by what)."""
    flops = gpu.f32 if dtype == "f32" else gpu.tensor
    times = {"memory": what.bytes / gpu.memory, "products": what.flops / flops,
             "exponentials": what.exponentials / gpu.exponentials}
    by = max(times, key=times.get)
    return times[by], by


def amount(value):
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{digits(value / size)} {unit}"
    return f"{value:.0f}"


def digits(value):
    """Three of them; never 1.8e+03."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def page():
    lines = ["Computed by `tools/gpu/roofline.py`, not measured: one layer of Llama-3-8B (32 query heads, 8 KV heads, "
             "head_dim 128), window 32, a quarter kept; tally over 32 layers. µs at least, and what bounds them: m memory, "
             "p products, e exponentials. Launches, a few µs each, come on top.", "",
             "| op | dtype | tokens | bytes | operations | exponentials | "
             + " | ".join(f"{gpu.name}, µs" for gpu in GPUS) + " |",
             "| --- | --- | --- | --- | --- | --- | " + " | ".join("---" for _ in GPUS) + " |"]
    for op in OPS:
        rows_only = op in ("pool", "select", "sum", "tally")
        for dtype in ["f32"] if rows_only else ["bf16", "f32"]:
            for tokens in TOKENS if dtype == "bf16" or rows_only else TOKENS[1:2]:
                if op == "accumulate" and tokens > TOKENS[1]:
                    continue  # By the square: no prompt waits for it.
                what = work(op, LLAMA, dtype, tokens)
                times = (bound(gpu, what, dtype) for gpu in GPUS)
                cells = " | ".join(f"{digits(seconds * 1e6)} {by[0]}" for seconds, by in times)
                lines.append(f"| {op} | {dtype} | {tokens} | {amount(what.bytes)} | {amount(what.flops)} | "
                             f"{amount(what.exponentials)} | {cells} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.write:
        sys.path.insert(0, str(HERE.parent / "ptxas"))
        import summary

        summary.put(HERE.parents[1] / "docs/KERNELS.md", "roofline", page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
