"""vLLM's CPU_ATTN, which can also read KV heads of unequal length."""

from __future__ import annotations

import dataclasses

import torch
from vllm import _custom_ops as ops
from vllm import envs
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from .backend import Attention, Builder, Layers, computed_tokens
from .blocks import by_head


@dataclasses.dataclass
class HeadsMetadata(CPUAttentionMetadata):
    """A batch in which every KV head of every request is a sequence of its own, with one KV head."""

    pages: torch.Tensor | None = None  # [rows · heads, width] page numbers: block · heads + head.
    lengths: torch.Tensor | None = None  # [rows · heads]
    starts: torch.Tensor | None = None  # [rows · heads + 1] of the sequences' queries.
    token: torch.Tensor | None = None  # Of each query of a head: its token …
    head: torch.Tensor | None = None  # … and its KV head.
    schedule: torch.Tensor | None = None


class DkvCpuBuilder(Builder, CPUAttentionMetadataBuilder):
    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        common, known = common_attn_metadata, self.shortened()
        if not known:
            return super().build(common_prefix_len, common, fast_build)
        block = self.kv_cache_spec.block_size
        rows, computed = common.num_reqs, computed_tokens(common)
        table, lengths = known.shorten(common.block_table_tensor[:rows], common.seq_lens[:rows], computed, block)
        metadata = super().build(
            common_prefix_len,
            common.replace(block_table_tensor=table, seq_lens=lengths, max_seq_len=int(lengths.max())),
            fast_build,
        )
        if not known.heads:
            return metadata
        pages, lengths = by_head(table, lengths, computed, block, self.num_kv_heads, known.heads)
        return self._of_heads(metadata, pages, lengths, common.query_start_loc[: rows + 1])

    def _of_heads(self, metadata, pages, lengths, starts) -> HeadsMetadata:
        heads, begins = self.num_kv_heads, starts[:-1]
        counts = starts[1:] - begins
        token = torch.cat(
            [torch.arange(begin, begin + count).repeat(heads) for begin, count in zip(begins.tolist(), counts.tolist())]
        )
        head = torch.arange(heads).repeat(len(counts)).repeat_interleave(counts.repeat_interleave(heads))
        of_heads = torch.zeros(len(counts) * heads + 1, dtype=torch.int32)
        of_heads[1:] = counts.repeat_interleave(heads).cumsum(0)
        schedule = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(lengths),
            num_heads=self.num_heads // heads,
            num_kv_heads=1,
            head_dim=self.head_dim,
            seq_lens=lengths,
            dtype=self.dtype,
            query_start_loc=of_heads,
            causal=True,
            sliding_window_size=self.window_size,
            isa=self.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
            dynamic_causal=None,
            kv_cache_dtype=self.kv_cache_dtype,
        )
        return HeadsMetadata(
            **vars(metadata), pages=pages, lengths=lengths, starts=of_heads, token=token, head=head, schedule=schedule
        )


class DkvCpuImpl(Attention, CPUAttentionBackendImpl):
    heads_apart = True

    @staticmethod
    def rows_in(kv_cache):
        """Keys lie in each head's page as [D, block], and its values behind them."""
        blocks, heads, block, width = kv_cache.shape
        keys, values = kv_cache.view(blocks, heads, 2, -1).unbind(2)
        return keys.view(blocks, heads, width // 2, block).mT, values.view(blocks, heads, block, width // 2)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.sinks is not None:
            self.heads_apart = False  # The kernel takes the sinks of all query heads, not of one KV head's.

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs):
        if not isinstance(attn_metadata, HeadsMetadata):
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        self.look(layer, query, key, value, attn_metadata)
        return self._of_heads(layer, query, kv_cache, attn_metadata, output)

    def _of_heads(self, layer, query, kv_cache, metadata: HeadsMetadata, output):
        blocks, heads, block, width = kv_cache.shape
        keys, values = kv_cache.view(blocks * heads, 1, 2 * block, width // 2).chunk(2, dim=2)
        count, at = metadata.num_actual_tokens, (metadata.token, metadata.head)
        mine = query[:count].view(count, heads, -1, self.head_size)[at].contiguous()
        out = torch.empty_like(mine)
        ops.cpu_attention_with_kv_cache(
            query=mine,
            key_cache=keys,
            value_cache=values,
            output=out,
            query_start_loc=metadata.starts,
            seq_lens=metadata.lengths,
            scale=self.scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=self.sliding_window,
            block_table=metadata.pages,
            softcap=self.logits_soft_cap,
            scheduler_metadata=metadata.schedule,
            s_aux=None,
            dynamic_causal=None,
            k_scale=layer._k_scale_float,
            v_scale=layer._v_scale_float,
            kv_cache_dtype=self.kv_cache_dtype,
        )
        output[:count].view(count, heads, -1, self.head_size)[at] = out
        return output


class DkvCpuBackend(Layers, CPUAttentionBackend):
    impl, impl_of_vllm = DkvCpuImpl, CPUAttentionBackendImpl

    @staticmethod
    def get_builder_cls():
        return DkvCpuBuilder
