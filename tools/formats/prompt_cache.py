"""A real mlx-lm: saves a prompt cache, prunes one, goes on from one, prints what came of it as JSON.

    PYTHON tools/formats/prompt_cache.py save MODEL TOKENS FILE [--trim N]
    PYTHON tools/formats/prompt_cache.py prune MODEL FILE KEPT OUT
    PYTHON tools/formats/prompt_cache.py continue MODEL TOKENS FILE

MODEL is a Hugging Face folder, TOKENS a JSON list of ids. Runs in the environment that install.sh makes; PYTHONPATH chooses
an older mlx-lm. --trim saves after N tokens more were computed and taken back. `prune` takes the positions of KEPT (a
file of dkv's own) out of FILE with numpy alone: each kept key is turned from its position to the number of its row.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache, trim_prompt_cache
from mlx_lm.utils import load_model

ANSWER = 24


def theta_of(folder: pathlib.Path) -> float:
    config = json.loads((folder / "config.json").read_text())
    return (config.get("rope_parameters") or config)["rope_theta"]


def model_of(folder: pathlib.Path):
    # transformers 5 writes the theta where mlx-lm does not look for it.
    return load_model(folder, model_config={"rope_theta": theta_of(folder)})[0]


def save(options: argparse.Namespace) -> dict:
    model, tokens = model_of(options.model), json.loads(options.tokens.read_text())
    cache = make_prompt_cache(model)
    for _ in generate_step(mx.array(tokens + tokens[: options.trim]), model, max_tokens=0, prompt_cache=cache):
        pass
    trim_prompt_cache(cache, cache[0].offset - len(tokens))
    save_prompt_cache(str(options.file), cache, {"model": "tiny", "tokenizer_config": "{}"})
    return {"version": mlx_lm.__version__, "held": [layer.offset for layer in cache]}


def prune(options: argparse.Namespace) -> dict:
    theta, kept, cache = theta_of(options.model), mx.load(str(options.kept)), load_prompt_cache(str(options.file))
    for index, layer in enumerate(cache):
        positions = np.array(kept[f"layers.{index}.positions"])
        keys, values = (np.array(rows.astype(mx.float32))[0] for rows in (layer.keys, layer.values))
        turned = np.take_along_axis(keys, positions[..., None], axis=1)
        steps = np.arange(positions.shape[1]) - positions
        layer.keys = mx.array(rotated(turned, steps, theta))[None].astype(layer.keys.dtype)
        layer.values = mx.array(np.take_along_axis(values, positions[..., None], axis=1))[None].astype(layer.values.dtype)
        layer.offset = positions.shape[1]
    save_prompt_cache(str(options.out), cache, {"model": "tiny", "tokenizer_config": "{}"})
    return {"held": [layer.offset for layer in cache]}


def rotated(keys: np.ndarray, steps: np.ndarray, theta: float) -> np.ndarray:
    """[heads, rows, head_dim] whose two halves are the parts of complex numbers, turned by `steps` positions."""
    first, second = np.split(keys.astype(np.float64), 2, axis=-1)
    speed = theta ** (-np.arange(first.shape[-1]) / first.shape[-1])
    turned = (first + 1j * second) * np.exp(1j * steps[..., None] * speed)
    return np.concatenate([turned.real, turned.imag], axis=-1).astype(np.float32)


def go_on(options: argparse.Namespace) -> dict:
    model, tokens = model_of(options.model), json.loads(options.tokens.read_text())
    cache, words = load_prompt_cache(str(options.file), return_metadata=True)
    held = [layer.offset for layer in cache]
    steps = generate_step(mx.array(tokens), model, max_tokens=ANSWER, prompt_cache=cache)
    return {"held": held, "words": words, "answer": [int(token) for token, _ in steps]}


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    known = (("save", save, "tokens file"), ("prune", prune, "file kept out"), ("continue", go_on, "tokens file"))
    for name, run, files in known:
        command = commands.add_parser(name)
        for each in f"model {files}".split():
            command.add_argument(each, type=pathlib.Path)
        command.set_defaults(run=run)
        if name == "save":
            command.add_argument("--trim", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(options.run(options)))


if __name__ == "__main__":
    main()
