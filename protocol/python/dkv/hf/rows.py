"""K and V of every layer, out of a cache that is not a file yet: transformers' own classes, lists of tensors, dkv's.

Each layer must have the row of every token, or say which tokens its rows are of (dkv's own compressed caches).
Anything else is refused by name, before a file is begun.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticLayer

from dkv.words import Status

from .announce import why_left_alone
from .capture import Capture, CaptureLayer
from .files import is_mla, kv_shape_of
from .layer import DkvLayer
from .write import LayerRows

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_Pair = tuple[torch.Tensor, torch.Tensor]

_MLA = "multi-head latent attention (MLA)"
LAYOUTS = ("HTD", "THD")  # [heads, tokens, head_dim], as transformers has it; [tokens, heads, head_dim].


class Unfit(Exception):
    """Why a cache cannot become a file, without the name of what it came from."""

    def __init__(self, message: str, status: Status = Status.INVALID_ARGUMENT):
        super().__init__(message)
        self.status = status


def check_layers(layers, source: str) -> None:
    """Raises Unfit for layers without the row of every token: load() could not go on from a file without them."""
    others = [(index, type(layer).__name__) for index, layer in enumerate(layers) if not keeps_all(layer)]
    if not others:
        return
    index, name = others[0]
    if "quant" in name.lower():
        wrong = f"{len(others)} of its {len(layers)} layers are quantised ({name}): run the prompt with a DynamicCache"
        raise Unfit(wrong, Status.UNSUPPORTED)
    raise Unfit(
        f"{len(others)} of {len(layers)} layers of {source} do not keep K and V of every token (layer {index}: {name}), "
        "and a file has no place for what they keep",
        Status.UNSUPPORTED,
    )


def keeps_all(layer) -> bool:
    """Whether K and V of every token are all that this layer has. Classes that are not known are not trusted to."""
    return isinstance(layer, (DkvLayer, CaptureLayer)) or type(layer) in (DynamicLayer, StaticLayer)


def check_model(model: torch.nn.Module) -> None:
    """Raises Unfit for a model whose cache no file can hold, before its prompt runs for nothing."""
    reason, name = why_left_alone(model), type(model).__name__
    if reason is not None:
        raise Unfit(f"no file can hold its cache: {reason}", Status.UNSUPPORTED)
    layers = _layers_wanted(model.config)
    if not layers:
        raise Unfit(f"{name} has a cache of its own kind, not one of K and V per layer", Status.UNSUPPORTED)
    check_layers(layers, name)
    _check_latent(model.config, name)


def captured_rows(cache: Capture, model: torch.nn.Module) -> list[LayerRows]:
    """The prompt's rows and queries, on the CPU. Raises Unfit where they are not all that attention had."""
    made = []
    for index, layer in enumerate(cache.captured):
        rows = _three_dimensions(index, layer.keys[..., : cache.n_prompt, :], layer.values[..., : cache.n_prompt, :])
        made.append(LayerRows(*rows, layer.queries, sink_logits=layer.sink_logits))
    _check_alike(made)
    if cache.refusal is not None:
        raise Unfit(f"the prompt cannot be saved: {cache.refusal}", Status.UNSUPPORTED)
    _check_config(made, model.config)
    return [on_cpu(layer) for layer in made]


def layers_of(found, config, layout: str | None, token_count: int | None) -> list[LayerRows]:
    """Rows on the CPU, [heads, rows, head_dim], all layers of one geometry and one dtype.

    config        the model's, or None: then only the rows themselves tell
    layout        of a list's tensors: "HTD", "THD", or None to find out
    token_count   how many token ids came along, if any
    """
    if layout is not None and layout not in LAYOUTS:
        raise Unfit(f"layout is {layout!r}, not {' or '.join(map(repr, LAYOUTS))}")
    if isinstance(found, TransformersCache):
        layers = _of_cache(found)
    elif isinstance(found, (list, tuple)):
        pairs = [_three_dimensions(index, *pair) for index, pair in enumerate(_pairs(found))]
        if _tokens_first(pairs, config, layout, token_count):
            pairs = [(keys.transpose(0, 1), values.transpose(0, 1)) for keys, values in pairs]
        layers = [LayerRows(keys, values) for keys, values in pairs]
    else:
        wanted = "not a list of (K, V) per layer or a cache of transformers"
        raise Unfit(f"it is a {type(found).__name__}, {wanted}", Status.UNSUPPORTED)
    if not layers:
        raise Unfit("it has no layers", Status.UNSUPPORTED)
    _check_alike(layers)
    _check_config(layers, config)
    return [on_cpu(layer) for layer in layers]


def token_count_of(layers: list[LayerRows]) -> int:
    """Of the text, kept or not."""
    ends = [head[-1] + 1 for layer in layers for head in layer.positions or [] if head]
    whole = [layer.keys.shape[1] for layer in layers if layer.positions is None]
    return max(ends + whole)


def check_tokens(tokens: torch.Tensor | None, count: int, config) -> torch.Tensor | None:
    """[count] ids, or None. Raises Unfit for ids that are not of these tokens."""
    if tokens is None:
        return None
    if not isinstance(tokens, torch.Tensor) or tokens.is_floating_point():
        kind = type(tokens).__name__ if not isinstance(tokens, torch.Tensor) else f"tensor of {tokens.dtype}"
        raise Unfit(f"tokens are a {kind}, not a tensor of ids")
    ids = tokens.detach().reshape(-1).cpu()
    if ids.numel() != count:
        raise Unfit(f"{ids.numel()} token ids came with {count} tokens")
    if config is None or not count:
        return ids
    vocabulary = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if isinstance(vocabulary, int) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise Unfit(f"token ids go from {int(ids.min())} to {int(ids.max())}, and the model has {vocabulary}")
    _check_padding(ids, config)
    return ids


def _check_padding(ids: torch.Tensor, config) -> None:
    """A file has no mask: rows of padding would be attended as text."""

    def found(name: str) -> set:
        value = getattr(config, name, None)
        return set(value) if isinstance(value, (list, tuple)) else {value}

    pad = getattr(config, "pad_token_id", None)
    if pad is None or pad in found("bos_token_id") | found("eos_token_id"):  # Then it may be text.
        return
    padded = int((ids == pad).long().cumprod(0).sum())
    if padded:
        raise Unfit(f"the prompt begins with {padded} padding tokens (id {pad}): run it without padding")


# -------------------------------------------------------------------- caches


def _of_cache(cache: TransformersCache) -> list[LayerRows]:
    if hasattr(cache, "cross_attention_cache"):
        raise Unfit(
            f"it is an {type(cache).__name__} with two caches: give the one that is meant, its self_attention_cache or "
            "its cross_attention_cache",
            Status.UNSUPPORTED,
        )
    if not hasattr(cache, "layers"):  # A pickle of transformers before 4.54.
        return [LayerRows(*_three_dimensions(index, *pair)) for index, pair in enumerate(_old_pairs(cache))]
    layers = [layer for layer in cache.layers]
    check_layers(layers, f"this {type(cache).__name__}")
    counts = [_length(index, layer) for index, layer in enumerate(layers)]
    if not any(counts):
        raise Unfit("it is empty: no prompt has run with it")
    for index, count in enumerate(counts):
        if count != counts[0]:
            raise Unfit(
                f"layer {index} has {count} tokens, and layer 0 has {counts[0]}: a file needs the row of every token in "
                "each layer, and this cache does not say which ones it has"
            )
    return [_of_layer(index, layer, count) for index, (layer, count) in enumerate(zip(layers, counts))]


def _length(index: int, layer) -> int:
    """Tokens that a layer has seen: rows of a StaticLayer behind them are unused."""
    if isinstance(layer, DkvLayer):
        return layer.get_seq_length()
    keys = getattr(layer, "keys", None)
    if not isinstance(keys, torch.Tensor) or keys.numel() == 0:
        return 0
    if not isinstance(layer, StaticLayer):
        return keys.shape[-2]
    try:
        count = int(type(layer).get_seq_length(layer))
    except (AttributeError, TypeError, ValueError, RuntimeError):  # Of another transformers, or without data.
        count = -1
    if not 0 <= count <= keys.shape[-2]:
        raise Unfit(f"layer {index}, a {type(layer).__name__}, does not say how many of its {keys.shape[-2]} rows are used")
    return count


def _of_layer(index: int, layer, count: int) -> LayerRows:
    if isinstance(layer, DkvLayer):
        return kept_rows(layer, count)
    return LayerRows(*_three_dimensions(index, layer.keys[..., :count, :], layer.values[..., :count, :]))


def kept_rows(layer: DkvLayer, count: int) -> LayerRows:
    """What one of dkv's own layers has of the first `count` tokens: all that came after a compressed prompt, too."""
    prefix, index = layer.prefix, layer.index
    if prefix is None:
        return LayerRows(*_three_dimensions(index, layer.keys[:, :, :count], layer.values[:, :, :count]))
    if layer.positions is None:
        raise Unfit(f"layer {index} lost its sidecar half-way: the positions of its rows are not known")
    prompt = layer.get_seq_length() - (0 if layer.keys is None else layer.keys.shape[2])
    tail = count - prompt
    if tail <= 0:
        return LayerRows(prefix.keys, prefix.values, positions=layer.positions)
    after = list(range(prompt, count))
    positions = [head + after for head in layer.positions]
    parts = [
        [torch.cat([rows, new]) for rows, new in zip(kept, tailed[0, :, :tail])]
        for kept, tailed in ((prefix.keys, layer.keys), (prefix.values, layer.values))
    ]
    if prefix.uniform:
        parts = [torch.stack(heads) for heads in parts]
    return LayerRows(*parts, positions=positions)


def _old_pairs(cache) -> list[_Pair]:
    keys, values = getattr(cache, "key_cache", None), getattr(cache, "value_cache", None)
    lists = isinstance(keys, list) and isinstance(values, list) and len(keys) == len(values)
    if not isinstance(cache, DynamicCache) or not lists:
        raise Unfit(
            f"it is a {type(cache).__name__} of a transformers that is not known here, and does not say how many of its "
            "rows are used",
            Status.UNSUPPORTED,
        )
    return _pairs(list(zip(keys, values)))


# -------------------------------------------------------------------- lists of tensors


def _pairs(found) -> list[_Pair]:
    """(K, V) of each layer. What iterates a DynamicCache has a third part: a window, or None."""
    made = []
    for index, pair in enumerate(found):
        parts = len(pair) if isinstance(pair, (list, tuple)) else 0
        if parts in (4, 6) and all(isinstance(pair[at], torch.Tensor) for at in (0, 1, parts // 2, parts // 2 + 1)):
            raise Unfit(
                f"layer {index} has {parts} parts, as an encoder-decoder's self-attention and cross-attention have: give "
                "(K, V) of the one that is meant",
                Status.UNSUPPORTED,
            )
        if parts == 3 and isinstance(pair[2], torch.Tensor) and pair[2].numel() == 1:
            raise Unfit(
                f"layer {index} has a sliding window of {int(pair[2])}, and a file only holds layers that keep every token",
                Status.UNSUPPORTED,
            )
        if not (parts == 2 or (parts == 3 and pair[2] is None)):
            raise Unfit(f"layer {index} is {_described(pair)}, not a pair of tensors (K, V)", Status.UNSUPPORTED)
        for what, rows in zip("KV", pair):
            if not isinstance(rows, torch.Tensor):
                wrong = f"{what} of layer {index} is {_described(rows)}, not a tensor: a pair of tensors (K, V) is a layer"
                raise Unfit(wrong, Status.UNSUPPORTED)
        made.append((pair[0], pair[1]))
    return made


def _described(found) -> str:
    if isinstance(found, torch.Tensor):
        return f"a tensor {list(found.shape)}"
    size = f" of {len(found)}" if isinstance(found, (list, tuple, dict)) else ""
    return f"a {type(found).__name__}{size}" if found is not None else "None"


def _three_dimensions(index: int, keys: torch.Tensor, values: torch.Tensor) -> _Pair:
    made = []
    for what, rows in (("K", keys), ("V", values)):
        name = f"{what} of layer {index}"
        if rows.layout != torch.strided or rows.is_quantized or rows.dtype not in _DTYPES:
            kind = "quantised" if rows.is_quantized else str(rows.dtype if rows.layout == torch.strided else rows.layout)
            wanted = "a file has float32, float16 or bfloat16, so convert the rows first"
            raise Unfit(f"{name} is {kind}: {wanted}", Status.UNSUPPORTED)
        if rows.device.type == "meta":
            raise Unfit(f"{name} is on the meta device: it has a shape and no data")
        if rows.dim() == 4 and rows.shape[0] > 1:
            raise Unfit(
                f"{name} is {list(rows.shape)}, a batch of {rows.shape[0]}: a file has one sequence, so give one of them "
                "(rows[i:i + 1])"
            )
        if rows.dim() == 4:
            rows = rows.squeeze(0)
        if rows.dim() != 3 or 0 in rows.shape:
            raise Unfit(f"{name} is {list(rows.shape)}, not [1, heads, tokens, head_dim]")
        made.append(rows.detach())
    return made[0], made[1]


def _tokens_first(pairs: list[_Pair], config, layout: str | None, token_count: int | None) -> bool:
    """Whether the rows are [tokens, heads, head_dim]: by what was said, the config, the number of tokens."""
    if not pairs or layout is not None:
        return layout == "THD"
    first, second, _ = pairs[0][0].shape
    shape = kv_shape_of(config)
    fits, is_known = [True, True], shape is not None or token_count is not None
    if shape is not None:
        fits = [first == shape[1], second == shape[1]]  # [heads, tokens, …], [tokens, heads, …]
    elif token_count is not None:
        fits = [second == token_count, first == token_count]
    if all(fits) and first > 1 and (first == second or (first > second and not is_known)):
        either = f"{first} heads of {second} tokens, or {second} heads of {first} tokens: say config=, tokens= or"
        either = "as many heads as tokens: say" if first == second else either
        tells = 'layout="HTD" (heads first) or "THD" (tokens first)'
        raise Unfit(f"K of layer 0 is {list(pairs[0][0].shape)}, {either} {tells}")
    return fits == [False, True]


# -------------------------------------------------------------------- checks


def _check_alike(layers: list[LayerRows]) -> None:
    first = _example(layers[0].keys)
    kept = any(layer.positions is not None for layer in layers)  # Then lengths differ, and positions say how.
    for index, layer in enumerate(layers):
        for what, rows in (("K", layer.keys), ("V", layer.values)):
            rows, shape = _example(rows), list(_example(rows).shape)
            if what == "V" and shape[-1] != first.shape[-1] and shape[:-1] == list(first.shape)[:-1]:
                raise Unfit(
                    f"V of layer {index} has rows of {shape[-1]} and K of {first.shape[-1]}, as {_MLA} makes them: a file "
                    "has one head_dim for both",
                    Status.UNSUPPORTED,
                )
            same = shape == list(first.shape) if not kept else shape[-1] == first.shape[-1]
            if not same or rows.dtype != first.dtype:
                raise Unfit(
                    f"{what} of layer {index} is {rows.dtype} {shape}, and K of layer 0 is {first.dtype} {list(first.shape)}"
                )


def _check_config(layers: list[LayerRows], config) -> None:
    """What a config contradicts, or load() would never take, is not written."""
    if config is None:
        return
    check_layers(_layers_wanted(config), config.model_type)
    _check_latent(config, config.model_type)
    shape = kv_shape_of(config)
    found = (len(layers), len(layers[0].keys), _example(layers[0].keys).shape[-1])
    if shape is not None and found != shape:
        raise Unfit(
            f"it has {found[0]} layers of {found[1]} KV heads of {found[2]}, and the config ({config.model_type}) says "
            f"{shape[0]} of {shape[1]} of {shape[2]}"
        )


def _check_latent(config, name: str) -> None:
    if is_mla(config):
        raise Unfit(f"{name} has {_MLA}: its K and V differ in width, and a file has one head_dim for both", Status.UNSUPPORTED)


def _layers_wanted(config) -> list:
    """The layers of a cache that transformers makes for this config; none for a model with a cache of its own kind."""
    try:
        return DynamicCache(config=config).layers
    except (AttributeError, TypeError, ValueError, KeyError):
        return []


def _example(rows: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return rows if isinstance(rows, torch.Tensor) else rows[0]


def on_cpu(layer: LayerRows) -> LayerRows:
    def moved(rows):
        return rows.detach().cpu() if isinstance(rows, torch.Tensor) else [each.detach().cpu() for each in rows]

    queries = None if layer.queries is None else moved(layer.queries)
    sinks = None if layer.sink_logits is None else moved(layer.sink_logits).float()
    return LayerRows(moved(layer.keys), moved(layer.values), queries, layer.positions, sinks)
