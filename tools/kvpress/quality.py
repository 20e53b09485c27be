#!/usr/bin/env python3
"""kvpress's presses on the prompts of `dkv eval`, in a CSV that `dkv eval report` puts beside ours.

    make bench-quality QUALITY='--ruler 48 --needles 24 --texts 12 --question hidden --capacity 205,307'

Takes the flags of `dkv eval`, for which the same seed chooses the same prompts. Each press is kvpress's own code, with its
own defaults, in its own environment (tools/kvpress/install.sh): the prompt's prefill passes through it, and what follows is
forced over the cache that it leaves. A capacity is the mean number of tokens for each KV head, as everywhere in dkv.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast

from dkv.errors import UserError
from dkv.hf import weights
from dkv_lab import evaluate, progress
from dkv_lab.needles import FORCED, Row
from dkv_lab.results import COLUMNS, Results

logging.disable(logging.WARNING)  # That KVzip replays the prompt, for each prompt.

PRESSES = {
    "SnapKV": lambda kvpress, ratio: kvpress.SnapKVPress(ratio),
    "AdaKV": lambda kvpress, ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio)),
    "ExpectedAttention": lambda kvpress, ratio: kvpress.ExpectedAttentionPress(ratio),
    "AdaKV-ExpectedAttention": lambda kvpress, ratio: kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(ratio)),
    "KeyDiff": lambda kvpress, ratio: kvpress.KeyDiffPress(ratio),
    "TOVA": lambda kvpress, ratio: kvpress.TOVAPress(ratio),
    "KVzip": lambda kvpress, ratio: kvpress.KVzipPress(ratio),
    "KVzip-plus": lambda kvpress, ratio: kvpress.KVzipPress(ratio, kvzip_plus_normalization=True),
}


def parse_arguments() -> tuple[list[str], argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--presses", default=",".join(PRESSES), help="(%(default)s)")
    own, others = parser.parse_known_args()
    names = own.presses.split(",")
    unknown = next((name for name in names if name not in PRESSES), None)
    if unknown is not None:
        parser.error(f"{unknown} is no press: there are {', '.join(PRESSES)}")
    return names, evaluate.parse(["smollm2", *others])


def load(folder: str):
    """SmolLM2 and its tokenizer, from a folder without a chat template: KVzip would take the first tokens for one."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(weights.smollm2_folder())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(weights.smollm2_folder(), dtype=torch.float32, attn_implementation="sdpa")
    model.config._name_or_path = model.name_or_path = folder
    return model.eval(), tokenizer


class Prefilled:
    """A prompt's cache as a press left it, and what follows it."""

    def __init__(self, model, tokens: list[int], press=None):
        self.model, self.cache, self.at = model, DynamicCache(config=model.config), len(tokens)
        with press(model) if press is not None else contextlib.nullcontext():
            out = model.model(input_ids=torch.tensor([tokens]), past_key_values=self.cache)
        self.logprobs = [model.lm_head(out.last_hidden_state[0, -1:]).float().log_softmax(-1)]  # Of each next token.

    def kept(self) -> int:
        """Rows of all KV heads. AdaKV and KVzip keep those that they hide from attention."""
        hidden = [getattr(layer.self_attn, "masked_key_indices", None) for layer in self.model.model.layers]
        rows = sum(layer.keys.shape[1] * layer.keys.shape[2] for layer in self.cache.layers)
        return rows - sum(len(each[0]) for each in hidden if each is not None)

    def feed(self, tokens: list[int]) -> None:
        positions = torch.arange(self.at, self.at + len(tokens))[None]
        out = self.model(input_ids=torch.tensor([tokens]), past_key_values=self.cache, position_ids=positions)
        self.logprobs.append(out.logits[0].float().log_softmax(-1))
        self.at += len(tokens)

    def force(self, segments: list[list[int]]) -> torch.Tensor:
        """[tokens, vocabulary]: what was expected in place of each token of the segments, and after the last."""
        for segment in segments:
            if segment:
                self.feed(segment)
        return torch.cat(self.logprobs)

    def greedy(self, question: tuple[int, ...], count: int) -> list[int]:
        said: list[int] = []
        if question:
            self.feed(list(question))
        while len(said) < count:
            said.append(int(self.logprobs[-1][-1].argmax()))
            if len(said) < count:
                self.feed(said[-1:])
        return said


def asked_of(model, row: Row) -> list[tuple[str, str, list[int], list[int], float | None]]:
    """(key, template, question, answer, depth): of a question that is shown, the prompt has it."""
    asks = [(ask.template, ask.question, ask.answer, ask.depth) for ask in row.asks]
    asks = asks or [(row.template, (), tuple(row.answer), row.depth)]
    out = []
    for key, (template, question, answer, depth) in zip(row.keys, asks):
        count = FORCED if row.asks else FORCED + 1
        said = list(answer) or Prefilled(model, row.tokens).greedy(question, count)
        out.append((key, template, list(question), said, depth))
    return out


@torch.inference_mode()
def measure(model, row: Row, presses: list[tuple[str, int, object]]) -> list[dict]:
    """A line for each question, and for the full cache and each press."""
    asks = asked_of(model, row)
    segments = [part for _, _, question, answer, _ in asks for part in (question, answer)]
    full, lines = None, []
    for name, capacity, press in [("fullkv", 0, None), *presses]:
        prefilled = Prefilled(model, row.tokens, press)
        kept = prefilled.kept()
        found = prefilled.force(segments)
        full = found if full is None else full
        begin = 0
        for key, template, question, answer, depth in asks:
            part = slice(begin + len(question), begin + len(question) + len(answer))
            begin = part.stop
            lines.append(
                dict.fromkeys(COLUMNS, "")
                | {"key": key, "task": row.task, "template": template, "tokens": len(row.tokens)}
                | {"policy": name, "capacity": capacity, "kept": kept, "bytes": kept * _row_bytes(prefilled)}
                | {"through": "kvpress", "question": "hidden" if row.asks else "shown"}
                | {"depth": "" if depth is None else f"{depth:.4f}"}
                | _scored(found[part], full[part], torch.tensor(answer), row)
            )
        for layer in model.model.layers:
            layer.self_attn.masked_key_indices = None
    return lines


def _scored(found: torch.Tensor, full: torch.Tensor, answer: torch.Tensor, row: Row) -> dict:
    if row.task == "text":
        if not row.asks:  # The first token is said by the prefill.
            found, full = found[1:], full[1:]
        kl = (full.exp() * (full - found)).sum(-1).clamp_min(0).mean()
        agree = (found.argmax(-1) == full.argmax(-1)).float().mean()
        return {"kl": f"{float(kl):.6f}", "agree": f"{float(agree):.4f}"}
    logprob = found.gather(-1, answer[:, None]).sum()
    hit, full_hit = (bool((each.argmax(-1) == answer).all()) for each in (found, full))
    return {"found": int(hit), "full_found": int(full_hit), "logprob": f"{float(logprob):.5f}"}


def _row_bytes(prefilled: Prefilled) -> int:
    layer = prefilled.cache.layers[0]
    return layer.keys.element_size() * (layer.keys.shape[-1] + layer.values.shape[-1])


def made(names: list[str], capacities: list[int], tokens: int) -> list[tuple[str, int, object]]:
    """The presses that leave each capacity of so many tokens: kvpress keeps int(tokens · (1 - ratio))."""
    import kvpress

    ratios = [(capacity, 1 - (capacity + 0.5) / tokens) for capacity in capacities if capacity < tokens]
    return [(f"kvpress-{name}", capacity, PRESSES[name](kvpress, ratio)) for capacity, ratio in ratios for name in names]


def main() -> None:
    names, options = parse_arguments()
    if options.longbench or options.grid or options.perplexity:
        raise UserError("bench-quality measures needles, RULER's tasks and texts: leave --longbench, --grid, --perplexity out")
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load(folder)
        rows = [row for row in evaluate.rows_for(tokenizer, options) if options.shard.has(row)]
        results = Results(options.output)
        policies = [f"kvpress-{name}" for name in names]
        todo = [row for row in rows if not results.has(row.keys, len(row.tokens), policies, options.capacity)]
        with progress.of("measuring", todo, len(rows) - len(todo)) as done:
            for row in todo:
                lines = measure(model, row, made(names, options.capacity, len(row.tokens)))
                results.append(lines, [None] * len(lines))
                done(row)


if __name__ == "__main__":
    try:
        main()
    except UserError as wrong:
        sys.exit(f"bench-quality: {wrong}")
