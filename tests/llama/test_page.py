"""docs/LLAMA.md, typed: its two blocks of three commands, with a model and a prompt."""

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


LIVE, SLOTS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S)


def typed(block: str, folder: Path, **environment: str) -> tuple[str, Path]:
    """What the three commands print, in a folder with a model and a prompt; and that folder."""
    llama_is_there()
    programs, here = folder / "programs", folder / "here"
    programs.mkdir(), here.mkdir()
    for name in ("dkv", "dkvd"):
        (programs / name).symlink_to(program(name).resolve())
    server = Path(__file__).with_name("llama_server.py")
    (programs / "llama-server").write_text(f'#!/bin/sh\nexec "{PYTHON}" "{server}" --serve "$@"\n')
    (programs / "llama-server").chmod(0o755)
    (here / "model.gguf").symlink_to(model())
    (here / "prompt.json").write_text(json.dumps({"prompt": PROMPT, "n_predict": 3, "id_slot": 0}))
    block = block.replace("8080", str(free_port()))
    assert len(block.splitlines()) == 3

    with open(folder / "printed", "w+") as said:
        # A session of its own: what the commands leave in the background ends with it.
        environment = os.environ | environment | {"PATH": f"{programs}:{os.environ['PATH']}"}
        streams = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
        shell = subprocess.Popen(["bash", "-ec", block], cwd=here, env=environment, start_new_session=True, **streams)
        try:
            shell.wait(120)
            sessions = subprocess.run([programs / "dkv", "sessions"], capture_output=True, text=True, env=environment).stdout
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
        said.seek(0)
        printed = said.read()
    assert shell.returncode == 0, printed
    return printed + sessions, here


@pytest.mark.sample
def test_the_pages_three_commands_serve_a_model_whose_prompts_are_compressed(tmp_path):
    tmp_path.chmod(0o700)

    printed, _ = typed(LIVE.replace("512", "128"), tmp_path, DKV_ENDPOINT=f"ipc://{tmp_path}/dkvd.sock")

    assert re.search(r"adopted +3\d\d  auto 128", printed), printed


@pytest.mark.sample
def test_the_pages_other_three_commands_compact_a_slot(tmp_path):
    printed, here = typed(SLOTS, tmp_path)

    assert re.search(r"it computed 1 and found \d{3} in the slot", printed), printed
    assert sorted(path.name for path in (here / "slots").iterdir()) == ["slot-0.bin", "slot-0.full.bin"]
