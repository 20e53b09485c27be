"""A real llama-server (xllamacpp's) with a folder for slots: prints its address, ends when stdin does.

    PYTHON tools/formats/llama_server.py MODEL SLOTS CELLS
"""

from __future__ import annotations

import sys

import xllamacpp


def main(model: str, slots: str, cells: str) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.slot_save_path = f"{slots}/"
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = int(cells), 1, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
    parameters.port, parameters.warmup, parameters.cache_ram_mib, parameters.ctx_shift = 0, False, 0, False
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
