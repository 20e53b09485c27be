"""A dkvd for all architectures, and the table of what was seen: printed at the end, and a page of the docs."""

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
_PAGE = """# Models tried

`make test-architectures` builds a tiny model with random weights of each architecture below, runs it through a real
`dkvd`, and writes this page. Versions: transformers {transformers}, torch {torch}. For every line:

* with `fullkv` the text is the plain model's to the token;
* a plain `generate()` gives the same logits to the bit afterwards, and the attention implementation is the same;
* *compressed*: snapkv and dynamickv keep their budget, the tokens kept are those that the model's own eager attention
  weighs most, and the logits of what follows are those of a full cache in which the dropped tokens are masked per head
  (float32, within 1e-5 of the largest logit);
* *whole* and *refused*: the text and the logits are the plain model's, and `cache.report()` has this reason;
* *file*: `dkv.hf.save` writes a file that `dkv.hf.load` takes up to the same text, or refuses in one line.

{counts}

| architecture | config | a prompt beyond the budget | file |
| --- | --- | --- | --- |
{rows}
"""


def pytest_addoption(parser):
    parser.addoption("--page", help="write what was seen to this file, as Markdown")


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


def pytest_collection_modifyitems(items):
    """All tests of an architecture one after the other: its model is made once."""
    order = {name: number for number, name in enumerate(ARCHITECTURES)}
    items.sort(key=lambda item: order[item.callspec.params["name"]])


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    if not SEEN:
        return
    width = max(map(len, SEEN))
    terminalreporter.section(f"architectures tried with transformers {transformers.__version__}")
    for name, cells in SEEN.items():
        terminalreporter.line(f"{name:{width}}  {cells.get('prompt', 'failed')}; file {cells.get('file', 'failed')}")
    page = config.getoption("--page")
    if page and exitstatus == 0:  # Of a run that failed, the page would say what does not hold.
        Path(page).write_text(markdown(), encoding="utf-8")


def markdown() -> str:
    outcomes = [cells["prompt"].split(":")[0].split(",")[0] for cells in SEEN.values()]
    counts = ", ".join(f"{outcomes.count(word)} {word}" for word in ("compressed", "whole", "refused"))
    rows = [
        f"| {name} | {ARCHITECTURES[name].config} | {cells['prompt']} | {cells['file'].split(':')[0]} |"
        for name, cells in SEEN.items()
    ]
    return _PAGE.format(
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        counts=f"{len(SEEN)} architectures: {counts}.",
        rows="\n".join(rows),
    )
