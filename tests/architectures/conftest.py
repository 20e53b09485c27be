"""A dkvd for all architectures, and the table of what was seen, printed at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from table import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from processes import Sidecar  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()

SEEN: dict[str, dict[str, str]] = {}  # Architecture → column → what was seen.


def pytest_addoption(parser):
    parser.addoption("--table", help="write what was seen to this file, as Markdown")


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory):
    """A running dkvd in a folder of its own."""
    folder = tmp_path_factory.mktemp("dkvd")
    folder.chmod(0o700)
    running = Sidecar(folder)
    yield running.start()
    running.stop()


@pytest.fixture
def note(request):
    """note(column, what): a cell of the table, for the architecture of this test."""
    name = request.node.callspec.params["name"]

    def write(column: str, what: str) -> None:
        SEEN.setdefault(name, {})[column] = what

    return write


def pytest_terminal_summary(terminalreporter, config):
    if not SEEN:
        return
    width = max(map(len, SEEN))
    terminalreporter.section(f"architectures tried with transformers {transformers.__version__}")
    for name, cells in SEEN.items():
        terminalreporter.line(f"{name:{width}}  " + "; ".join(f"{column}: {what}" for column, what in cells.items()))
    if config.getoption("--table"):
        Path(config.getoption("--table")).write_text(markdown(), encoding="utf-8")


def markdown() -> str:
    return ""
