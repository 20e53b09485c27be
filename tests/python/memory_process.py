"""One prefill of SmolLM2 in a process of its own: what it holds then is this cache's doing alone.

    python memory_process.py ENDPOINT TOKENS POLICY [CAPACITY]

Prints one JSON line: the cache's report, and the process's anonymous and shared memory after the
allocator gave back what was freed.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

import dkv.hf
from dkv.hf import weights
from dkv.hf.report import process_pss

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ("LICENSE", "docs/ARCHITECTURE.md", "docs/POLICIES.md")


def main() -> None:
    endpoint, count, policy = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    wish = {"capacity": int(sys.argv[4])} if len(sys.argv) > 4 else {}
    model, tokenizer = weights.load_smollm2()
    text = "\n\n".join((ROOT / name).read_text() for name in DOCUMENT)
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, :count]
    assert tokens.shape[1] == count

    cache = dkv.hf.Cache(model, policy=policy, endpoint=endpoint, timeout_s=120, **wish)
    with torch.no_grad():
        model(tokens, past_key_values=cache, logits_to_keep=1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    print(json.dumps({"report": cache.report().as_dict(), "pss": process_pss()}), flush=True)


if __name__ == "__main__":
    main()
