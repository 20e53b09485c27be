"""What the attention backends share: their classes are vLLM's own, with a look at K, V and queries, and a shorter read."""

from __future__ import annotations

import torch
from vllm.config import get_current_vllm_config_or_none

from . import refusals
from .blocks import Shortened
from .process import compressible, process
from .settings import configured
from .spec import DkvSpec


class Layers:
    """Mixed into an AttentionBackend: gives its layers groups of their own where dkv is configured."""

    impl: type
    impl_of_vllm: type

    @classmethod
    def get_impl_cls(cls):
        """Called once per attention layer while the model is made, so refusals come before its weights are read."""
        config = get_current_vllm_config_or_none()
        if not configured(config):
            return cls.impl_of_vllm
        refusals.check(config)
        process.begin(config)
        return cls.impl

    @classmethod
    def customize_spec(cls, spec):
        spec = super().customize_spec(spec)
        if not compressible(spec) or not process.find_layers():
            return spec
        return DkvSpec.of(spec, process.next_group())


class Attention:
    """Mixed into an AttentionImpl."""

    heads_apart = False  # Whether each KV head may keep its own number of rows.

    @staticmethod
    def rows_in(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of keys and values in pages [blocks, heads, block, 2 · D], [blocks, heads, block, D] each."""
        return kv_cache.chunk(2, dim=-1)

    @staticmethod
    def look(layer, query, key, value, attn_metadata) -> None:
        """Prefill passes here in Python, in eager mode and between the pieces of a CUDA graph."""
        if attn_metadata is not None and process.worker is not None:
            process.worker.take(layer.layer_name, query, key, value, attn_metadata)

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs):
        self.look(layer, query, key, value, attn_metadata)
        return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)


class Builder:
    """Mixed into an AttentionMetadataBuilder. One builder serves one group."""

    supports_update_block_table = False  # Else vLLM reuses one group's metadata for another of an equal spec.
    supports_draft_decode_metadata_update = False

    def shortened(self) -> Shortened | None:
        """None: not a group of dkv's, or nothing was compacted yet."""
        if process.worker is None or not isinstance(self.kv_cache_spec, DkvSpec):
            return None
        return process.worker.shortened(self.layer_names[0])

    def use_cascade_attention(self, *args, **kwargs) -> bool:
        return False  # It would read a common prefix by the old block table.


def computed_tokens(common) -> torch.Tensor:
    """Tokens before this step's, for each row of a CommonAttentionMetadata."""
    rows = common.num_reqs
    return common.seq_lens[:rows] - (common.query_start_loc[1 : rows + 1] - common.query_start_loc[:rows])
