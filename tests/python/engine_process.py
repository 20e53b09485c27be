"""An engine in a process of its own, for tests that kill one or run two.

    python engine_process.py ENDPOINT [PROMPT_TOKENS]

Compresses a prompt of the tiny model, then prints one JSON line and waits for its stdin to close.
"""

import json
import sys

import torch
from conftest import make_tiny_llama

import dkv.hf


def main() -> None:
    endpoint, tokens = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 600
    model = make_tiny_llama(seed=1)
    cache = dkv.hf.Cache(model, policy="snapkv", capacity=128, endpoint=endpoint)
    prompt = torch.randint(2, 512, (1, tokens), generator=torch.Generator().manual_seed(3))
    model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, past_key_values=cache)
    print(json.dumps(cache.report().as_dict()), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
