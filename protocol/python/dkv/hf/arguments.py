"""What models hand to their attention functions, and which of it dkv's own attention understands.

A compressed layer is attended by dkv. So a prompt is only compressed when its model's attention is known to be
softmax(scale · QKᵀ) · V, perhaps with a cap on the logits and sinks in the sum, over a causal mask: by the names of
the arguments, by the mask, and by the result itself, which is computed anew for two queries and compared.
"""

from __future__ import annotations

import torch

from .attention import Prefix, lower_right_causal, two_part_attention
from .interface import Call

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_UNDERSTOOD = {"scaling", "softcap", "dropout", "is_causal", "sliding_window", "s_aux", "output_attentions"}
# Bookkeeping of the layers around, which no attention function reads for a single sequence.
_WITHOUT_EFFECT = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "labels", "logits_to_keep", "max_length_k",
    "max_length_q", "num_items_in_batch", "output_hidden_states", "output_router_logits", "position_ids", "return_dict",
    "use_cache",
}  # fmt: skip
_APART_MAX = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}  # Relative L2; eager half rounds logits.
_ROWS = 256  # Of a mask looked at together: bounds the memory.


def not_understood(call: Call, longest: int) -> str | None:
    """Why dkv cannot attend in place of `call.own`, by the arguments. `longest`: the text's length at most."""
    window = call.named.get("sliding_window")
    if window is not None and window < longest:
        return (
            f"the attention of {type(call.module).__name__} is given sliding_window {window}: only layers that see "
            "everything are compressed"
        )
    return foreign(call)


def foreign(call: Call) -> str | None:
    """What of the arguments has no place in softmax(scale · QKᵀ) · V with a cap, sinks and a causal or sliding mask."""
    named, name = call.named, type(call.module).__name__
    if len(call.arguments) > 5:
        return f"{name} calls its attention with {len(call.arguments)} positional arguments: dkv understands the first 5"
    for argument, value in named.items():
        if value is not None and argument not in _UNDERSTOOD and argument not in _WITHOUT_EFFECT:
            return f"the attention of {name} is given {argument}, which dkv does not understand"
    if named.get("dropout"):
        return f"the attention of {name} has a dropout of {named['dropout']}: only 0 is compressed (call model.eval())"
    if named.get("is_causal") is False:
        return f"the attention of {name} is given is_causal=False: only causal attention is compressed"
    sinks = call.sinks
    if sinks is not None and tuple(sinks.shape) != (call.query.shape[1],):
        return f"the attention of {name} is given s_aux of shape {list(sinks.shape)}, not [{call.query.shape[1]}]"
    return None


def changed(call: Call, given: tuple[torch.Tensor, torch.Tensor] | None) -> str | None:
    """Why the rows attended to are not `given`, what the cache returned; None: those were attended to already."""
    name = type(call.module).__name__
    if given is None:
        return f"{name} calls its attention more than once per layer"
    if call.key is not given[0] or call.value is not given[1]:
        return f"{name} changes K or V between the cache and its attention"
    return None


def differing(keys: torch.Tensor, values: torch.Tensor) -> str | None:
    """Why K and V of these shapes and dtypes are not compressed."""
    if keys.shape[0] != 1:
        return f"a batch of {keys.shape[0]}: only batch 1 is compressed"
    if keys.dtype not in DTYPES:
        return f"K and V are {keys.dtype}: only float32, float16 and bfloat16 are supported"
    if values.dtype != keys.dtype:
        return f"K is {keys.dtype} and V is {values.dtype} (as under torch.autocast): they must have one dtype"
    if values.shape != keys.shape:
        return (
            f"K is {list(keys.shape)} and V is {list(values.shape)} (as in multi-head latent attention): "
            "they must have one shape"
        )
    return None


def wants_weights(call: Call) -> bool:
    """Whether the caller asked for attention weights (output_attentions=True)."""
    asked = call.named.get("output_attentions")
    return bool(getattr(getattr(call.module, "config", None), "output_attentions", False) if asked is None else asked)


def masked_otherwise(call: Call) -> str | None:
    """Why the mask is not that of one unpadded, causal text whose last tokens are the queries."""
    mask, q_length, kv_length = call.mask, call.query.shape[2], call.key.shape[2]
    if mask is None or getattr(mask, "_dkv_causal", None) == (q_length, kv_length):
        return None
    if not isinstance(mask, torch.Tensor):
        return f'the mask is a {type(mask).__name__}, which dkv does not read: use attn_implementation="sdpa"'
    if mask.dim() == 2:  # Of flash attention: which keys are not padding.
        return None if bool(mask.all()) else "the prompt is padded"
    if mask.dim() != 4 or tuple(mask.shape[-2:]) != (q_length, kv_length):
        return f"the mask is {list(mask.shape)}, not [1, 1, {q_length}, {kv_length}]"
    for begin in range(0, q_length, _ROWS):
        part = mask[..., begin : begin + _ROWS, :]
        seen = lower_right_causal(part.shape[-2], kv_length - max(0, q_length - begin - _ROWS), mask.device)
        seen = torch.nn.functional.pad(seen, (0, kv_length - seen.shape[1]))
        if not bool((_visible(part) == seen).all()):
            return "the prompt is padded or has a mask of its own"
        if mask.dtype != torch.bool and bool(part.masked_fill(~seen, 0).any()):
            return "the mask adds numbers to the logits, which dkv does not compress"
    mask._dkv_causal = (q_length, kv_length)  # Layers share a mask: looked at once.
    return None


def tail_mask(mask: object, prompt: int, tail: int) -> torch.Tensor | None:
    """The columns [q, tail] of a mask over a text whose first `prompt` tokens are compressed; None: causal.

    Raises ValueError for a mask that hides or weighs the prompt's tokens: dkv attends to those that are kept.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise ValueError(
            f'the prompt is compressed, and the mask is a {type(mask).__name__}: use attn_implementation="sdpa"'
        )
    if mask.dim() == 2:
        if not bool(mask.all()):
            raise ValueError("the prompt is compressed, and the text is padded: only unpadded text can follow it")
        return None
    if mask.dim() != 4 or mask.shape[-1] != prompt + tail or mask.shape[0] * mask.shape[1] != 1:
        wanted = f"[1, 1, {mask.shape[-2]}, {prompt + tail}]"
        raise ValueError(f"the prompt is compressed, and the mask is {list(mask.shape)}, not {wanted}")
    if getattr(mask, "_dkv_sees", None) != prompt:
        of_prompt = mask[..., :prompt]
        if not bool(of_prompt.all() if mask.dtype == torch.bool else (of_prompt == 0).all()):
            raise ValueError("the prompt is compressed, and the mask hides or weighs tokens of it: start a new cache")
        mask._dkv_sees = prompt
    return mask[0, 0, :, prompt:]


def computed_otherwise(call: Call, out: torch.Tensor) -> str | None:
    """Why `out`, of the model's own function, is not what dkv's attention makes of the same rows.

    Looked at for the middle and the last query. Whatever a model does that its arguments do not tell (a bias made
    inside, other groups of heads) shows here.
    """
    q_heads, q_length, kv_length = call.query.shape[1], call.query.shape[2], call.key.shape[2]
    rows = sorted({q_length // 2, q_length - 1})
    with torch.no_grad():
        tokens = torch.arange(kv_length, device=call.key.device)
        seen = torch.stack([tokens <= kv_length - q_length + row for row in rows])
        nothing = Prefix([0] * call.key.shape[1], call.key[0, :, :0], call.value[0, :, :0])
        ours = two_part_attention(
            call.query[:, :, rows], nothing, call.key, call.value, call.scaling, call.softcap, seen, call.sinks
        ).transpose(1, 2)
        if out.shape[:2] != (1, q_length) or out[0, 0].numel() != ours[0, 0].numel():
            name, wanted = type(call.module).__name__, f"[1, {q_length}, {q_heads}, …]"
            return f"the attention of {name} returns {list(out.shape)}, not {wanted}"
        theirs = out[:, rows].reshape(ours.shape).float()
        apart = float((theirs - ours.float()).norm() / theirs.norm().clamp_min(1e-20))
    if apart <= _APART_MAX.get(call.query.dtype, 0.1):
        return None
    return (
        f"the attention of {type(call.module).__name__} is not softmax(scale · QK) · V: its result is {apart:.1%} apart "
        "from that of dkv"
    )


def _visible(mask: torch.Tensor) -> torch.Tensor:
    """Additive masks hide with -inf or with the least number of their dtype."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
