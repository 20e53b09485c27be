"""Tells a dkv cache how long the prompt is that generate() is about to run.

Without that the first forward on an empty cache is taken for the whole prompt, which is wrong when
generate() cuts it into chunks (prefill_chunk_size).
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager

import torch


def announce_prompts(model: torch.nn.Module) -> None:
    """Wraps this one model's generate(); nothing else about it changes."""
    if not hasattr(model, "generate") or getattr(model.generate, "_announces_dkv", False):
        return
    original = type(model).generate

    @functools.wraps(original)
    def generate(self, *args, **kwargs):
        with announced(kwargs.get("past_key_values"), args, kwargs):
            return original(self, *args, **kwargs)

    generate._announces_dkv = True
    model.generate = generate.__get__(model)


@contextmanager
def announced(cache, args: tuple, kwargs: dict):
    """Around generate(*args, **kwargs) with this cache, dkv's or not."""
    begin, end = getattr(cache, "_announce", None), getattr(cache, "_generate_ended", None)
    if getattr(cache, "_left_alone", None) is not None:
        del kwargs["past_key_values"]  # The model makes its own.
        begin = None
    if begin is None:
        yield
        return
    if kwargs.setdefault("use_cache", True) is False:  # A config may say so, too; generate() would read a cache wrongly.
        raise ValueError("use_cache=False was given with a cache: leave one of them out")
    note = getattr(cache, "_note_prompt", None)
    if note is not None:
        note(prompt_ids(args, kwargs))
    begin(prompt_length(args, kwargs))
    try:
        yield
    finally:
        end()


def why_left_alone(model: torch.nn.Module) -> str | None:
    """Why no dkv cache can serve this model: it makes a cache of another class itself, or takes none."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        return f"{name} is an encoder-decoder, and its cache has two parts (EncoderDecoderCache): it makes its own"
    supports = getattr(model, "_supports_default_dynamic_cache", None)
    if supports is not None and not supports():
        return f"{name} has a cache of a class of its own, and makes it itself"
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if "cache_params" in parameters or not ("past_key_values" in parameters or open_ended):
        return f"{name} takes no past_key_values: it makes a cache of its own"
    return None


def prompt_ids(args: tuple, kwargs: dict) -> torch.Tensor | None:
    """[b, n] ids of the prompt that generate(*args, **kwargs) was given, if it was given ids."""
    for tensor in (kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]):
        if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and not tensor.is_floating_point():
            return tensor
    return None


def prompt_length(args: tuple, kwargs: dict) -> int | None:
    """Tokens of the prompt that generate(*args, **kwargs) was given; None when it cannot be told."""
    given = [kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]]
    for tensor in given:
        if isinstance(tensor, torch.Tensor) and tensor.dim() >= 2:
            return tensor.shape[1]
    return None
