"""dkv against a real llama-server: a slot is saved, cut to a quarter, and restored by a fresh server.

    make test-formats
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import urllib.request

import pytest
from conftest import PYTHON, dkv
from test_llama import LICENCE, model

PROGRAM = pathlib.Path(__file__).with_name("llama_server.py")
PROMPT = LICENCE[:2_500]
QUARTER = ("--policy", "keydiff", "--ratio", "0.25", "--kv-heads", "3")


class Server:
    """A llama-server with one model, one slot and a folder for it."""

    def __init__(self, slots: pathlib.Path, cells: int = 1024):
        command = [PYTHON, PROGRAM, model(), slots, str(cells)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        lines = iter(self.process.stdout.readline, "")
        self.url = next((line.strip() for line in lines if line.startswith("http")), None)
        assert self.url, "the server ended before it listened"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def post(self, path: str, body: dict) -> dict:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)

    def slot(self, action: str, name: str) -> dict:
        return self.post(f"/slots/0?action={action}", {"filename": name})

    def complete(self, tokens: int) -> dict:
        """The prompt goes on; the reply's timings tell how much of it was computed."""
        body = {"prompt": PROMPT, "n_predict": tokens, "temperature": 0, "cache_prompt": True, "id_slot": 0}
        return self.post("/completion", body)


def is_sensible(text: str) -> bool:
    """English words, most of them the licence's own, and not one word over and over."""
    words = re.findall(r"[a-z]+", text.lower())
    known = set(re.findall(r"[a-z]+", LICENCE.lower()))
    return len(words) >= 15 and sum(word in known for word in words) > 0.7 * len(words) and len(set(words)) > len(words) / 4


@pytest.fixture(scope="module")
def slots(tmp_path_factory) -> pathlib.Path:
    """A real session's slot, full.bin."""
    folder = tmp_path_factory.mktemp("slots")
    with Server(folder) as server:
        server.complete(0)
        assert server.slot("save", "full.bin")["n_saved"] > 400
    return folder


def test_a_slot_that_is_converted_to_itself_is_the_same_byte_for_byte(slots):
    dkv("convert", slots / "full.bin", "-o", slots / "same.bin", "--kv-heads", 3)

    assert (slots / "same.bin").read_bytes() == (slots / "full.bin").read_bytes()


def test_a_quarter_of_a_slot_is_restored_by_a_fresh_server_and_goes_on(slots):
    dkv("compact", slots / "full.bin", "-o", slots / "quarter.bin", *QUARTER)
    full, quarter = ((slots / name).stat().st_size for name in ("full.bin", "quarter.bin"))
    assert 0.24 < quarter / full < 0.26

    with Server(slots) as server:
        assert server.slot("restore", "quarter.bin")["n_read"] == quarter
        reply = server.complete(40)

    assert reply["timings"]["prompt_n"] == 1  # Everything but the prompt's last token came from the slot.
    assert is_sensible(reply["content"]), reply["content"]
