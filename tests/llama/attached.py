"""A real llama.cpp with dkv attached: runs commands from stdin, one JSON a line, and answers each with one.

    PYTHON tests/llama/attached.py MODEL ENDPOINT

Needs xllamacpp's library, and the C declarations of llama-cpp-py-sync of the same build.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import pathlib
import sys
import time

import numpy
import xllamacpp
from llama_cpp_py_sync._cffi_bindings import ffi

import dkv
import dkv.llama

PATH = str(next(pathlib.Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")))
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
lib = ffi.dlopen(PATH)


@ffi.callback("void(enum ggml_log_level, const char*, void*)")
def _quiet(*_):
    pass


def _memory(name: str) -> int:
    """Bytes. Pss_Anon is the process's own: pages of files come and go with what else runs."""
    for line in pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


class Said(logging.Handler):
    """The log's lines since they were last taken."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record) -> None:
        self.lines.append(record.getMessage())

    def take(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken


said = Said()


class Engine:
    def __init__(self, model: str, endpoint: str):
        lib.llama_backend_init()
        lib.llama_log_set(_quiet, ffi.NULL)
        loading = lib.llama_model_default_params()
        loading.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(model.encode(), loading)
        assert self.model != ffi.NULL
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.endpoint = endpoint
        self.context, self.watch = ffi.NULL, None
        self.asked = 0

    def _params(self, options: dict):
        made = lib.llama_context_default_params()
        made.n_ctx = options.get("cells", 2048)
        made.n_batch, made.n_ubatch = options.get("batch", 2048), options.get("ubatch", 512)
        made.n_seq_max = options.get("sequences", 1)
        made.kv_unified = options.get("unified", True)
        made.n_threads = made.n_threads_batch = 1
        made.type_k = TYPES[options.get("keys", "f16")]
        made.type_v = TYPES[options.get("values", "f16")]
        made.flash_attn_type = int(options.get("flash", True))
        made.swa_full = options.get("swa_full", False)
        made.no_perf = True
        return made

    def _make(self, params):
        context = lib.llama_init_from_model(self.model, params)
        assert context != ffi.NULL
        return context

    def open(self, options: dict) -> dict:
        """A new context; `plain`: without dkv, `chained`: with a callback of its own."""
        self.close({})
        params = self._params(options)
        if options.get("chained"):
            self._own = ffi.callback("bool(struct ggml_tensor*, bool, void*)", self._count)
            params.cb_eval = self._own
        if options.get("load"):
            ctypes.CDLL(options["library"])
        if not options.get("plain"):
            self.watch = dkv.llama.Watch(
                self._as_ctypes(params) if options.get("ctypes") else params,
                library=options.get("library", PATH),
                endpoint=self.endpoint,
                model="SmolLM2",
                timeout_s=options.get("timeout_s", 10),
                window_max=options.get("window_max", 64),
            )
        if options.get("ctypes"):
            self._from_ctypes(params)
        self.context = self._make(params)
        if self.watch:
            self.watch.attach(self.context)
        return {}

    def _as_ctypes(self, params):
        """The two fields as llama-cpp-python has them."""
        callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)

        class Params(ctypes.Structure):
            _fields_ = [("cb_eval", callback), ("cb_eval_user_data", ctypes.c_void_p)]

        self._twin = Params(callback(int(ffi.cast("uintptr_t", params.cb_eval))))
        return self._twin

    def _from_ctypes(self, params) -> None:
        address = ctypes.cast(self._twin.cb_eval, ctypes.c_void_p).value
        params.cb_eval = ffi.cast("ggml_backend_sched_eval_callback", address)
        params.cb_eval_user_data = ffi.cast("void *", self._twin.cb_eval_user_data)

    def _count(self, _tensor, ask, _data) -> bool:
        self.asked += ask
        return False

    def close(self, _options: dict) -> dict:
        if self.context != ffi.NULL:
            lib.llama_free(self.context)
            self.context = ffi.NULL
        if self.watch:
            self.watch.close()
            self.watch = None
        return {}

    def tokens(self, options: dict) -> dict:
        raw = options["text"].encode()
        found = ffi.new("llama_token[]", len(raw) + 8)
        return {"tokens": list(found[0 : lib.llama_tokenize(self.vocab, raw, len(raw), found, len(raw) + 8, True, True)])}

    def _decode(self, tokens: list[int], begin: int, sequence: int = 0, context=None) -> numpy.ndarray:
        context = context or self.context
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, begin + i, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, i == len(tokens) - 1
        assert lib.llama_decode(context, batch) == 0
        lib.llama_batch_free(batch)
        count = lib.llama_vocab_n_tokens(self.vocab)
        return numpy.frombuffer(ffi.buffer(lib.llama_get_logits_ith(context, -1), 4 * count), numpy.float32).copy()

    def race(self, options: dict) -> dict:
        """A prompt, part by part, in this context and in one without dkv: CPU seconds of each part, in each."""
        tokens, chunk = options["tokens"], options["chunk"]
        plain = self._make(self._params(options))
        seconds = {"attached": [], "plain": []}
        self.watch.begin()
        for at in range(0, len(tokens), chunk):
            racers = [("attached", self.context), ("plain", plain)]
            for name, context in racers if at // chunk % 2 else racers[::-1]:
                begun = time.process_time()
                self._decode(tokens[at : at + chunk], at, 0, context)
                seconds[name].append(time.process_time() - begun)
        lib.llama_free(plain)
        return seconds

    def prefill(self, options: dict) -> dict:
        """A prompt, or the rest of it from a position."""
        tokens, chunk, sequence = options["tokens"], options.get("chunk", 1 << 20), options.get("sequence", 0)
        place = options.get("position", 0)
        if self.watch and options.get("begin", True):
            self.watch.begin(sequence)
        for at in range(0, len(tokens), chunk):
            logits = self._decode(tokens[at : at + chunk], place + at, sequence)
        return {"next": int(logits.argmax())}

    def compress(self, options: dict) -> dict:
        """Into the same context, or one of `room` cells, which has `held` as sequence 1, that replaces it."""
        policy = dkv.Policy(**options["policy"]) if "policy" in options else None
        target = None
        if "room" in options:
            target = self._make(self._params({**options, "cells": options["room"]}))
        if "held" in options:
            self._decode(options["held"], 0, 1, target)
        before = _memory("Pss_Anon")
        begun = time.process_time()
        report = self.watch.compress(policy, target)
        seconds = time.process_time() - begun
        peak = _memory("Pss_Anon")
        if report.compressed and target is not None:
            self.old, self.context = self.context, target
            lib.llama_free(self.old)
            gc.collect()
            after = _memory("Pss_Anon")
            self.watch.adopted(max(0, before - after), peak, after)
        elif target is not None:
            lib.llama_free(target)
        return {**vars(report), "pss": [before, peak, _memory("Pss_Anon")], "cpu_seconds": seconds, "logged": said.take()}

    def positions(self, options: dict) -> dict:
        return {"positions": [[self.watch.positions(la, h) for h in range(options["heads"])] for la in options["layers"]]}

    def go_on(self, options: dict) -> dict:
        """Decodes `tokens` from a position, then `count` greedy ones; the logits behind `tokens`."""
        place, said, sequence = options["position"], [], options.get("sequence", 0)
        logits = self._decode(options["tokens"], place, sequence)
        first, place = logits, place + len(options["tokens"])
        for _ in range(options.get("count", 0)):
            said.append(int(logits.argmax()))
            if said[-1] == lib.llama_vocab_eos(self.vocab):
                break
            logits, place = self._decode([said[-1]], place, sequence), place + 1
        words = ffi.new("char[]", 32 * len(said) + 32)
        length = lib.llama_detokenize(self.vocab, said, len(said), words, 32 * len(said) + 31, False, False)
        out = {"tokens": said, "text": ffi.string(words, length).decode(errors="replace"), "asked": self.asked}
        return {**out, "logits": first.tolist()} if options.get("logits") else out

    def forget(self, options: dict) -> dict:
        cells = options.get("begin", -1), options.get("end", -1)
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), options.get("sequence", -1), *cells)
        return {}


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("dkv.llama").setLevel(logging.INFO)
    logging.getLogger("dkv.llama").addHandler(said)
    engine = Engine(sys.argv[1], sys.argv[2])
    for line in sys.stdin:
        options = json.loads(line)
        try:
            answer = getattr(engine, options.pop("do"))(options)
        except dkv.DkvError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
