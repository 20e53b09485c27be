#!/usr/bin/env python3
"""What dkv costs llama.cpp's prefill: SmolLM2-135M, a context with dkv attached and one without, part by part.

    tools/bench/llama_overhead.py --bin build/release/bin [--tokens 4096] [--prompts 2]

Both contexts are of one process with one thread, and each part of 512 tokens is decoded in one, then in the other; which
goes first changes. Times are that process's CPU seconds. Prints each prompt, then the ratio of the sums and its 95 % interval
(bootstrap over the parts), and what dkv_llama_compress takes of this process and of dkvd.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

PART = 512  # Tokens: llama.cpp's n_ubatch.
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / path) for path in ("protocol/python", "tools/lab", "tests/llama", "tests/support")]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of dkvd")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--capacity", type=int, default=512)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    os.environ["DKV_BIN_DIR"] = str(options.bin)
    os.environ.setdefault("DKV_LIBRARY", str(options.bin.parent / "lib" / "libdkv.so"))
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    from llama_process import Llama
    from processes import Sidecar, cpu_seconds

    from dkv.hf import weights

    with tempfile.TemporaryDirectory(prefix="dkv-overhead-") as folder:
        sidecar = Sidecar(pathlib.Path(folder)).start()
        try:
            measure(options, Llama(str(weights.gguf_path()[0]), sidecar.endpoint), sidecar.process.pid)
        finally:
            sidecar.stop()


def measure(options: argparse.Namespace, llama, dkvd: int) -> None:
    from dkv_lab.report import tables

    text = pathlib.Path("/usr/share/common-licenses/GPL-3").read_text()
    tokens = llama.tokens(text=text)["tokens"][: options.tokens]
    if len(tokens) < options.tokens:
        raise SystemExit(f"llama_overhead: the text has {len(tokens)} tokens, not {options.tokens}")

    wish = {"name": "snapkv", "capacity": options.capacity}
    parts, compressions = [], []
    room = {"cells": options.tokens + 64}
    llama.open(**room)
    llama.race(tokens=tokens[:PART], chunk=PART, **room)  # Warm-up.
    for _ in range(options.prompts):
        llama.open(**room)
        seconds = llama.race(tokens=tokens, chunk=PART, **room)
        before = cpu_seconds(dkvd)
        report = llama.compress(policy=wish)
        if not report["compressed"]:
            raise SystemExit(f"llama_overhead: not compressed: {report['reason']}")
        compressions.append((report["cpu_seconds"], cpu_seconds(dkvd) - before))
        mine = list(zip(seconds["attached"], seconds["plain"], strict=True))
        parts += mine
        print(f"attached {sum(a for a, _ in mine):6.2f} s   plain {sum(p for _, p in mine):6.2f} s   {tables.ratio(mine):.4f}", flush=True)
    found, low, high = tables.bootstrap(tables.ratio, parts)
    own, sidecars = (statistics.median(column) for column in zip(*compressions, strict=True))
    print(
        f"{options.tokens} tokens: ratio {found:.4f} [{low:.4f}, {high:.4f}] of {len(parts)} parts; "
        f"dkv_llama_compress: {own:.2f} s, and {sidecars:.2f} s of dkvd"
    )
    llama.close()
    llama.stop()


if __name__ == "__main__":
    main()
