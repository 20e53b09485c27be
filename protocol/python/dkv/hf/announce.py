"""What a dkv cache has to know of generate() before it runs.

How long the prompt is: else the first forward on an empty cache is taken for the whole prompt, which is wrong when
generate() cuts it into chunks (prefill_chunk_size). And that guessed tokens (prompt_lookup_num_tokens,
assistant_model) come after the prompt, not with it: the prompt is scored by its last queries and compressed at its end,
and what follows reads the rows that were kept.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

# transformers' layers whose size does not grow with the text, by name: not every version has all of them.
_BOUNDED = {
    "DummyLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionLayer",
}


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model of transformers in a wrapper (torch.compile, PEFT, DataParallel), whose generate() runs in the end;
    `model` itself where there is none."""
    if isinstance(model, PreTrainedModel) or not isinstance(model, torch.nn.Module):
        return model
    config = getattr(model, "config", None)
    if config is None:
        inner = getattr(model, "module", None)
        return model if inner is None else unwrapped(inner)
    inside = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    return next((module for module in inside if module.config is config), model)


def announce_prompts(model: torch.nn.Module) -> None:
    """Wraps this one model's generate(); nothing else about it changes."""
    if not hasattr(model, "generate") or getattr(model.generate, "_announces_dkv", False):
        return
    original = _method(model, "generate")

    @functools.wraps(original)
    def generate(self, *args, **kwargs):
        with announced(kwargs.get("past_key_values"), args, kwargs, self):
            return original(self, *args, **kwargs)

    generate._announces_dkv = True
    model.generate = generate.__get__(model)
    _guess_after_prompts(model)


def _method(model: torch.nn.Module, name: str):
    """A function of (self, …): what was put on this one model under the name, else its class's, else None."""
    own = vars(model).get(name)
    if own is None:
        return getattr(type(model), name, None)
    return functools.wraps(own)(lambda _, *args, **kwargs: own(*args, **kwargs))


@contextmanager
def announced(cache, args: tuple, kwargs: dict, model: torch.nn.Module):
    """Around model.generate(*args, **kwargs) with this cache, dkv's or not."""
    begin, end = getattr(cache, "_announce", None), getattr(cache, "_generate_ended", None)
    if getattr(cache, "_left_alone", None) is not None:
        del kwargs["past_key_values"]  # The model makes its own.
        begin = None
    if begin is None:
        yield
        return
    reason, keep_whole = repeats_rows(model, kwargs), getattr(cache, "_keep_whole", None)
    if kwargs.setdefault("use_cache", True) is False:  # A config may say so, too; an argument goes before it.
        if cache.get_seq_length() > 0:
            raise ValueError("use_cache=False was given with a cache that has a prompt: leave one of them out")
        del kwargs["past_key_values"]  # generate() would give it the whole text with every token.
        reason = "generate() was given use_cache=False"
    if reason is not None and keep_whole is not None:
        keep_whole(reason)
    note = getattr(cache, "_note_prompt", None)
    if note is not None:
        note(prompt_ids(args, kwargs))
    begin(prompt_length(args, kwargs, cache.get_seq_length()))
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
    if isinstance(model, PreTrainedModel) and "past_key_values" not in parameters:
        return f"{name} takes no past_key_values: it makes a cache of its own"
    return None


def unknown_layers(layers: list) -> str | None:
    """Of a cache without a layer for dkv: which of them may keep the whole text all the same, in a way of their own."""
    others = [index for index, layer in enumerate(layers) if type(layer).__name__ not in _BOUNDED]
    if not others:
        return None
    return (
        f"{len(others)} of {len(layers)} layers of the cache are not understood "
        f"(layer {others[0]}: {type(layers[others[0]]).__name__}): only a DynamicLayer is compressed"
    )


def setting(model: torch.nn.Module, kwargs: dict, name: str):
    """What generate(**kwargs) takes for an option: its argument, else its config's, else the model's own."""
    if kwargs.get(name) is not None:
        return kwargs[name]
    given = getattr(kwargs.get("generation_config"), name, None)
    return given if given is not None else getattr(getattr(model, "generation_config", None), name, None)


def too_short(count: int, length: int) -> ValueError:
    return ValueError(
        f"generate() was given {count} tokens, and the cache has {length} already: give it the ids of the whole text, "
        "those in the cache and what follows; for another text reset() the cache"
    )


def repeats_rows(model: torch.nn.Module, kwargs: dict) -> str | None:
    """Why generate(**kwargs) would turn one prompt's rows into a batch after the prompt; None when it would not."""
    alpha, top_k, samples = (setting(model, kwargs, name) for name in ("penalty_alpha", "top_k", "do_sample"))
    is_contrastive = alpha and not samples and (top_k is None or top_k > 1)
    return "contrastive search repeats the prompt's rows" if is_contrastive else None


def prompt_ids(args: tuple, kwargs: dict) -> torch.Tensor | None:
    """[b, n] ids of the prompt that generate(*args, **kwargs) was given, if it was given ids."""
    for tensor in (kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]):
        if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and not tensor.is_floating_point():
            return tensor
    return None


def prompt_length(args: tuple, kwargs: dict, cached: int) -> int | None:
    """Tokens of the text that generate(*args, **kwargs) goes on from; None when it cannot be told. `cached`: of the
    cache. Where the mask is longer than the ids these are only what follows the cached tokens."""
    given = [kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]]
    found = next((tensor for tensor in given if isinstance(tensor, torch.Tensor) and tensor.dim() >= 2), None)
    if found is None:
        return None
    mask = kwargs.get("attention_mask")
    only_new = cached and kwargs.get("inputs_embeds") is None and isinstance(mask, torch.Tensor)
    return max(found.shape[1], mask.shape[-1]) if only_new else found.shape[1]


# ---------------------------------------------------------------- guessed tokens


def _guess_after_prompts(model: torch.nn.Module) -> None:
    """With a dkv cache the first step of assisted decoding makes no guesses, and reads no row again."""
    make = _method(model, "_get_candidate_generator")
    prepare = _method(model, "prepare_inputs_for_generation")
    if make is None or prepare is None:
        return

    @functools.wraps(make)
    def _get_candidate_generator(self, *args, **kwargs):
        generator = make(self, *args, **kwargs)
        cache = (kwargs.get("model_kwargs") or {}).get("past_key_values")
        if not getattr(cache, "_takes_guesses", lambda: True)():
            _drop_first_guesses(generator)
        return generator

    @functools.wraps(prepare)
    def prepare_inputs_for_generation(self, input_ids, *args, **kwargs):
        if hasattr(kwargs.get("past_key_values"), "_takes_guesses"):
            kwargs |= _without_rows_known(input_ids, kwargs)
        return prepare(self, input_ids, *args, **kwargs)

    model._get_candidate_generator = _get_candidate_generator.__get__(model)
    model.prepare_inputs_for_generation = prepare_inputs_for_generation.__get__(model)


def _drop_first_guesses(generator) -> None:
    guess = generator.get_candidates

    def get_candidates(input_ids, *args, **kwargs):
        generator.get_candidates = guess
        guess(input_ids, *args, **kwargs)  # So that an assistant has read the prompt.
        return input_ids, None

    generator.get_candidates = get_candidates


def _without_rows_known(input_ids: torch.Tensor, kwargs: dict) -> dict:
    """transformers 5.23 runs the whole text again when assisted decoding begins with a cache that has rows."""
    if not kwargs.get("is_first_iteration") or kwargs.get("next_sequence_length", 0) is not None:
        return {}
    length, mask = kwargs["past_key_values"].get_seq_length(), kwargs.get("attention_mask")
    is_whole_text = mask is None or mask.shape[-1] == input_ids.shape[1]
    if not length or not is_whole_text or input_ids.shape[1] <= length:
        return {}
    return {"next_sequence_length": input_ids.shape[1] - length}
