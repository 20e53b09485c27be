"""Configurations that dkv does not serve, refused when the engine starts: by name, with what to do."""

from __future__ import annotations

OLDEST = (0, 32)
# Attention backends of vLLM that dkv has its own form of.
BACKENDS = {
    "CPU_ATTN": "dkv.vllm.cpu.DkvCpuBackend",
    "FLASH_ATTN": "dkv.vllm.cuda.DkvFlashBackend",
    "TRITON_ATTN": "dkv.vllm.cuda.DkvTritonBackend",
}


def old_version() -> str | None:
    import vllm

    try:
        found = tuple(int(part) for part in vllm.__version__.split(".")[:2])
    except ValueError:  # A development build: its hooks are looked up as they are needed.
        return None
    if found >= OLDEST:
        return None
    return f"vLLM {vllm.__version__} is too old for dkv: install {OLDEST[0]}.{OLDEST[1]} or newer"


def check(config) -> None:
    """Raises ValueError for a VllmConfig that dkv does not serve."""
    for wrong in (_cache(config), _parallel(config), _engine(config)):
        if wrong:
            raise ValueError(f"dkv: {wrong}")


def _cache(config) -> str | None:
    cache = config.cache_config
    if cache.enable_prefix_caching:
        return (
            "prefix caching is on, and compaction would spoil the blocks that requests share: "
            "start vLLM with --no-enable-prefix-caching"
        )
    if str(cache.cache_dtype) not in ("auto", "float16", "bfloat16", "float32"):
        return f"the KV cache's dtype is {cache.cache_dtype}, which is not scored yet: use --kv-cache-dtype auto"
    if config.scheduler_config.disable_hybrid_kv_cache_manager:
        return "layers need block tables of their own: remove --disable-hybrid-kv-cache-manager"
    if config.kv_events_config is not None and config.kv_events_config.enable_kv_cache_events:
        return "KV cache events would name blocks that were compacted: remove --kv-events-config"
    return None


def _parallel(config) -> str | None:
    parallel = config.parallel_config
    for name, option in (
        ("pipeline_parallel_size", "--pipeline-parallel-size"),
        ("decode_context_parallel_size", "--decode-context-parallel-size"),
        ("prefill_context_parallel_size", "--prefill-context-parallel-size"),
    ):
        size = getattr(parallel, name, 1)
        if size > 1:
            return f"{name} is {size}: only 1 is supported; remove {option}"
    if parallel.use_ubatching:
        return "dual batch overlap splits the batch that dkv looks at: remove --enable-dbo"
    return None


def _engine(config) -> str | None:
    from vllm.config import CUDAGraphMode

    if config.speculative_config is not None:
        return "speculative decoding is on, whose draft layers have no plan: remove --speculative-config"
    mode = config.compilation_config.cudagraph_mode
    if mode is not None and mode.mixed_mode() == CUDAGraphMode.FULL:
        return (
            "full CUDA graphs of prefill hide K and V from dkv: "
            "use --compilation-config '{\"cudagraph_mode\": \"FULL_AND_PIECEWISE\"}'"
        )
    return None


def check_groups(config, groups) -> None:
    """Raises ValueError when no cache group is dkv's. `groups` is the KVCacheConfig's."""
    from .spec import DkvSpec

    if any(isinstance(group.kv_cache_spec, DkvSpec) for group in groups):
        return
    chosen = config.attention_config.backend
    raise ValueError(
        f"dkv: no layer can be compressed: its attention backend ({chosen.name if chosen else 'automatic'}) is not one "
        f"of {', '.join(BACKENDS)} (choose one with --attention-backend), or the model has only sliding windows, or "
        "DkvConnector runs inside another connector (configure it alone)"
    )


def check_layers(layers: dict) -> None:
    """Raises ValueError for attention layers, by name, that one geometry and the sidecar's scores do not describe."""
    for name, layer in layers.items():
        if layer.kv_sharing_target_layer_name is not None:
            raise ValueError(f"dkv: {name} shares the KV cache of another layer, which is not supported: run without dkv")
        if getattr(layer.impl, "alibi_slopes", None) is not None:
            raise ValueError(f"dkv: {name} has ALiBi slopes, which the sidecar does not score: run without dkv")
        if layer.head_size != layer.head_size_v:
            raise ValueError(
                f"dkv: {name} has keys of {layer.head_size} dims and values of {layer.head_size_v}, "
                "which is not supported: run without dkv"
            )
    shapes = sorted({(each.num_heads, each.num_kv_heads, each.head_size) for each in layers.values()})
    if len(shapes) > 1:
        raise ValueError(f"dkv: layers differ in (query heads, KV heads, head_dim): {shapes}: run without dkv")
