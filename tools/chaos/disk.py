"""Full disks under saved caches: an output is whole or not there, and what was there before stays as it was."""

from __future__ import annotations

import json
import os
import pathlib
import random
import subprocess

import numpy as np
from actors import Broken
from safetensors.numpy import save_file

LAYERS, TOKENS, DISK_BYTES = 4, 2000, 16 << 20
COMMANDS = {
    "dkv compact": ["compact", "IN", "-o", "OUT", "--policy", "dynamickv", "--window", "8", "--ratio", "0.5"],
    "dkv convert": ["convert", "IN", "-o", "OUT", "--format", "hf"],
    "dkv compact --force": ["compact", "IN", "-o", "OVER", "--force", "--policy", "snapkv", "--window", "8", "--ratio", "0.5"],
    "dkv prune": ["prune", "FOLDER", "--budget", "3MiB", "--unmeasured", "--settle-s", "0", "--window", "8"],
}


def write_cache(path: pathlib.Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    shapes = {"keys": (2, TOKENS, 32), "values": (2, TOKENS, 32), "q_window": (4, 8, 32)}
    tensors = {
        f"layers.{layer}.{part}": draw.standard_normal(shape, dtype=np.float32)
        for layer in range(LAYERS) for part, shape in shapes.items()
    }  # fmt: skip
    save_file(tensors, path, {"format": "dkv", "version": "1", "model": "made up", "n_prompt": str(TOKENS)})


def fill(path: pathlib.Path, left: int) -> None:
    free = os.statvfs(path.parent)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - left))


def strike(binaries: pathlib.Path, disk: pathlib.Path, name: str, seed: int) -> str:
    """What became of the command: "done" or "refused"."""
    rng = random.Random(f"{seed}/{name}")
    store = disk / "store"
    store.mkdir()
    source, target = store / "in.safetensors", store / "out.safetensors"
    write_cache(source, seed)
    if "OVER" in COMMANDS[name]:
        write_cache(target, seed + 1)
    before = {path: path.read_bytes() for path in store.iterdir()}
    fill(disk / "filler", rng.randrange(source.stat().st_size + (1 << 20)))
    places = {"IN": source, "OUT": target, "OVER": target, "FOLDER": store}
    words = [str(places.get(word, word)) for word in COMMANDS[name]]
    done = subprocess.run([binaries / "dkv", *words], capture_output=True, text=True, timeout=120)
    (disk / "filler").unlink()
    left = {path for path in store.iterdir() if not path.name.startswith(".dkv-")}  # Its record and its lock.
    if done.returncode == 0:
        made = source if "FOLDER" in COMMANDS[name] else target
        checked = subprocess.run([binaries / "dkv", "--json", "inspect", "--verify", made], capture_output=True, text=True)
        facts = json.loads(checked.stdout)["files"][0] if checked.returncode == 0 else {}
        good = facts.get("verified") and left == {*before, made}
    else:
        good = "No space left" in done.stderr + done.stdout and left == {*before}
        good = good and all(path.read_bytes() == data for path, data in before.items())
    if not good:
        raise Broken(f"{name} with a full disk: {done.returncode} {done.stderr.strip()}, left {sorted(map(str, left))}")
    for path in store.iterdir():
        path.unlink()
    store.rmdir()
    return "done" if done.returncode == 0 else "refused"


def play(binaries: pathlib.Path, folder: pathlib.Path, seed: int, tries: int) -> dict[str, list[str]]:
    """Outcomes by command. Mounts a small disk, which goes with the runner's mount namespace."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], check=True)
    try:
        return {name: [strike(binaries, disk, name, seed + at) for at in range(tries)] for name in COMMANDS}
    finally:
        subprocess.run(["umount", disk], check=True)
