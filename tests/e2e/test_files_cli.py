"""The commands that work on saved caches, as programs: good files, bad ones, full disks, Ctrl-C."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess

import numpy as np
import pytest
from processes import program, waited_for

LAYERS, KV_HEADS, Q_HEADS, DIM, WINDOW = 4, 2, 4, 16, 8


def write_cache(path, tokens=300, seed=1, layers=LAYERS, dim=DIM):
    """dkv's layout by hand: a header of JSON, then the tensors."""
    random = np.random.default_rng(seed)
    header, offset, tensors = {}, 0, []
    header["__metadata__"] = {"format": "dkv", "version": "1", "model": "made up", "n_prompt": str(tokens)}
    for layer in range(layers):
        for part, shape in (
            ("keys", (KV_HEADS, tokens, dim)),
            ("values", (KV_HEADS, tokens, dim)),
            ("q_window", (Q_HEADS, WINDOW, dim)),
        ):
            tensor = random.standard_normal(shape, dtype=np.float32)
            header[f"layers.{layer}.{part}"] = {
                "dtype": "F32",
                "shape": list(shape),
                "data_offsets": [offset, offset + tensor.nbytes],
            }
            offset += tensor.nbytes
            tensors.append(tensor)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.tobytes())
    return path


def dkv(*arguments, **options):
    return subprocess.run(
        [program("dkv"), *map(str, arguments)], capture_output=True, text=True, timeout=120, **options
    )


def refusal(*arguments, code=1, **options) -> str:
    """The one line that a failure is."""
    ran = dkv(*arguments, **options)
    assert ran.returncode == code, ran
    assert ran.stderr.startswith("dkv: ") and ran.stderr.count("\n") == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr


@pytest.fixture
def cache(tmp_path):
    return write_cache(tmp_path / "in.safetensors")


POLICY = ["--policy", "dynamickv", "--capacity", "64", "--window", "8"]


def test_a_cache_goes_through_every_command(cache, tmp_path):
    small = tmp_path / "small.safetensors"
    before = cache.read_bytes()
    assert dkv("inspect", "--verify", cache).returncode == 0
    assert dkv("compact", cache, "-o", small, *POLICY, "--keep-queries").returncode == 0
    facts = json.loads(dkv("inspect", "--verify", "--json", small).stdout)["files"][0]
    assert facts["compacted"] and facts["checksums"] and facts["verified"]
    assert sum(sum(layer["lengths"]) for layer in facts["by_layer"]) == 64 * LAYERS * KV_HEADS
    differ = json.loads(dkv("diff", "--json", cache, small).stdout)
    assert differ["total"]["b"]["entries"] == 64 * LAYERS * KV_HEADS
    assert 0 < differ["total"]["b"]["mass_kept"] < 1
    assert dkv("convert", cache, "-o", tmp_path / "hf.safetensors", "--format", "hf").returncode == 0
    planned = json.loads(dkv("plan", cache, *POLICY, "--json").stdout)
    assert planned["bytes_kept"] == sum(layer["bytes"] for layer in facts["by_layer"])
    assert cache.read_bytes() == before


@pytest.mark.parametrize("target", [40_000, 60_000, 150_000])
def test_bytes_is_what_the_file_takes_at_most(cache, tmp_path, target):
    out = tmp_path / "out"
    ran = dkv("compact", cache, "-o", out, "--policy", "dynamickv", "--window", "8", "--bytes", target)
    assert ran.returncode == 0, ran.stderr
    assert out.stat().st_size <= target


@pytest.mark.parametrize("bits, tokens", [(8, 240), (4, 455)])
def test_fewer_bits_keep_more_tokens_in_the_same_bytes(tmp_path, bits, tokens):
    cache = write_cache(tmp_path / "in", tokens=600, dim=64)
    plain, small, back = tmp_path / "plain", tmp_path / "small", tmp_path / "back"
    policy = ["--policy", "dynamickv", "--window", "8"]
    assert dkv("compact", cache, "-o", plain, *policy, "--capacity", "64").returncode == 0

    ran = dkv("compact", cache, "-o", small, *policy, "--capacity", "64", "--bits", bits)

    assert ran.returncode == 0, ran.stderr
    assert f"note: with {bits} bits {tokens} tokens per head have the bytes of 64 in the input" in ran.stdout
    facts = json.loads(dkv("inspect", "--verify", "--json", small).stdout)["files"][0]
    assert facts["dtype"] == f"q{bits}_0, rotated by 64" and facts["provenance"]["bits"] == str(bits)
    assert facts["tokens_per_head"] == tokens
    assert facts["rows_bytes"] == tokens * LAYERS * KV_HEADS * (136 if bits == 8 else 72) <= 64 * LAYERS * KV_HEADS * 512
    assert json.loads(dkv("diff", "--json", cache, small).stdout)["total"]["b"]["bytes"] == facts["rows_bytes"]
    ran = dkv("convert", small, "-o", back)
    assert f"rows were q{bits}_0, rotated by 64: they are f32 now, dequantised" in ran.stdout
    assert json.loads(dkv("inspect", "--json", back).stdout)["files"][0]["dtype"] == "f32"


def test_mixed_bits_refine_the_best_rows_in_the_same_bytes(tmp_path):
    cache = write_cache(tmp_path / "in", tokens=600, dim=64)
    small = tmp_path / "small"

    ran = dkv("compact", cache, "-o", small, "--policy", "dynamickv", "--window", "8", "--capacity", "64", "--bits", "mixed")

    assert ran.returncode == 0, ran.stderr
    assert "note: with mixed bits 391 tokens per head have the bytes of 64 in the input" in ran.stdout
    facts = json.loads(dkv("inspect", "--verify", "--json", small).stdout)["files"][0]
    assert facts["dtype"] == "q4_0+q4_0, rotated by 64" and facts["provenance"]["bits"] == "mixed"
    most = 64 * LAYERS * KV_HEADS * 512
    assert 0.98 * most < facts["rows_bytes"] <= most
    assert json.loads(dkv("diff", "--json", cache, small).stdout)["total"]["b"]["bytes"] == facts["rows_bytes"]

    ran = dkv("compact", cache, "-o", small, "--policy", "snapkv", "--window", "8", "--ratio", "0.2", "--bits", "mixed", "--force", "--json")

    outcome = json.loads(ran.stdout)["files"][0]
    assert outcome["bits"] == "mixed" and outcome["kept_whole"]
    assert outcome["notes"][-1:] == ["with mixed bits every token fits; 42 % of each head's, the best, have 8"]
    assert 0.99 * most < outcome["rows_bytes_after"] * 64 / 120 <= most


def test_fewer_bits_are_refused_where_they_cannot_be(cache, tmp_path):
    out = tmp_path / "out"
    assert "a head has 16 dims, and rows of 8 bits are blocks of 32: leave --bits out" in refusal("compact", cache, "-o", out, *POLICY, "--bits", "8")
    assert "hf has no place for rows of 4 bits" in refusal("compact", cache, "-o", out, *POLICY, "--bits", "4", "--format", "hf")
    assert "--bits: 5 not in {8,4,mixed}" in dkv("compact", cache, "-o", out, *POLICY, "--bits", "5").stderr
    assert not out.exists()


def test_a_file_that_is_cut_anywhere_is_refused_in_one_line(cache, tmp_path):
    whole = cache.read_bytes()
    cut = tmp_path / "cut"
    for part in range(0, 64, 7):
        cut.write_bytes(whole[: len(whole) * part // 64])
        assert str(cut) in refusal("compact", cut, "-o", tmp_path / "out", *POLICY)
        assert not (tmp_path / "out").exists()


def test_what_is_no_file_to_read_is_refused_at_once(cache, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for command in (["inspect"], ["compact", "-o", tmp_path / "out"], ["convert", "-o", tmp_path / "out"]):
        assert "regular file" in refusal(*command, fifo)
        assert "No such file" in refusal(*command, tmp_path / "none")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "no saved cache is in this folder" in refusal("compact", folder, "-o", tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fifo", "folder", "in.safetensors"]


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may read everything")
def test_without_permission_nothing_is_read_or_written(cache, tmp_path):
    cache.chmod(0o000)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    binary = tmp_path / "dkv"
    shutil.copy(program("dkv"), binary)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    ran = subprocess.run([*user, binary, "inspect", cache], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr == f"dkv: {cache}: Permission denied\n"
    cache.chmod(0o644)
    if user:
        ran = subprocess.run([*user, binary, "compact", cache, "-o", tmp_path / "out"], capture_output=True, text=True)
        assert ran.returncode == 1
        assert "Permission denied" in ran.stderr and ran.stderr.count("\n") == 1


def test_a_disk_that_is_full_leaves_no_output(cache, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    before = cache.read_bytes()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    line = refusal("compact", cache, "-o", folder / "small", *POLICY, preexec_fn=limit)
    assert "File too large" in line
    assert list(folder.iterdir()) == []
    line = refusal("sweep", cache, *POLICY, "-o", folder / "r.jsonl", preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (100, 100)))
    assert "r.jsonl: cannot be written: File too large" in line
    assert (folder / "r.jsonl").read_bytes() == b""
    assert cache.read_bytes() == before


def test_ctrl_c_in_the_middle_leaves_the_input_and_nothing_else(tmp_path):
    cache = write_cache(tmp_path / "in.safetensors", tokens=20_000, layers=8, dim=64)
    folder = tmp_path / "out"
    folder.mkdir()
    before = cache.stat()
    process = subprocess.Popen(
        [program("dkv"), "compact", cache, "-o", folder / "small", *POLICY, "-j", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # It has begun once the input is mapped.
    waited_for(
        lambda: process.poll() is not None or str(cache) in open(f"/proc/{process.pid}/maps").read(), "the input"
    )
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert err in ("dkv: interrupted\n", "")
    assert list(folder.iterdir()) == []
    assert cache.stat().st_mtime_ns == before.st_mtime_ns
    # The same command then finishes.
    assert dkv("compact", cache, "-o", folder / "small", *POLICY).returncode == 0
    assert [entry.name for entry in folder.iterdir()] == ["small"]


def test_a_folder_of_caches_with_a_broken_one(tmp_path):
    caches = tmp_path / "in"
    caches.mkdir()
    for index in range(3):
        write_cache(caches / f"{index}.safetensors", seed=index)
    (caches / "3.safetensors").write_bytes(b"\0" * 100)
    ran = dkv("compact", caches, "-o", tmp_path / "out", *POLICY, "-j", "2")
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1 and "3.safetensors" in ran.stderr
    assert "4 files: 3 written, 1 failed; " in ran.stdout
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [
        "0.safetensors",
        "1.safetensors",
        "2.safetensors",
    ]


def test_sweeps_of_the_same_inputs_are_the_same_bytes(cache, tmp_path):
    grid = ["--policy", "dynamickv,snapkv,streamingllm", "--capacity", "32,64", "--window", "8"]
    for name in ("a", "b"):
        ran = dkv("sweep", cache, *grid, "-o", tmp_path / f"{name}.jsonl", "--csv", tmp_path / f"{name}.csv")
        assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    again = dkv("sweep", cache, *grid, "-o", tmp_path / "a.jsonl")
    assert "0 computed, 6 known before" in again.stdout
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_running_sidecar_makes_the_same_file(sidecar, cache, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    assert dkv("compact", cache, "-o", here, *POLICY).returncode == 0
    ran = sidecar.dkv("compact", str(cache), "-o", str(there), *POLICY)
    assert "tokens per head" in ran.stdout
    assert there.read_bytes() == here.read_bytes()
    again = sidecar.dkv("compact", str(cache), "-o", str(there), *POLICY)
    assert "done before" in again.stdout
    broken = sidecar.dkv("compact", str(tmp_path / "none"), "-o", str(there), check=False)
    assert broken.returncode == 1
    assert broken.stderr == f"dkv: {tmp_path / 'none'}: No such file or directory\n"
    # It answers while it works, and afterwards.
    assert sidecar.dkv("status").returncode == 0


def test_compact_needs_no_sidecar_whatever_the_endpoint(cache, tmp_path):
    out = tmp_path / "out.safetensors"
    command = ["compact", cache, "-o", out, "--policy", "keydiff", "--capacity", "64"]
    ran = dkv(*command, "--endpoint", f"ipc://{tmp_path}/none.sock")
    assert ran.returncode == 0, ran.stderr
    assert out.exists()


@pytest.mark.parametrize("to", ["dkv", "hf"])
def test_an_output_has_the_mode_of_its_input(tmp_path, to):
    cache = write_cache(tmp_path / "cache.safetensors")
    cache.chmod(0o600)
    out = tmp_path / "out.safetensors"
    command = ["compact", cache, "-o", out, "--policy", "keydiff", "--capacity", "64", "--format", to]
    assert dkv(*command).returncode == 0
    assert out.stat().st_mode & 0o777 == 0o600

    assert dkv("convert", cache, "-o", tmp_path / "copy.safetensors", "--format", to).returncode == 0
    assert (tmp_path / "copy.safetensors").stat().st_mode & 0o777 == 0o600
