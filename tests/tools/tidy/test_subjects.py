"""tools/tidy on the subjects of commits, in repositories made here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools" / "tidy"))
from subjects import check_subjects  # noqa: E402

LONG = "Say more than fits " + "in one line " * 5


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, subject: str) -> str:
    git(folder, "commit", "--allow-empty", "-m", subject)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def history(tmp_path) -> tuple[Path, str]:
    """A repository with a long subject before the rule and one after it; the rule's commit."""
    folder = tmp_path / "whole"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, LONG + "before")
    since = commit(folder, "Limit subjects")
    commit(folder, "S" * 72)
    commit(folder, LONG + "after")
    return folder, since


def test_long_subjects_since_the_rule_are_named(history):
    folder, since = history
    head = git(folder, "rev-parse", "--short", "HEAD")
    subject = LONG + "after"
    assert list(check_subjects(folder, since)) == [
        f"commit {head}: the subject has {len(subject)} characters, the limit is 72: {subject}"
    ]


def test_a_shallow_clone_is_checked_as_far_as_it_goes(history, tmp_path):
    folder, since = history
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{folder}", "shallow")
    assert len(list(check_subjects(tmp_path / "shallow", since))) == 1
    git(tmp_path, "clone", "-q", "--depth", "4", f"file://{folder}", "deeper")
    assert len(list(check_subjects(tmp_path / "deeper", since))) == 1


def test_another_history_and_a_folder_without_one_have_no_problems(history, tmp_path):
    folder, _ = history
    assert list(check_subjects(folder, "0" * 40)) == []
    (tmp_path / "bare").mkdir()
    assert list(check_subjects(tmp_path / "bare", "0" * 40)) == []
