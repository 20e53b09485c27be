"""dkv against a real mlx-lm, of both generations of its prompt caches: read, compacted, written back, gone on from.

    make test-formats
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest
import torch
from conftest import OLDER, PYTHON, dkv

PROGRAM = pathlib.Path(__file__).with_name("prompt_cache.py")
PROMPT, TRIMMED = 300, 40  # Rows are kept with room up to 512.
FORMATS = {"0.32": "mlx-lm", "0.31": "mlx-lm@0.31"}
KEPT = ("--policy", "keydiff", "--capacity", "96", "--window", "8")


class Mlx:
    """One generation of mlx-lm and the tiny model that it runs."""

    def __init__(self, generation: str, folder: pathlib.Path):
        self.generation, self.folder = generation, folder
        self._environment = os.environ | {"PYTHONPATH": str(OLDER) if generation == "0.31" else "", "HF_HUB_OFFLINE": "1"}

    def _run(self, what: str, *arguments: object) -> dict:
        command = [PYTHON, PROGRAM, what, self.folder / "model", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def save(self, path: pathlib.Path, trim: int = 0) -> dict:
        return self._run("save", self.folder / "prompt.json", path, "--trim", trim)

    def prune(self, path: pathlib.Path, kept: pathlib.Path, out: pathlib.Path) -> dict:
        return self._run("prune", path, kept, out)

    def go_on(self, path: pathlib.Path) -> dict:
        return self._run("continue", self.folder / "question.json", path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A model of random weights, a prompt and a question."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("mlx")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, initializer_range=0.2, rope_theta=20000.0, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    ids = torch.randint(2, 256, (PROMPT + 8,), generator=torch.Generator().manual_seed(1)).tolist()
    (folder / "prompt.json").write_text(json.dumps(ids[:PROMPT]))
    (folder / "question.json").write_text(json.dumps(ids[PROMPT:]))
    return folder


@pytest.fixture(scope="module", params=sorted(FORMATS))
def mlx(request, folder) -> Mlx:
    return Mlx(request.param, folder)


@pytest.fixture(scope="module")
def saved(mlx, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("saved") / "prompt.safetensors"
    assert mlx.save(path)["version"].startswith(mlx.generation)
    return path


@pytest.fixture
def theta(folder) -> tuple[str, str]:
    config = json.loads((folder / "model/config.json").read_text())
    return "--rope-theta", str((config.get("rope_parameters") or config)["rope_theta"])


def test_a_prompt_cache_has_its_tokens_and_not_the_room_behind_them(saved):
    assert f"{PROMPT} tokens" in dkv("inspect", saved)


def test_a_cache_that_is_written_back_whole_goes_on_as_the_original(mlx, saved, tmp_path):
    dkv("convert", saved, "-o", tmp_path / "back.safetensors")

    expected, found = mlx.go_on(saved), mlx.go_on(tmp_path / "back.safetensors")
    assert found["answer"] == expected["answer"] and found["held"] == [PROMPT] * 3
    assert found["words"]["model"] == "tiny"


def test_tokens_that_mlx_lm_took_back_are_no_part_of_the_cache(mlx, saved, tmp_path):
    mlx.save(tmp_path / "trimmed.safetensors", trim=TRIMMED)

    dkv("convert", tmp_path / "trimmed.safetensors", "-o", tmp_path / "back.safetensors")

    assert f"{PROMPT} tokens" in dkv("inspect", tmp_path / "trimmed.safetensors")
    assert mlx.go_on(tmp_path / "back.safetensors")["answer"] == mlx.go_on(saved)["answer"]


def test_a_compacted_cache_goes_on_as_one_that_is_pruned_without_dkv(mlx, saved, theta, tmp_path):
    small, kept, pruned = (tmp_path / f"{name}.safetensors" for name in ("small", "kept", "pruned"))
    dkv("compact", saved, "-o", kept, "--format", "dkv", *KEPT, *theta)
    dkv("compact", saved, "-o", small, *KEPT, *theta)
    mlx.prune(saved, kept, pruned)

    expected, found = mlx.go_on(pruned), mlx.go_on(small)

    assert found["held"] == [96] * 3 and found["answer"] == expected["answer"]
    assert found["answer"] != mlx.go_on(saved)["answer"]  # Else nothing was pruned that mattered.


def test_each_generation_reads_what_dkv_writes_for_it(mlx, saved, theta, tmp_path):
    for generation, form in FORMATS.items():
        path = tmp_path / f"{generation}.safetensors"
        dkv("compact", saved, "-o", path, "--format", form, *KEPT, *theta)
        assert Mlx(generation, mlx.folder).go_on(path)["held"] == [96] * 3
