"""dkv for vLLM, unpatched: a running request's KV cache shrinks per layer and per KV head.

    dkvd --policy dynamickv --capacity 512 &
    vllm serve MODEL --no-enable-prefix-caching --kv-transfer-config '{"kv_connector": "DkvConnector", \
        "kv_connector_module_path": "dkv.vllm.connector", "kv_role": "kv_both"}'

After prefill the sidecar decides which rows each KV head keeps. The kept rows move to the request's first blocks, and
the blocks behind them go back to vLLM's pool while the request decodes (docs/VLLM.md).

plugin.py     vLLM's entry point: registers the cache spec and the attention backends
connector.py  the KV connector: vLLM's calls, handed to scheduler.py and worker.py
spec.py       a cache group per layer, and the manager that frees blocks of a running request
backend.py    what the attention backends share; cpu.py and cuda.py have the backends
blocks.py     the arithmetic of shortened block tables
"""
