"""A saved cache back in memory, ready to go on where its prompt ended.

    cache = dkv.hf.load("prompt.safetensors", model)
    out = dkv.hf.generate(model, cache, question_tokens, max_new_tokens=64)

The cache holds the prompt's tokens, and generation begins with the logits behind the last one. With further tokens
(a question) they come by themselves. Without, the last token is asked again: its query runs over the rows that were
kept, and no row is added or changed. Where the file says what greedy decoding put there (`next_token`, written by
save), that token has the highest logit, since it was found with the whole prompt in sight.
"""

from __future__ import annotations

import logging
import os
import weakref

import torch
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicCache

from dkv.words import DkvError, Status

from .announce import announce_prompts, too_short, unwrapped
from .attention import Prefix
from .copies import Copyable
from .files import SavedFile, SavedLayer, kv_shape_of, reordered, rope_of
from .interface import stand_in_front
from .layer import DkvLayer
from .rows import Unfit, check_model

log = logging.getLogger("dkv.hf")


def load(path: str | os.PathLike, model: torch.nn.Module) -> "LoadedCache":
    """The cache in a file of dkv's own format, whole or compacted (also ragged), for `model`.

    Every checksum is verified. Rows become the model's dtype and go to its device. Keys in llama.cpp's order of dims
    are put into the model's.

    Raises DkvError, one line beginning with the path: IO; CORRUPT_DATA; UNSUPPORTED for another version, for a model
    with layers that no file has (sliding windows, linear attention), and for keys whose order of dims is not known;
    INVALID_ARGUMENT for a cache that is not this model's: other layers, heads, head_dim or rope theta.
    """
    file, model = SavedFile.open(path), unwrapped(model)
    check_fit(file, model)
    if not file.rope.order_known:
        raise DkvError(
            Status.UNSUPPORTED,
            f"{file.path}: it was made of llama.cpp's file, and in which order its keys' dims are is not known: "
            "dkv capture finds it out; or convert again with --rope-theta, and --rope-interleaved for adjacent pairs",
        )
    return LoadedCache(model, file)


def generate(
    model: torch.nn.Module,
    cache: "LoadedCache",
    tokens: torch.Tensor | None = None,
    *,
    prompt: torch.Tensor | None = None,
    **options,
) -> torch.Tensor:
    """model.generate() from the end of a loaded prompt. `options` are its own: max_new_tokens, do_sample, streamer …

    tokens   [1, m] ids that follow the prompt; None: the text goes on at its end
    prompt   [1, n_prompt] its ids, for a file that has none

    Returns what generate() returns: the ids of prompt, tokens and new text, [1, n_prompt + m + new].

    Raises ValueError when the ids of the prompt are unknown, or do not fit.
    """
    ids = cache.tokens if prompt is None else prompt
    if ids is None:
        raise ValueError(f"{cache.path} has no token ids: give prompt=, the ids that were saved")
    if tuple(ids.shape) != (1, cache.n_prompt):
        raise ValueError(f"prompt is {list(ids.shape)}, not [1, {cache.n_prompt}]")
    ids = ids.to(unwrapped(model).device)
    if tokens is not None:
        if tokens.dim() != 2 or tokens.shape[0] != 1:
            raise ValueError(f"tokens are {list(tokens.shape)}, not [1, m]")
        ids = torch.cat([ids, tokens.to(ids)], dim=1)
    cache._use_with(model)
    return model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **options)


class LoadedCache(Copyable, TransformersCache):
    """One prompt's saved rows. model.generate(all_ids, past_key_values=cache) goes on from them.

    path, n_prompt   of the file; n_prompt counts the tokens that were dropped, too
    tokens           [1, n_prompt] ids, or None
    next_token       what greedy decoding put behind the prompt, or None
    provenance       what the file went through: policy, capacity, …
    """

    def __init__(self, model: torch.nn.Module, file: SavedFile):
        layers = DynamicCache(config=model.config).layers
        for index in range(len(layers)):
            layers[index] = DkvLayer(self, index, index)
            rows, positions = _rows(file, index, model)
            layers[index].restore(rows, file.n_prompt, positions)
        super().__init__(layers=layers)
        self.path, self.n_prompt = file.path, file.n_prompt
        self.tokens = None if file.tokens is None else file.tokens[None]
        self.next_token = file.next_token
        # The rows are in the model's order of dims now, perhaps no longer in llama.cpp's.
        self.provenance = {key: word for key, word in file.provenance.items() if key != "llama_version"}
        self._pristine = True
        self._hook = None
        self._newest: DkvLayer | None = None  # Whose rows came last.
        self._use_with(model)

    def kept_positions(self, layer: int) -> list[list[int]]:
        """Of a layer: the prompt positions kept, per KV head, ascending."""
        found = self.layers[layer].positions
        if found is not None:
            return found
        heads = self.layers[layer].keys.shape[1]
        return [list(range(self.n_prompt))] * heads

    def reset(self) -> None:
        """Forgets everything; what comes then is kept as transformers would keep it."""
        self._generate_ended()
        self._pristine = False
        super().reset()

    # ---------------------------------------------------------------- called by announce.py and the layers

    def _announce(self, count: int | None) -> None:
        """generate() is about to run with `count` ids in all. Errors are better here than a text that is wrong."""
        length = self.get_seq_length()
        if count is None or count > length or length == 0:
            self._pristine = False
            return
        if count < length or not self._pristine or length != self.n_prompt:
            raise too_short(count, length)
        self._pristine = False
        for layer in self.layers:
            layer.replay()
        model = self._model()
        if self.next_token is not None and model is not None:
            self._hook = model.register_forward_hook(self._with_next_token)

    def _generate_ended(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for layer in self.layers:
            layer.replay(False)

    def _takes_guesses(self) -> bool:
        return not any(layer.replays for layer in self.layers)

    def _was_copied(self) -> None:
        self._hook = None

    def _before_rows(self) -> None:
        """Its rows are this process's alone."""

    def _accepts(self, *_) -> bool:
        return False

    def _rows_come(self, layer: DkvLayer) -> None:
        last, self._newest = self._newest, layer
        if last is not None and last.unattended:
            raise RuntimeError(last.unattended_reason(self._model()))

    _in_prefill = False

    # ---------------------------------------------------------------- helpers

    def _use_with(self, model: torch.nn.Module) -> None:
        model = unwrapped(model)
        self._model = weakref.ref(model)
        stand_in_front(model)
        announce_prompts(model)

    def _with_next_token(self, model, arguments, output):
        """The first logits after a replay: the token that the whole prompt led to is the likeliest."""
        self._hook.remove()
        self._hook = None
        logits = output.logits.clone()
        last = logits[..., -1, :]
        best = last.amax(-1)
        if bool((last.argmax(-1) != self.next_token).any()):
            last[..., self.next_token] = best + best.abs() * 2**-6 + 2**-6
        output.logits = logits
        return output


def _rows(file: SavedFile, index: int, model) -> tuple[Prefix | tuple[torch.Tensor, torch.Tensor], list | None]:
    """What DkvLayer.restore() takes as rows, and the positions."""
    saved = file.layer(index)
    target = {"dtype": model.dtype, "device": model.device}

    def keys(rows: torch.Tensor) -> torch.Tensor:
        return reordered(rows, file.rope, rope_of(model.config)).to(**target)

    if saved.positions is None:
        return (keys(saved.keys)[None], saved.values.to(**target)[None]), None
    return _prefix(saved, keys, target), saved.positions


def _prefix(saved: SavedLayer, keys, target: dict) -> Prefix:
    if isinstance(saved.keys, torch.Tensor):
        return Prefix(saved.lengths, keys(saved.keys), saved.values.to(**target))
    return Prefix(saved.lengths, [keys(rows) for rows in saved.keys], [rows.to(**target) for rows in saved.values])


def check_fit(file: SavedFile, model: torch.nn.Module) -> None:
    """Raises DkvError, beginning with the file's path, for a cache that is not this model's; see load()."""
    try:
        _check_fit(file, model)
    except Unfit as unfit:
        raise DkvError(unfit.status, f"{file.path}: {unfit}") from None


def _check_fit(file: SavedFile, model) -> None:
    check_model(model)
    config, name = model.config.get_text_config(decoder=True), type(model).__name__
    found, wanted = (file.layers, file.kv_heads, file.head_dim), kv_shape_of(config)
    if wanted is not None and found != wanted:
        raise Unfit(
            f"it has {found[0]} layers of {found[1]} KV heads of {found[2]}, and {name} has "
            f"{wanted[0]} of {wanted[1]} of {wanted[2]}"
        )
    theta = rope_of(model.config).theta
    if theta and file.rope.theta and abs(theta / file.rope.theta - 1) > 1e-4:
        raise Unfit(f"its keys were turned with theta {file.rope.theta:g}, and those of {name} with {theta:g}")
    if file.tokens is not None and int(file.tokens.max()) >= config.vocab_size:
        raise Unfit(f"token {int(file.tokens.max())} is not among the {config.vocab_size} of {name}")
