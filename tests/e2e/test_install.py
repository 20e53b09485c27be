"""What `cmake --install` puts where, and the commands of the wheel. The wheel itself: tests/wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, program

VERSION = re.search(r"project\(dkv VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
COMPLETIONS = {
    "bash": "bash-completion/completions/dkv",
    "zsh": "zsh/site-functions/_dkv",
    "fish": "fish/vendor_completions.d/dkv.fish",
}


def said_by(*words, **environment) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | environment).stdout


def test_an_installed_prefix_has_programs_library_header_pages_and_completions(tmp_path):
    said_by("cmake", "--install", program("dkv").parents[1], "--prefix", tmp_path)

    assert said_by(tmp_path / "bin" / "dkv", "--version") == f"dkv {VERSION}\n"
    assert said_by(tmp_path / "bin" / "dkvd", "--version") == f"dkvd {VERSION}\n"
    assert (tmp_path / "include" / "dkv.h").is_file() and list(tmp_path.glob("lib/**/libdkv.so.1"))
    for page in ("man1/dkv.1", "man8/dkvd.8"):
        assert f'"dkv {VERSION}"' in (tmp_path / "share" / "man" / page).read_text().partition("\n")[0]
    for shell, file in COMPLETIONS.items():
        shown = said_by(program("dkv"), "completion", shell, DKV_ENDPOINT="ipc://PATH")
        assert (tmp_path / "share" / file).read_text() == shown


@pytest.mark.parametrize("name", ["dkv", "dkvd"])
def test_a_wheels_command_becomes_the_program(name):
    become = "import pathlib; from dkv import programs; "
    become += f"programs.HERE = pathlib.Path({str(program(name).parents[1])!r}); programs.{name}()"
    said = said_by(sys.executable, "-c", become, "--version", PYTHONPATH=str(Path(ROOT, "protocol", "python")))
    assert said == f"{name} {VERSION}\n"
