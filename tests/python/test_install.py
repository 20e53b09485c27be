"""Where the package finds the library of its own build, and what `python -m dkv` says."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from dkv import programs


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Sources with builds of two presets, and an environment in them."""
    package = tmp_path / "protocol" / "python" / "dkv"
    package.mkdir(parents=True)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for preset in ("release", "dev"):
        for file in ("bin/dkvd", "lib/libdkv.so"):
            (tmp_path / "build" / preset / file).parent.mkdir(parents=True)
            (tmp_path / "build" / preset / file).touch()
    monkeypatch.setattr(programs, "HERE", package)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("DKV_LIBRARY", raising=False)
    return tmp_path


def libraries(tree) -> list[str]:
    return [path.removeprefix(f"{tree}/") for path in programs.libraries()]


def test_the_library_is_that_of_the_release_build(tree):
    assert libraries(tree) == ["build/release/lib/libdkv.so", "build/dev/lib/libdkv.so", "libdkv.so.1"]


def test_the_library_is_that_of_the_programs_that_make_build_linked(tree):
    (tree / ".venv" / "bin" / "dkvd").symlink_to("../../build/dev/bin/dkvd")
    assert libraries(tree) == ["build/dev/lib/libdkv.so", "build/release/lib/libdkv.so", "libdkv.so.1"]


def test_programs_of_other_sources_do_not_choose_the_library(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "build" / "release" / "bin"
    other.mkdir(parents=True)
    (tree / ".venv" / "bin" / "dkvd").symlink_to(other / "dkvd")
    assert libraries(tree)[0] == "build/release/lib/libdkv.so"


def test_an_installed_package_brings_its_own_library(tree):
    (programs.HERE / "libdkv.so.1").touch()
    assert libraries(tree)[0] == "protocol/python/dkv/libdkv.so.1"


def test_dkv_library_goes_before_everything(tree, monkeypatch):
    monkeypatch.setenv("DKV_LIBRARY", "/mine/libdkv.so")
    assert libraries(tree) == ["/mine/libdkv.so"]


def test_python_m_dkv_says_what_there_is():
    for words in ([], ["--help"]):
        done = subprocess.run([sys.executable, "-m", "dkv", *words], capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == ""
        for expected in ("weights", "convert", "python -m dkv.hf SCRIPT", "dkv --help", "libdkv"):
            assert expected in done.stdout


def said_by(main, arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert (ended.value.code == 0) == ("--help" in arguments)
    return printed.out + printed.err + (ended.value.code if isinstance(ended.value.code, str) else "")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("dkv.hf.__main__", ["with compressed KV caches", "examples:", "--report FILE", "DKV_POLICY"]),
        ("dkv_lab.calibrate", ["what each layer or KV head of a model is worth", "what comes out:", "examples:", "minutes"]),
        ("dkv_lab.evaluate", ["every policy at equal bytes", "what comes out:", "examples:", "minutes"]),
    ],
)
def test_a_help_says_what_for_what_comes_out_and_an_example(module, expected, capsys):
    said = said_by(importlib.import_module(module).main, ["--help"], capsys)
    assert [words for words in expected if words not in said] == []


def test_python_m_dkv_hf_refuses_what_it_cannot_run_in_one_line(capsys, monkeypatch):
    main = importlib.import_module("dkv.hf.__main__").main
    monkeypatch.setattr("dkv.hf.__main__.wrap_generate", lambda wish, reports: None)  # For this process's other tests.
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert said_by(main, [], capsys).endswith("error: the following arguments are required: SCRIPT\n")
    assert said_by(main, ["nosuch.py"], capsys) == "python -m dkv.hf: nosuch.py: No such file or directory"
