"""A KV cache group per layer, or per few layers, and the manager that frees blocks of a running request."""

from __future__ import annotations

import dataclasses

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class DkvSpec(FullAttentionSpec):
    """Full attention with a number: vLLM puts layers of unequal specs into groups of their own."""

    dkv_group: int = 0

    @classmethod
    def of(cls, spec: FullAttentionSpec, group: int) -> "DkvSpec":
        fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.init}
        return cls(**fields, dkv_group=group)

    @classmethod
    def merge(cls, specs):
        assert all(spec == specs[0] for spec in specs), "layers of one dkv group have one spec"
        return specs[0]

    def is_uniform_with_collection(self, kv_cache_specs) -> bool:
        return all(spec == self for spec in kv_cache_specs.values())


class DkvManager(FullAttentionManager):
    """Entries of a block table stay at their index and freed ones become null blocks, as with sliding windows: so the
    slots of new tokens, which follow from logical positions, do not change."""

    def drop(self, request_id: str, first: int, last: int) -> int:
        """Frees the blocks first … last - 1 of a request. Returns how many that were."""
        before = self.block_pool.get_num_free_blocks()
        self._remove_blocks_in_range(request_id, first, last)
        return self.block_pool.get_num_free_blocks() - before
