"""tools/tidy on phrases that take two readings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools" / "tidy"))
from words import check_words  # noqa: E402


@pytest.fixture
def tree(tmp_path) -> Path:
    """A tree with the list of this repository."""
    (tmp_path / "tools/tidy").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "cli").mkdir()
    (tmp_path / "tools/tidy/words.txt").write_text((ROOT / "tools/tidy/words.txt").read_text())
    return tmp_path


@pytest.mark.parametrize("text", [
    "one\nA key that is no number.",
    "one\nA key that is\nno number.",
    "one\nKeys that are no numbers.",
    "one\nNobody waits.",
    "one\nIt belongs to whoever made it.",
])
def test_a_phrase_of_the_list_is_refused_with_its_line(tree, text):
    (tree / "docs/PAGE.md").write_text(text)

    (problem,) = check_words(tree)

    assert problem.startswith("docs/PAGE.md:2: '")


def test_the_refusal_says_what_to_write(tree):
    (tree / "docs/PAGE.md").write_text("It goes not with that.")

    assert list(check_words(tree)) == ["docs/PAGE.md:1: 'goes not': does not"]


@pytest.mark.parametrize("text", [
    "The prompt is no longer than the window.",
    "It is no better than SnapKV.",
    "Here there is no GPU.",
    "It prints `this is no number`.",
    "```\nwhoever\n```\n",
])
def test_plain_uses_and_quotations_pass(tree, text):
    (tree / "docs/PAGE.md").write_text(text)

    assert not list(check_words(tree))


def test_comments_of_headers_are_read_and_their_code_is_not(tree):
    (tree / "cli/a.h").write_text('int nobody();\n/// A size that is\n/// no multiple of 4.\nint b;  ///< Nobody\'s.\n')

    assert [problem.split(": ")[0] for problem in check_words(tree)] == ["cli/a.h:4", "cli/a.h:2"]
