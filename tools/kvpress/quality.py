#!/usr/bin/env python3
"""kvpress's presses on the prompts of `dkv eval`, in a CSV that `dkv eval report` puts beside ours.

    make bench-quality QUALITY='--ruler 48 --needles 24 --texts 12 --question hidden --capacity 205,307'

Takes the flags of `dkv eval`, for which the same seed chooses the same prompts. Each press is kvpress's own code, with its
own defaults, in its own environment (.venv-kvpress): it sees the prompt's prefill, and what follows is forced over
the rows that it leaves. Those that need no more than the prefill share one; KVzip replays the prompt in one of its own. A
capacity is the mean number of tokens for each KV head, as everywhere in dkv.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
from dataclasses import dataclass

import torch
import transformers
import kvpress
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast

from dkv.errors import UserError
from dkv.hf import weights
from dkv_lab import evaluate, probe, progress
from dkv_lab.needles import FORCED, Row
from dkv_lab.results import COLUMNS, Results

logging.disable(logging.WARNING)  # That KVzip replays the prompt, for each prompt.
transformers.logging.disable_progress_bar()

SCORED = {  # By the prompt's prefill alone.
    "SnapKV": lambda ratio: kvpress.SnapKVPress(ratio),
    "AdaKV": lambda ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio)),
    "ExpectedAttention": lambda ratio: kvpress.ExpectedAttentionPress(ratio),
    "AdaKV-ExpectedAttention": lambda ratio: kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(ratio)),
    "KeyDiff": lambda ratio: kvpress.KeyDiffPress(ratio),
    "TOVA": lambda ratio: kvpress.TOVAPress(ratio),
}
REPLAYED = {"KVzip": False, "KVzip-plus": True}  # Name → with the normalization of KVzip+.


def parse_arguments() -> tuple[list[str], argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--presses", default=",".join([*SCORED, *REPLAYED]), help="(%(default)s)")
    own, others = parser.parse_known_args()
    names = own.presses.split(",")
    unknown = next((name for name in names if name not in {**SCORED, **REPLAYED}), None)
    if unknown is not None:
        parser.error(f"{unknown} is no press: there are {', '.join([*SCORED, *REPLAYED])}")
    return names, evaluate.parse(["smollm2", *others])


def load(folder: str):
    """SmolLM2 and its tokenizer, from a folder without a chat template: KVzip would take the first tokens for one."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(weights.smollm2_folder())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(weights.smollm2_folder(), dtype=torch.float32, attn_implementation="sdpa")
    model.config._name_or_path = model.name_or_path = folder
    return model.eval(), tokenizer


@dataclass
class Left:
    """What a press left of a prompt, layer by layer."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]  # Keys and values.
    hidden: list[tuple | None]  # Of them, what attention must not see: AdaKV and KVzip hide rows and keep them.

    def rows(self) -> int:
        """Seen by attention, in all KV heads."""
        rows = sum(keys.shape[1] * keys.shape[2] for keys, _ in self.layers)
        return rows - sum(len(each[0]) for each in self.hidden if each is not None)


class Together(kvpress.BasePress):
    """Several presses in one prefill, each of which sees all of it: what they leave lies in `left`."""

    def __init__(self, presses: dict):
        self.presses, self.left = presses, {key: Left([], []) for key in presses}

    def post_init_from_model(self, model):
        for press in self.presses.values():
            press.post_init_from_model(model)

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        for key, press in self.presses.items():
            module.masked_key_indices = None
            self.left[key].layers.append(press.compress(module, hidden_states, keys, values, attentions, kwargs))
            self.left[key].hidden.append(module.masked_key_indices)
        module.masked_key_indices = None
        return keys, values


class Replayed(kvpress.KVzipPress):
    """KVzip, whose one replay serves every ratio. `left` is filled when the prefill's context ends."""

    def __init__(self, plus: bool, ratios: dict):
        super().__init__(0.5, kvzip_plus_normalization=plus)
        self.ratios, self.left = ratios, {}

    def compress_post(self, model):
        layers = [(layer.keys, layer.values) for layer in self._cache.layers]
        for key, ratio in self.ratios.items():
            self.compression_ratio = ratio
            super().compress_post(model)
            self.left[key] = Left(layers, [layer.self_attn.masked_key_indices for layer in model.model.layers])


def prefill(model, tokens: list[int], press=None) -> tuple[Left, torch.Tensor]:
    """The whole cache, and the log probabilities [1, vocabulary] of what follows."""
    cache = DynamicCache(config=model.config)
    with press(model) if press is not None else contextlib.nullcontext():
        out = model.model(input_ids=torch.tensor([tokens]), past_key_values=cache)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    return Left(layers, [None] * len(layers)), model.lm_head(out.last_hidden_state[0, -1:]).float().log_softmax(-1)


class Reader:
    """Goes on from what was left of a prompt."""

    def __init__(self, model, tokens: int, left: Left, first: torch.Tensor):
        self.model, self.at, self.logprobs = model, tokens, [first]
        self.cache = DynamicCache(config=model.config)
        for index, (keys, values) in enumerate(left.layers):
            self.cache.update(keys, values, index)
        for layer, hidden in zip(model.model.layers, left.hidden):
            layer.self_attn.masked_key_indices = hidden

    def feed(self, tokens: list[int]) -> None:
        positions = torch.arange(self.at, self.at + len(tokens))[None]
        out = self.model(input_ids=torch.tensor([tokens]), past_key_values=self.cache, position_ids=positions)
        self.logprobs.append(out.logits[0].float().log_softmax(-1))
        self.at += len(tokens)

    def force(self, segments: list[list[int]]) -> torch.Tensor:
        """[tokens + 1, vocabulary]: what was expected in place of each token of the segments, and after the last."""
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


def asked_of(model, row: Row, whole: Left, first: torch.Tensor) -> list[tuple[str, str, list[int], list[int], float | None]]:
    """(key, template, question, answer, depth): of a question that is shown, the prompt has it."""
    asks = [(ask.template, ask.question, ask.answer, ask.depth) for ask in row.asks]
    asks = asks or [(row.template, (), tuple(row.answer), row.depth)]
    out = []
    for key, (template, question, answer, depth) in zip(row.keys, asks):
        count = FORCED if row.asks else FORCED + 1
        said = list(answer) or Reader(model, len(row.tokens), whole, first).greedy(question, count)
        out.append((key, template, list(question), said, depth))
    return out


@torch.inference_mode()
def measure(model, row: Row, names: list[str], capacities: list[int]) -> list[dict]:
    """A line for each question, and for the full cache and each press at each capacity."""
    tokens = len(row.tokens)
    # kvpress keeps int(tokens · (1 - ratio)) of each head.
    ratios = {capacity: 1 - (capacity + 1e-6) / tokens for capacity in capacities if capacity < tokens}
    scored = {(name, capacity): SCORED[name](ratio) for name in names if name in SCORED for capacity, ratio in ratios.items()}
    together = Together(scored)
    whole, first = prefill(model, row.tokens, together)
    left = {("fullkv", 0): whole, **together.left}
    for name in names:
        if name in REPLAYED:
            press = Replayed(REPLAYED[name], {(name, capacity): ratio for capacity, ratio in ratios.items()})
            prefill(model, row.tokens, press)
            left |= press.left
    asks = asked_of(model, row, whole, first)
    segments = [part for _, _, question, answer, _ in asks for part in (question, answer)]
    full, lines = None, []
    for (name, capacity), kept in left.items():
        found = Reader(model, tokens, kept, first).force(segments)
        full = found if full is None else full
        begin = 0
        for key, template, question, answer, depth in asks:
            part = slice(begin + len(question), begin + len(question) + len(answer))
            begin = part.stop
            lines.append(
                dict.fromkeys(COLUMNS, "")
                | {"key": key, "task": row.task, "template": template, "tokens": tokens}
                | {"policy": f"kvpress-{name}" if capacity else name, "capacity": capacity}
                | {"kept": kept.rows(), "bytes": kept.rows() * _row_bytes(kept), "through": "kvpress"}
                | {"question": "hidden" if row.asks else "shown", "depth": "" if depth is None else f"{depth:.4f}"}
                | _scored(found[part], full[part], torch.tensor(answer), row)
            )
    return lines


def _scored(found: torch.Tensor, full: torch.Tensor, answer: torch.Tensor, row: Row) -> dict:
    scored = probe.score(found[None], answer, full)
    if row.task == "text":
        first = 0 if row.asks else 1  # Of a question that is shown the first token is said by the prefill.
        kl, agree = (scored[name][0, first:].float().mean() for name in ("kl", "agree"))
        return {"kl": f"{float(kl):.6f}", "agree": f"{float(agree):.4f}"}
    full_hit = bool((full.argmax(-1) == answer).all())
    hit, logprob = int(scored["hit"].all()), float(scored["logprob"].sum())
    return {"found": hit, "full_found": int(full_hit), "logprob": f"{logprob:.5f}"}


def _row_bytes(left: Left) -> int:
    return sum(part.element_size() * part.shape[-1] for part in left.layers[0])


def main() -> None:
    names, options = parse_arguments()
    if options.longbench or options.grid or options.perplexity:
        raise UserError("only needles, RULER's tasks and texts are measured: leave --longbench, --grid and --perplexity out")
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
                lines = measure(model, row, names, options.capacity)
                results.append(lines, [None] * len(lines))
                done(row)


if __name__ == "__main__":
    try:
        main()
    except UserError as wrong:
        sys.exit(f"bench-quality: {wrong}")
