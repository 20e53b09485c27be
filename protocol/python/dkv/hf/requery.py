"""`dkv capture`: the queries of a saved cache that has none, recomputed by its model from the file's own tokens.

    dkv capture MODEL slot.bin -o prompt.safetensors

The last tokens are dropped and run again over the file's own rows; their queries go into a file of dkv's own format
beside the rows, which stay as they were. So what needs queries (dynamickv, snapkv, pyramidkv) can compact it.
With --replay the model also repeats the prompt from its cache; what it attends to then (KVzip's scores) goes into the
file, and `dkv compact --policy scores` ranks by it.
"""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import tempfile
from pathlib import Path

import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer

from dkv import programs
from dkv.errors import DkvError, Status, UserError

from . import models
from .capture import Capture
from .commands import token_ids
from .convert import convert
from .files import NEXT_TOKEN, Rope, SavedFile, halves_of_pairs, reordered, rope_of
from .load import check_fit
from .replay import ReplayError, replay
from .rows import Unfit, captured_rows
from .write import About, LayerRows, write

# Relative L2: other quantisations of a model differ by a few percent, another model's keys by about 1.4.
_ALIKE = 0.25
_CHUNK = 512  # Tokens of the window per forward: bounds the attention's memory when all queries are asked for.


def recompute(
    model: torch.nn.Module,
    file: SavedFile,
    path: str | os.PathLike,
    *,
    name: str = "",
    tokens: torch.Tensor | None = None,
    window: int | None = 32,
    replay_with=None,
    progress=lambda done, words: None,
) -> int:
    """Writes `path`: `file`'s rows and the queries of its last `window` tokens (None: of all). Returns its bytes.

    tokens     [n_prompt] ids, for a file that has none
    replay_with  the model's tokenizer: KVzip's scores are written, too
    progress   called with the share that is done and what comes now

    Layer 0 tells in which order the file has the dims of its keys: the window's keys are made anew and compared.

    Raises DkvError, beginning with the file's path: UNSUPPORTED for a compacted cache and a model with sliding windows, or one that cannot be replayed;
    INVALID_ARGUMENT for another model's cache, or when the tokens are unknown.
    """
    try:
        return _recompute(model, file, path, name, tokens, window, replay_with, progress)
    except Unfit as unfit:
        raise DkvError(unfit.status, f"{file.path}: {unfit}") from None
    except ReplayError as wrong:
        raise DkvError(Status.UNSUPPORTED, f"{file.path}: {wrong}") from None


def _recompute(model, file: SavedFile, path, name, tokens, window, replay_with, progress) -> int:
    check_fit(file, model)
    tokens = _known_tokens(file, tokens, model)
    count = file.n_prompt
    rows = count if window is None else min(window, count)
    progress(0.0, "reading rows")
    layers = [file.layer(index) for index in range(file.layers)]
    for index, layer in enumerate(layers):
        if layer.positions is not None:
            raise Unfit(f"layer {index} is compacted: queries can only be recomputed over a whole cache", Status.UNSUPPORTED)
    progress(0.2, "comparing layer 0")
    rope = _rope(file, model, _order_of(model, tokens, layers[0], rows))
    cache = _filled(model, layers, count - rows, rows, count, rope)
    next_token = _run(model, cache, tokens[count - rows :], progress)
    scores, said = [None] * len(layers), {}
    if replay_with is not None:
        progress(0.5, "replaying the prompt")
        cache.tokens = tokens[None]
        scores, said = replay(cache, replay_with), {"scores": "kvzip"}
    progress(0.8, "writing")
    made = [
        LayerRows(
            layer.keys,
            layer.values,
            reordered(captured.queries, rope_of(model.config), rope).to(file.dtype),
            sink_logits=captured.sink_logits,
            scores=score,
        )
        for layer, captured, score in zip(layers, captured_rows(cache, model), scores)
    ]
    first = cache.captured[0]
    usual = first.scaling is None or abs(first.scaling * file.head_dim**0.5 - 1) <= 1e-6
    about = About(
        model=file.model or name,
        n_prompt=count,
        tokens=tokens,
        scale=file.scale or (None if usual else float(first.scaling)),
        softcap=file.softcap or (float(first.softcap) if first.softcap else None),
        rope=rope,
        provenance={key: value for key, value in file.provenance.items() if key != "scores"}
        | {"queries": f"recomputed by {name or type(model).__name__}", NEXT_TOKEN: str(next_token)}
        | said,
    )
    return write(path, about, made)


def _known_tokens(file: SavedFile, given: torch.Tensor | None, model) -> torch.Tensor:
    tokens = file.tokens if given is None else given.reshape(-1)
    if tokens is None:
        raise Unfit("it has no token ids, and without them no queries: give --tokens")
    if tokens.numel() != file.n_prompt:
        raise Unfit(f"{tokens.numel()} token ids came with {file.n_prompt} tokens")
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise Unfit(f"its token ids go from {int(tokens.min())} to {int(tokens.max())}, and the model knows {vocabulary}")
    return tokens.long()


def _order_of(model, tokens: torch.Tensor, layer, rows: int) -> bool:
    """Whether the file's keys have adjacent pairs of dims turned, by what layer 0 makes of the last tokens.

    Layer 0 sees the embeddings alone, so its keys need no other token's rows.
    """
    last, count = min(rows, 64), tokens.numel()
    anew = DynamicCache(config=model.config)
    with torch.inference_mode():
        places = torch.arange(count - last, count, device=model.device)[None]
        model(tokens[None, -last:].to(model.device), position_ids=places, past_key_values=anew, logits_to_keep=1)
    keys, values = (rows[0].float().cpu() for rows in (anew.layers[0].keys, anew.layers[0].values))
    of_file = layer.keys[:, -last:].float()
    own = rope_of(model.config)
    as_model = _apart(of_file, keys)
    turned = _apart(halves_of_pairs(of_file, own.dims), keys)
    apart = max(min(as_model, turned), _apart(layer.values[:, -last:].float(), values))
    if not apart <= _ALIKE:
        raise Unfit(
            f"it is no cache of {type(model).__name__} with these weights: layer 0's rows are {apart:.2f} apart "
            f"(relative L2) from those that the model makes of the same tokens"
        )
    return own.interleaved or turned < as_model


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _rope(file: SavedFile, model, interleaved: bool) -> Rope:
    own = rope_of(model.config)
    return Rope(
        theta=file.rope.theta or own.theta,
        interleaved=interleaved,
        model_interleaved=own.model_interleaved,
        dims=file.rope.dims or own.dims,
        scaling=file.rope.scaling or own.scaling,
    )


def _filled(model, layers, prefix: int, rows: int, count: int, rope: Rope) -> Capture:
    """A capture that has seen all but the last tokens."""
    cache = Capture(model, rows, prompt_tokens=count)
    target = {"dtype": model.dtype, "device": model.device}
    for captured, saved in zip(cache.captured, layers):
        if prefix == 0:
            continue
        keys = saved.keys[None, :, :prefix]
        keys = reordered(keys, rope, rope_of(model.config)).to(**target)
        # The layer's own update() would take these for rows of this run.
        DynamicLayer.update(captured, keys, saved.values[None, :, :prefix].to(**target))
    return cache


def _run(model, cache: Capture, last: torch.Tensor, progress) -> int:
    """The last tokens over what is there; returns the likeliest next one."""
    with torch.inference_mode():
        for begin in range(0, last.numel(), _CHUNK):
            progress(0.3 + 0.5 * begin / last.numel(), "recomputing queries")
            chunk = last[None, begin : begin + _CHUNK].to(model.device)
            out = model(chunk, past_key_values=cache, logits_to_keep=1)
    return int(out.logits[0, -1].argmax())


# -------------------------------------------------------------------- the command


def opened(path: Path, folder: Path, options: list[str]) -> SavedFile:
    """A file of any format: what is not dkv's own is converted into `folder` first."""
    start = b""
    if path.is_file():  # vLLM's and LMCache's caches are folders.
        with path.open("rb") as file:
            start = file.read(4)
    if start == b"PK\x03\x04":
        convert(path, folder / "converted.safetensors")
        return SavedFile.open(folder / "converted.safetensors")
    if not path.is_dir():
        try:
            return SavedFile.open(path)
        except DkvError as error:
            if error.status != Status.CORRUPT_DATA:
                raise
    done = subprocess.run(
        [programs.find("dkv"), "convert", path, "-o", folder / "converted.safetensors", "--format", "dkv", *options],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise UserError((done.stderr.strip().splitlines() or ["dkv convert failed"])[-1].removeprefix("dkv: "))
    return SavedFile.open(folder / "converted.safetensors")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("DKV_COMMAND", "python -m dkv capture"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help='a Hugging Face folder, or "smollm2"')
    parser.add_argument("file", type=Path, metavar="FILE", help="any format that dkv reads, whole, with its token ids")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="dkv's own format")
    parser.add_argument("--window", default="32", metavar="N", help='queries of so many last tokens; "all", as h2o wants (%(default)s)')
    parser.add_argument("--replay", action="store_true", help="also KVzip's scores, which cost about two prefills: for --policy scores")
    parser.add_argument("--tokens", type=Path, metavar="IDS", help="token ids, for a FILE that has none: a JSON list")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the model (%(default)s)")
    parser.add_argument("--input-format", help="what FILE is, instead of finding out from its bytes (see dkv convert)")
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    options = parser.parse_args(arguments)
    if options.window != "all" and not (options.window.isdigit() and int(options.window) > 0):
        parser.error(f'--window is {options.window}: a count of tokens, or "all"')
    options.window = None if options.window == "all" else int(options.window)
    return options


def main(arguments: list[str] | None = None) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.output.parent.is_dir():
        raise UserError(f"{options.output.parent}: no such folder")
    if not options.file.exists():  # Before a model is loaded for nothing.
        raise UserError(f"{options.file}: {os.strerror(errno.ENOENT)}")
    tokens = token_ids(options.tokens) if options.tokens else None
    transformers.utils.logging.disable_progress_bar()  # Ours is enough, and errors are one line.
    more = ["--input-format", options.input_format] if options.input_format else []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix=".dkv-capture-", dir=options.output.parent) as folder,
        Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("loading", total=1.0)
        model, tokenizer, name = models.load(options.model, getattr(torch, options.dtype))
        config = model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        file = opened(options.file, Path(folder), [*more, "--kv-heads", str(heads)])  # llama.cpp does not say.
        file.path = options.file  # For messages: not the converted one.

        def progress(done: float, words: str) -> None:
            bar.update(task, completed=done, description=words)

        size = recompute(
            model, file, options.output, name=name, tokens=tokens, window=options.window,
            replay_with=tokenizer if options.replay else None, progress=progress,
        )  # fmt: skip
    rows = file.n_prompt if options.window is None else min(options.window, file.n_prompt)
    scores = "scores of every token, " if options.replay else ""
    print(f"{options.output}: {file.n_prompt:,} tokens, the queries of the last {rows:,}, {scores}{size:,} bytes")
    return 0
