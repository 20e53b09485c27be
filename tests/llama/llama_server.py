"""llama-server, as xllamacpp has it: unpatched, with some of its program's flags. Ends when stdin does, or by a signal.

    PYTHON tests/llama/llama_server.py -m MODEL -c CELLS [--slot-save-path DIR] [-np N] [--kv-unified] [--port N] …
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

import xllamacpp

TYPES = {"f16": xllamacpp.ggml_type.GGML_TYPE_F16, "q8_0": xllamacpp.ggml_type.GGML_TYPE_Q8_0}

def parameters_of(options: argparse.Namespace) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    if options.slot_save_path:
        parameters.slot_save_path = f"{options.slot_save_path}/"
    if options.api_key:
        parameters.api_keys = [options.api_key]
    parameters.n_ctx, parameters.n_parallel, parameters.kv_unified = options.cells, options.slots, options.kv_unified
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1  # Two would spin where there is one core.
    parameters.port, parameters.n_cache_reuse, parameters.ctx_shift = options.port, options.cache_reuse, options.shift
    parameters.n_gpu_layers, parameters.warmup, parameters.cache_ram_mib, parameters.endpoint_slots = 0, False, 0, True
    parameters.cache_type_k, parameters.cache_type_v = TYPES[options.ctk], TYPES[options.ctv]
    return parameters


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", dest="model", required=True)
    parser.add_argument("-c", dest="cells", type=int, default=4096)
    parser.add_argument("-np", dest="slots", type=int, default=1)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cache-reuse", type=int, default=0)
    parser.add_argument("--no-context-shift", dest="shift", action="store_false")
    parser.add_argument("--kv-unified", action="store_true")
    parser.add_argument("-ctk", choices=TYPES, default="f16")
    parser.add_argument("-ctv", choices=TYPES, default="f16")
    parser.add_argument("--slot-save-path")
    parser.add_argument("--api-key")
    parser.add_argument("--serve", action="store_true", help="until a signal, whatever stdin is")
    options = parser.parse_args()
    server = xllamacpp.Server(parameters_of(options))
    print(server.listening_address, flush=True)
    if options.serve:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        threading.Event().wait()
    sys.stdin.read()


if __name__ == "__main__":
    main()
