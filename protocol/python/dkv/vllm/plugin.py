"""`vllm.general_plugins`: vLLM calls register() in the front end, the engine core and every worker.

All of it is inert until the connector is configured: the backends then hand out vLLM's own classes.
"""

from __future__ import annotations


def register() -> None:
    from . import refusals

    if refusals.old_version() is not None:
        return  # Only the connector says so: a vLLM without it works as before.
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
    from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

    from .spec import DkvManager, DkvSpec

    register_all_kvcache_specs(None)  # The registry fills itself only while it is empty.
    KVCacheSpecRegistry.register(DkvSpec, DkvManager, uniform_type_base_spec=DkvSpec)
    for name, path in refusals.BACKENDS.items():
        register_backend(AttentionBackendEnum[name], path)
