"""Saved prompts: what is written, and what `dkv diff` makes of it."""

import json
import subprocess

import pytest
import torch
from processes import program

import dkv.hf


@pytest.fixture
def saved(tiny_llama, prompt, tmp_path):
    def make(tokens=300, **options):
        path = tmp_path / "prompt.safetensors"
        dkv.hf.save(tiny_llama, prompt(tokens), path, **options)
        return path

    return make


def test_the_whole_cache_is_written_with_the_last_queries(tiny_llama, prompt, saved):
    from safetensors import safe_open

    path = saved(queries=8)

    with torch.no_grad():
        cache = tiny_llama(prompt(300)).past_key_values
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "dkv", "version": "1", "model": "LlamaForCausalLM", "n_prompt": "300"}
        assert len(file.keys()) == 3 * 4
        for index, layer in enumerate(cache.layers):
            torch.testing.assert_close(file.get_tensor(f"layers.{index}.keys"), layer.keys[0])
            torch.testing.assert_close(file.get_tensor(f"layers.{index}.values"), layer.values[0])
            assert file.get_tensor(f"layers.{index}.q_window").shape == (6, 8, 16)
    assert tiny_llama.config._attn_implementation == "sdpa"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_one_prompt_is_saved_at_a_time(tiny_llama, prompt, tmp_path):
    with pytest.raises(ValueError, match=r"tokens are \[2, 9\], not \[1, n\]"):
        dkv.hf.save(tiny_llama, prompt(9).expand(2, -1), tmp_path / "x")


def run_dkv(*arguments):
    return subprocess.run([program("dkv"), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.e2e
def test_diff_says_where_the_native_policy_and_the_release_differ(saved):
    found = run_dkv("diff", saved(), "--policy", "dynamickv", "--against", "dynamickv-ref", "--capacity", 64, "--json")

    assert found.returncode == 0, found.stderr
    diff = json.loads(found.stdout)
    assert diff["total"]["a"]["entries"] == 64 * 4 * 2 and diff["total"]["a"]["duplicates"] == 0
    assert diff["a"]["heads_stored"] == 2 and diff["b"]["heads_stored"] == 6
    for layer in [*diff["layers"], diff["total"]]:
        assert layer["shared"] + layer["a"]["only_here"] == 3 * layer["a"]["entries"]
        assert layer["shared"] + layer["b"]["only_here"] + layer["b"]["duplicates"] == layer["b"]["entries"]
        assert 0 < layer["a"]["mass_kept"] <= 1


@pytest.mark.e2e
@pytest.mark.parametrize(
    "form", ["dynamickv-ref", "snapkv-ref", "pyramidkv-ref", "streamingllm-ref", "snapkv-kvpress", "h2o-kvpress"]
)
def test_every_reference_form_runs_from_the_shell(saved, form):
    native = form.split("-")[0]
    found = run_dkv("diff", saved(queries=None), "--policy", native, "--against", form, "--capacity", 64)

    assert found.returncode == 0, found.stderr
    assert f"A {native}: " in found.stdout and f"B {form}: " in found.stdout


@pytest.mark.e2e
def test_what_cannot_be_compared_is_refused_in_one_line(saved, tmp_path):
    def error(*arguments):
        ran = run_dkv("diff", *arguments)
        assert ran.returncode == 1 and ran.stdout == ""
        return ran.stderr

    path = saved(queries=32)
    needs = "dkv: h2o needs the queries of the last 300 tokens, and the file has 32\n"
    assert error(path, "--policy", "h2o", "--against", "snapkv", "--capacity", 64) == needs
    assert error(tmp_path / "none", "--against", "snapkv") == f"dkv: {tmp_path}/none: No such file or directory\n"
    path.write_bytes(path.read_bytes()[:1000])
    assert error(path, "--against", "snapkv").startswith(f"dkv: {path}: the header is said to have")
