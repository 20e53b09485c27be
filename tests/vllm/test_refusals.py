"""What is refused at the start, by name, with what to do: on the configurations that vLLM makes of real arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import transfer
from vllm.engine.arg_utils import EngineArgs

from dkv.vllm import refusals


def config(model, **options):
    defaults = dict(enable_prefix_caching=False, kv_transfer_config=transfer(), enforce_eager=True, max_model_len=512)
    return EngineArgs(model=model, dtype="float32", **{**defaults, **options}).create_engine_config()


def test_what_is_served_is_not_refused(tiny):
    refusals.check(config(tiny))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"enable_prefix_caching": True}, "prefix caching is on.*start vLLM with --no-enable-prefix-caching"),
        ({"disable_hybrid_kv_cache_manager": True}, "remove --disable-hybrid-kv-cache-manager"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative decoding is on.*remove --speculative-config",
        ),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2: only 1 is supported"),
    ],
)
def test_a_configuration_is_refused_by_name(tiny, options, said):
    with pytest.raises(ValueError, match=f"dkv: .*{said}"):
        refusals.check(config(tiny, **options))


def test_what_the_cpu_cannot_be_configured_for_is_refused_by_name(tiny):
    from vllm.config import CUDAGraphMode

    made = config(tiny)
    made.cache_config.cache_dtype = "fp8"
    with pytest.raises(ValueError, match="the KV cache's dtype is fp8, which is not scored yet: use --kv-cache-dtype"):
        refusals.check(made)

    made = config(tiny)
    made.compilation_config.cudagraph_mode = CUDAGraphMode.FULL
    with pytest.raises(ValueError, match="full CUDA graphs of prefill.*FULL_AND_PIECEWISE"):
        refusals.check(made)
    made.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    refusals.check(made)

    made.parallel_config.decode_context_parallel_size = 2
    with pytest.raises(ValueError, match="decode_context_parallel_size is 2: only 1 is supported"):
        refusals.check(made)


def test_an_old_vllm_is_refused_by_its_version(monkeypatch):
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.27.1")
    assert refusals.old_version() == "vLLM 0.27.1 is too old for dkv: install 0.32 or newer"
    monkeypatch.setattr(vllm, "__version__", "0.33.0+cpu")
    assert refusals.old_version() is None


def test_an_engine_does_not_start_with_what_is_refused(tiny):
    program = "from engine import Engine; import sys; Engine(sys.argv[1], 'ipc:///nowhere', enable_prefix_caching=True)"

    done = subprocess.run(
        [sys.executable, "-c", program, tiny],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,  # It imports vLLM, on a machine that is busy.
    )

    assert done.returncode != 0
    assert "dkv: prefix caching is on" in done.stderr
