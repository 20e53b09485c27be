"""A real llama-server, xllamacpp's: unpatched, one model. Prints its address, ends when stdin does.

    PYTHON tests/llama/llama_server.py MODEL CELLS SLOTS_FOLDER|- [SLOTS]
"""

from __future__ import annotations

import os
import sys

import xllamacpp


def main(model: str, cells: str, folder: str, slots: str = "1") -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    if folder != "-":
        parameters.slot_save_path = f"{folder}/"
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = int(cells), int(slots), 0
    parameters.kv_unified = int(slots) > 1  # Slots share the cells.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1  # Two would spin where there is one core.
    parameters.port, parameters.warmup, parameters.cache_ram_mib, parameters.ctx_shift = 0, False, 0, False
    parameters.endpoint_slots = True
    if key := os.environ.get("TEST_API_KEY"):
        parameters.api_keys = [key]
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
