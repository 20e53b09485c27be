"""A real llama.cpp: saves a text's sequence, goes on from one, prints what came of it as JSON.

    PYTHON tools/formats/llama.py save MODEL TEXT FILE [--keys q8_0] [--values q8_0] [--no-flash] [--own-stream]
    PYTHON tools/formats/llama.py continue MODEL TEXT FILE …

Runs in the environment that tools/formats/install.sh makes: the library is xllamacpp's, its C declarations are those of
llama-cpp-py-sync of the same build. FILE ends in .slot (llama_state_seq_save_file) or .blob (llama_state_seq_get_data).
The text's last 48 tokens are not saved: `continue` says how surprising each of them is (nll), and what greedy decoding
puts behind the saved ones (text).
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy
import xllamacpp
from llama_cpp_py_sync._cffi_bindings import ffi

AHEAD = 48
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
lib = ffi.dlopen(str(next(pathlib.Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))


@ffi.callback("void(enum ggml_log_level, const char*, void*)")
def _quiet(*_):
    pass


class Llama:
    """One context. `own_stream`: four sequences that share no cells; the text's is the third."""

    def __init__(self, options: argparse.Namespace):
        lib.llama_backend_init()
        lib.llama_log_set(_quiet, ffi.NULL)
        loading = lib.llama_model_default_params()
        loading.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(str(options.model).encode(), loading)
        assert self.model != ffi.NULL, f"{options.model} does not load"
        self.vocab = lib.llama_model_get_vocab(self.model)
        made = lib.llama_context_default_params()
        made.n_ctx = options.cells * (4 if options.own_stream else 1)
        made.n_batch = made.n_ctx
        made.n_seq_max = 4 if options.own_stream else 1
        made.kv_unified = not options.own_stream
        made.n_threads = made.n_threads_batch = 1  # Two would spin where there is one core.
        made.type_k, made.type_v = TYPES[options.keys], TYPES[options.values]
        made.flash_attn_type = 0 if options.no_flash else 1
        made.no_perf = True
        self.context = lib.llama_init_from_model(self.model, made)
        assert self.context != ffi.NULL, "no context of these types"
        self.sequence = 2 if options.own_stream else 0

    def tokens(self, text: str) -> list[int]:
        raw = text.encode()
        found = ffi.new("llama_token[]", len(raw) + 8)
        count = lib.llama_tokenize(self.vocab, raw, len(raw), found, len(raw) + 8, True, False)
        return list(found[0:count])

    def words(self, tokens: list[int]) -> str:
        out = ffi.new("char[]", 32 * len(tokens) + 1)
        count = lib.llama_detokenize(self.vocab, tokens, len(tokens), out, 32 * len(tokens), False, False)
        return ffi.string(out, count).decode(errors="replace")

    def decode(self, tokens: list[int], begin: int) -> numpy.ndarray:
        """The logits behind the last of them."""
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, begin + i, 1
            batch.seq_id[i][0], batch.logits[i] = self.sequence, i == len(tokens) - 1
        assert lib.llama_decode(self.context, batch) == 0
        lib.llama_batch_free(batch)
        row = lib.llama_get_logits_ith(self.context, -1)
        count = lib.llama_vocab_n_tokens(self.vocab)
        return numpy.frombuffer(ffi.buffer(row, 4 * count), numpy.float32).astype(numpy.float64)

    def save(self, path: pathlib.Path, tokens: list[int]) -> None:
        if path.suffix == ".slot":
            assert lib.llama_state_seq_save_file(self.context, str(path).encode(), self.sequence, tokens, len(tokens))
            return
        size = lib.llama_state_seq_get_size(self.context, self.sequence)
        state = ffi.new("uint8_t[]", size)
        assert lib.llama_state_seq_get_data(self.context, state, size, self.sequence) == size
        path.write_bytes(ffi.buffer(state))

    def load(self, path: pathlib.Path) -> None:
        if path.suffix == ".slot":
            room, count = ffi.new("llama_token[]", 1 << 16), ffi.new("size_t*")
            assert lib.llama_state_seq_load_file(
                self.context, str(path).encode(), self.sequence, room, 1 << 16, count
            ), f"{path} does not load"
            return
        state = path.read_bytes()
        assert lib.llama_state_seq_set_data(self.context, state, len(state), self.sequence) == len(state)


def surprise(logits: numpy.ndarray, token: int) -> float:
    return float(numpy.logaddexp.reduce(logits) - logits[token])


def go_on(llama: Llama, tokens: list[int], saved: int) -> dict:
    """Over the text's own tokens, then greedily from the same place."""
    total, logits = 0.0, None
    for place in range(saved, len(tokens)):
        logits = llama.decode([tokens[place]], place)
        if place + 1 < len(tokens):
            total += surprise(logits, tokens[place + 1])
    count, said = len(tokens) - saved - 1, []
    for place in range(len(tokens), len(tokens) + 24):
        said.append(int(logits.argmax()))
        logits = llama.decode([said[-1]], place)
    return {"nll": total / count, "text": llama.words(said)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("save", "continue", "forget"))
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--keys", default="f16", choices=TYPES)
    parser.add_argument("--values", default="f16", choices=TYPES)
    parser.add_argument("--no-flash", action="store_true")
    parser.add_argument("--own-stream", action="store_true")
    parser.add_argument("--cells", type=int, default=2048)
    options = parser.parse_args()
    llama = Llama(options)
    tokens = llama.tokens(options.text.read_text(encoding="utf-8"))
    saved = len(tokens) - AHEAD
    if options.what == "continue":
        llama.load(options.file)
    elif options.what == "save":
        llama.decode(tokens[:saved], 0)
        llama.save(options.file, tokens[:saved])
    else:
        llama.decode(tokens[saved - 32 : saved], saved - 32)
    print(json.dumps({"tokens": tokens[:saved], **go_on(llama, tokens, saved)}))


if __name__ == "__main__":
    main()
