"""Where transformers looks up an attention function, dkv's layers come first.

A model keeps its attention implementation, its masks and its outputs. The function that it looks up is asked as
ever, unless the keys are the rows of one of our cache's layers: then that layer is asked (`attend`). So any number
of models and threads may run beside a dkv cache, and nothing has to be put back when the cache is gone.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable

import torch

_GIVEN = ("module", "query", "key", "value", "attention_mask")


@dataclasses.dataclass
class Call:
    """One call of a model's own attention function, not made yet."""

    own: Callable
    arguments: tuple
    options: dict
    module: torch.nn.Module = None
    query: torch.Tensor = None  # [b, Hq, q, D]
    key: torch.Tensor = None  # [b, Hkv, n, D]
    value: torch.Tensor = None
    mask: object = None
    named: dict = None  # What came besides these five.

    def __post_init__(self):
        given = dict(zip(_GIVEN, self.arguments)) | self.options
        self.module, self.query, self.key, self.value = (given.get(name) for name in _GIVEN[:4])
        self.mask = given.get("attention_mask")
        self.named = {name: value for name, value in self.options.items() if name not in _GIVEN}

    @property
    def scaling(self) -> float | None:
        return self.named.get("scaling")

    @property
    def softcap(self) -> float | None:
        return self.named.get("softcap") or None

    @property
    def sinks(self) -> torch.Tensor | None:
        """[Hq]: a logit of each head in the softmax's sum, without a value."""
        return self.named.get("s_aux")

    def run(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the model's own function returns: [b, q, Hq, Dv], and the weights where it has them."""
        return self.own(*self.arguments, **self.options)


def mark(rows: torch.Tensor, layer) -> torch.Tensor:
    """Makes `rows`, as keys, known as this layer's."""
    rows._dkv_layer = weakref.ref(layer)  # Not the layer itself: that would be a cycle.
    return rows


def stand_in_front(model: torch.nn.Module) -> None:
    """Once per process for the functions that are looked up by name, and per model file for those called "eager"."""
    _patch_lookup()
    for kind in {type(module) for module in model.modules()}:
        names = getattr(inspect.unwrap(kind.forward), "__globals__", {})
        if "eager_attention_forward" in names:  # Files in the style of transformers 4 call it without a lookup.
            names["eager_attention_forward"] = _fronted(names["eager_attention_forward"])


@functools.lru_cache(maxsize=1)
def _patch_lookup() -> None:
    from transformers import AttentionInterface

    item = AttentionInterface.__getitem__
    AttentionInterface.__getitem__ = functools.wraps(item)(lambda self, name: _fronted(item(self, name)))
    lookup = getattr(AttentionInterface, "get_interface", None)
    if lookup is not None:  # Since transformers 5, which also asks it for a default.
        AttentionInterface.get_interface = functools.wraps(lookup)(
            lambda self, *args, **kwargs: _fronted(lookup(self, *args, **kwargs))
        )


_fronts: dict[Callable, Callable] = {}


def _fronted(own: Callable) -> Callable:
    """`own` with our layers in front of it; always the same one for the same function."""
    if torch.compiler.is_compiling() or not callable(own) or hasattr(own, "_dkv_own"):
        return own
    if own not in _fronts:

        @functools.wraps(own)
        def attention(*args, **kwargs):
            key = args[2] if len(args) > 2 else kwargs.get("key")
            layer = getattr(key, "_dkv_layer", None)
            layer = layer and layer()
            return own(*args, **kwargs) if layer is None else layer.attend(Call(own, args, kwargs))

        attention._dkv_own = own
        _fronts[own] = attention
    return _fronts[own]
