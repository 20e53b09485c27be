"""vLLM's FLASH_ATTN and TRITON_ATTN, which read lengths and block tables on the device. docs/VLLM.md says what was run.

The KV heads of a layer keep equal numbers of rows here. A captured decode step reads the addresses that it was
captured with, so both results go where they stay: the block table in place, since vLLM fills it anew for every step,
and the lengths, which all groups share, into a buffer of the group's own.
"""

from __future__ import annotations

import torch
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from .backend import Attention, Builder, Layers, computed_tokens


class DeviceBuilder(Builder):
    """Shortens in every step, compacted requests or not: a graph that replays must find this step's lengths."""

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        rows = vllm_config.scheduler_config.max_num_seqs
        # Graphs are padded to their own sizes, which may be above max_num_seqs.
        rows = max([rows, *(vllm_config.compilation_config.cudagraph_capture_sizes or [])])
        self._lengths = torch.zeros(rows, dtype=torch.int32, device=device)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        common, known = common_attn_metadata, self.shortened()
        if known is None:
            return super().build(0, common, fast_build)
        rows = common.num_reqs
        table = common.block_table_tensor[:rows]
        short, lengths = known.shorten(
            table, common.seq_lens[:rows], computed_tokens(common), self.kv_cache_spec.block_size
        )
        table.copy_(short)
        self._lengths[rows:].zero_()
        own = self._lengths[: common.seq_lens.shape[0]]
        own[:rows].copy_(lengths)
        return super().build(0, common.replace(seq_lens=own), fast_build)


class DkvFlashBuilder(DeviceBuilder, FlashAttentionMetadataBuilder):
    supports_update_block_table = False


class DkvFlashImpl(Attention, FlashAttentionImpl):
    pass


class DkvFlashBackend(Layers, FlashAttentionBackend):
    impl, impl_of_vllm = DkvFlashImpl, FlashAttentionImpl

    @staticmethod
    def get_builder_cls():
        return DkvFlashBuilder


class DkvTritonBuilder(DeviceBuilder, TritonAttentionMetadataBuilder):
    supports_draft_decode_metadata_update = False


class DkvTritonImpl(Attention, TritonAttentionImpl):
    pass


class DkvTritonBackend(Layers, TritonAttentionBackend):
    impl, impl_of_vllm = DkvTritonImpl, TritonAttentionImpl

    @staticmethod
    def get_builder_cls():
        return DkvTritonBuilder
