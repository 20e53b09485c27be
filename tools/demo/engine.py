"""The demo's inference process: SmolLM2-135M under transformers. Reads one run per line (JSON) from
stdin, writes events (JSON lines) to stdout. It knows nothing of policies: the operator sets them."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

import dkv.hf
from dkv.hf import weights

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from document import Document, as_chat


def say(**event) -> None:
    print(json.dumps(event), flush=True)


class FirstToken:
    """A transformers streamer that notes when prefill ended: with its first generated token."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.prefill_seconds: float | None = None
        self.tokens = -1  # The prompt is put first.

    def put(self, _tokens) -> None:
        self.tokens += 1
        if self.tokens == 1:
            self.prefill_seconds = time.perf_counter() - self.started

    def end(self) -> None:
        self.total_seconds = time.perf_counter() - self.started


def generate(model, tokenizer, prompt, run, cache) -> dict:
    streamer = FirstToken()
    with torch.inference_mode():
        output = model.generate(
            **prompt,
            past_key_values=cache,
            max_new_tokens=run["max_new_tokens"],
            do_sample=False,
            streamer=streamer,
        )
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return {
        "answer": answer.strip(),
        "prefill_seconds": streamer.prefill_seconds,
        "decode_seconds_per_token": (streamer.total_seconds - streamer.prefill_seconds)
        / max(1, streamer.tokens - 1),
    }


def full_cache_facts(model, prompt_tokens: int) -> dict:
    """What plain transformers holds for this prompt: nothing is compressed or returned."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    full = 2 * layers * config.num_key_value_heads * head_dim * prompt_tokens * model.dtype.itemsize
    return {
        "kept_per_layer": [prompt_tokens] * layers,
        "bytes_full": full,
        "bytes_dropped": 0,
        "bytes_returned": 0,
        "peak_bytes": full,
        "final_bytes": full,
        "mass_kept_per_layer": [1.0] * layers,
        "sidecar_seconds": 0.0,
        "failure": None,
    }


def compressed_facts(cache) -> dict:
    report = cache.report()
    return {
        "kept_per_layer": list(report.kept_per_layer),
        "bytes_full": report.bytes_full,
        "bytes_dropped": report.bytes_dropped,
        "bytes_returned": report.bytes_returned,
        "peak_bytes": report.peak_bytes,
        "final_bytes": report.final_bytes,
        "mass_kept_per_layer": list(report.mass_kept_per_layer),
        "sidecar_seconds": report.sidecar_seconds,
        "engine_seconds": report.engine_seconds,
        "failure": report.failure,
    }


def main() -> None:
    started = time.perf_counter()
    model, tokenizer = weights.load_smollm2()
    if os.environ.get("DKV_DEMO_GPU"):
        model.to("cuda")
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(
            lambda _module, args, _output, index=index: say(event="layer", layer=index)
            if args[0].shape[1] > 1
            else None
        )
    say(
        event="loaded",
        seconds=time.perf_counter() - started,
        pid=os.getpid(),
        model="SmolLM2-135M-Instruct",
        layers=model.config.num_hidden_layers,
        engine=f"transformers {transformers.__version__}, torch {torch.__version__}",
        threads=torch.get_num_threads(),
    )
    for line in sys.stdin:
        run = json.loads(line)
        prompt = tokenizer(
            as_chat(tokenizer, Document(**run["document"])), return_tensors="pt", add_special_tokens=False
        )
        prompt = prompt.to(model.device)
        tokens = prompt["input_ids"].shape[1]
        if run["dkv"]:
            cache = dkv.hf.Cache(model, endpoint=run["endpoint"], **run["wish"])
            facts = generate(model, tokenizer, prompt, run, cache) | compressed_facts(cache)
            if run.get("positions"):
                facts["positions"] = [cache.kept_positions(layer) for layer in range(model.config.num_hidden_layers)]
        else:
            cache = transformers.DynamicCache(config=model.config)
            facts = generate(model, tokenizer, prompt, run, cache) | full_cache_facts(model, tokens)
        del cache
        say(event="done", prompt_tokens=tokens, **facts)


if __name__ == "__main__":
    main()
