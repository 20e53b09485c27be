"""copy.deepcopy of a cache: transformers' way to use one prefix for several questions.

    cache = dkv.hf.Cache(model, capacity=512)
    model(prefix, past_key_values=cache)
    for question in questions:
        model.generate(torch.cat([prefix, question], 1), past_key_values=copy.deepcopy(cache))
"""

from __future__ import annotations

import copy


class Copyable:
    """A cache whose layers point back to it. A copy goes on alone; rows that do not change any more are shared.

    copy.copy is the same: two caches with the same layers would write into each other's text. pickle is refused.
    """

    def __copy__(self):
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict):
        reason = self._why_not_copied()
        if reason is not None:
            raise RuntimeError(f"the cache cannot be copied: {reason}")
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(self.__dict__)
        twin.layers = [
            layer.copied(twin) if hasattr(layer, "copied") else copy.deepcopy(layer, memo) for layer in self.layers
        ]
        twin._was_copied()
        return twin

    def __reduce_ex__(self, protocol):
        raise TypeError(
            f"a {type(self).__module__}.{type(self).__name__} cannot be pickled, since its rows lie in memory of this "
            "process: use copy.deepcopy in this process, and dkv.hf.save and dkv.hf.load to take a prompt elsewhere"
        )

    def _why_not_copied(self) -> str | None:
        return None

    def _was_copied(self) -> None:
        """On the copy, whose attributes are the original's but for the layers."""
