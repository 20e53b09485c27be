"""docs/LLAMA.md, typed: its three commands, with a model and a prompt."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import PROMPT, PYTHON, ROOT, llama_is_there, model
from processes import program

PAGE = (ROOT / "docs/LLAMA.md").read_text(encoding="utf-8")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.sample
def test_the_pages_three_commands_serve_a_compressed_model(tmp_path):
    llama_is_there()
    programs, here = tmp_path / "programs", tmp_path / "here"
    programs.mkdir(), here.mkdir()
    (programs / "dkv").symlink_to(program("dkv").resolve())
    server = Path(__file__).with_name("llama_server.py")
    (programs / "llama-server").write_text(f'#!/bin/sh\nexec "{PYTHON}" "{server}" --serve "$@"\n')
    (programs / "llama-server").chmod(0o755)
    (here / "model.gguf").symlink_to(model())
    (here / "prompt.json").write_text(json.dumps({"prompt": PROMPT, "n_predict": 2, "id_slot": 0}))
    block = re.search(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S)[1].replace("8080", str(free_port()))
    assert len(block.splitlines()) == 3

    with open(tmp_path / "printed", "w+") as said:
        # A session of its own: the server that the first command leaves in the background ends with it.
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        streams = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
        shell = subprocess.Popen(["bash", "-ec", block], cwd=here, env=environment, start_new_session=True, **streams)
        try:
            shell.wait(120)
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
        said.seek(0)
        printed = said.read()

    assert shell.returncode == 0, printed
    assert re.search(r"it computed 1 and found \d{3} in the slot", printed), printed
    assert sorted(path.name for path in (here / "slots").iterdir()) == ["slot-0.bin", "slot-0.full.bin"]
