"""A vLLM whose Triton kernels run in Triton's interpreter: on the CPU, what GPUs run by default.

It has a process of its own, since Triton and vLLM read the environment when they are imported. Tests call interpreted(),
which starts main() there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

RUNNER_V2 = "vllm.v1.worker.gpu.model_runner.GPUModelRunner"
TIMEOUT_S = 900  # A minute on an idle core; a tile of a kernel takes 20 ms.


@dataclasses.dataclass
class Seen:
    """What happened in the other process."""

    runner: list[str]  # The model runner's class and its bases.
    scheduler: str  # Class.
    attention: str  # Class of a layer's AttentionImpl.
    strides: tuple[int, ...]  # Of a layer's KV cache, [blocks, KV heads, block size, 2 · head_dim].
    in_place: bool  # Whether the sidecar reads it there.
    device: str  # Where the sidecar thinks that it is.
    read: list[set[tuple[int, int]]]  # Per layer: addresses of the lengths and block tables that its steps read.
    free: list[int]  # Blocks: before the requests, after each step, and when the worker has heard of all ends.
    preemptions: int
    busy: int  # Prompts and compacted requests that the worker still knows at the end.
    answers: dict  # engine.Answer by name.
    kept: dict  # engine.Kept by name.
    stats: dict


def interpreted(folder: Path, runner: int, requests: list[tuple], **job) -> Seen:
    """Runs requests, each an Engine.add()'s arguments, on vLLM's model runner V1 or V2; `job`: as of _run()."""
    (folder / "job").write_bytes(pickle.dumps({"requests": requests, **job}))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": str(runner - 1),
    }
    words = [sys.executable, "-c", "import interpreted; interpreted.main()", folder]
    with open(folder / "log", "wb") as log:
        done = subprocess.run(words, env=environment, stdout=log, stderr=log, timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"vLLM ended with {done.returncode}: {(folder / 'log').read_text()[-4000:]}")
    return pickle.loads((folder / "seen").read_bytes())


def main() -> None:
    from triton import backends

    # Without a backend for the CPU vLLM does without Triton. The interpreter does not ask for its driver or compiler.
    backends.backends["cpu"] = types.SimpleNamespace(driver=None, compiler=None)
    folder = Path(sys.argv[1])
    seen = _run(**pickle.loads((folder / "job").read_bytes()))
    (folder / "seen").write_bytes(pickle.dumps(seen))


def _run(requests, model: str, endpoint: str, extra: dict, attention=None, **options) -> Seen:
    """attention: called before vLLM starts; says the path of an AttentionBackend instead of the CPU's. extra, options: as
    of Engine."""
    from engine import Engine, async_scheduling
    from vllm.platforms.cpu import CpuPlatform

    if attention is not None:
        backend = attention()
        CpuPlatform.get_attn_backend_cls = classmethod(lambda *_, **__: backend)
    with async_scheduling() if options.get("async_scheduling") else contextlib.nullcontext():
        engine = Engine(model, endpoint, extra, **options)
    read = _watch_addresses(engine.worker)
    free = [engine.free]
    for request in requests:
        engine.add(*request)
    engine.run(lambda engine: free.append(engine.free))
    engine.add("last", [3, 4], 2, "off")  # The worker hears of ends with the next step.
    engine.run()
    worker, layer = engine.worker, next(iter(engine.worker._layers.values()))
    seen = Seen(
        runner=[_name(each) for each in type(_runner(engine)).__mro__],
        scheduler=type(engine.scheduler).__name__,
        attention=_name(type(layer.impl)),
        strides=layer.kv_cache.stride(),
        in_place=worker._pages is not None,
        device=worker._place.device,
        read=read,
        free=[*free, engine.free],
        preemptions=engine.preemptions,
        busy=len(worker.prompts) + sum(len(group.shortened) for group in worker._groups),
        answers=engine.answers,
        kept=engine.kept,
        stats=dict(engine.stats),
    )
    engine.close()
    return seen


def _watch_addresses(worker) -> list[set[tuple[int, int]]]:
    def watched(layer) -> set[tuple[int, int]]:
        usual, seen = layer.impl.forward, set()

        def forward(layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs):
            seen.add((attn_metadata.seq_lens.data_ptr(), attn_metadata.block_table.data_ptr()))
            return usual(layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs)

        layer.impl.forward = forward
        return seen

    return [watched(layer) for layer in worker._layers.values()]


def _runner(engine):
    return engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
