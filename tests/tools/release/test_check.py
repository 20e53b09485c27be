"""What keeps a checkout from being released."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from check import NAMED, changelog_problems, version_of
from processes import ROOT

RELEASED = "# Changelog\n\n## 1.2.0 – 2026-11-29\n\n* One.\n\n## 1.1.0 – 2026-10-01\n"


class Checkout:
    def __init__(self, folder: Path):
        self.folder, self.version = folder, version_of(ROOT)
        for name in ("CMakeLists.txt", *NAMED):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        (folder / "docs").mkdir()
        (folder / "docs" / "CHANGELOG.md").write_text(RELEASED.replace("1.2.0", self.version))
        self.git("init", "-q")
        self.commit()

    def git(self, *words: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
        subprocess.run(["git", *author, "-C", self.folder, *words], check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "All")

    def problems(self) -> list[str]:
        words = [sys.executable, ROOT / "tools" / "release" / "check.py", self.folder]
        done = subprocess.run(words, capture_output=True, text=True)
        assert (done.returncode == 0) == (done.stderr == "")
        return [line.removeprefix("release: ") for line in done.stderr.splitlines()]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_a_committed_checkout_whose_files_agree_can_be_released(checkout):
    assert checkout.problems() == []
    checkout.git("tag", f"v{checkout.version}")
    assert checkout.problems() == []  # Made again from the same commit.


def test_versions_that_differ_are_all_named(checkout):
    sources = checkout.folder / "CMakeLists.txt"
    sources.write_text(sources.read_text().replace(f"VERSION {checkout.version}", "VERSION 9.8.7"))
    checkout.commit()

    problems = checkout.problems()

    assert f"CMakeLists.txt says 9.8.7, docs/CHANGELOG.md says {checkout.version} at its top" in problems
    for name in NAMED:
        assert f"{name} says {checkout.version}, CMakeLists.txt says 9.8.7" in problems


def test_changes_that_are_not_committed_are_named(checkout):
    (checkout.folder / "docs" / "CHANGELOG.md").write_text(RELEASED.replace("1.2.0", checkout.version) + "\n* more\n")
    (checkout.folder / "new").touch()
    assert checkout.problems() == ["files are changed or not under version control: docs/CHANGELOG.md, new"]


def test_a_version_whose_tag_is_another_commit_is_refused(checkout):
    checkout.git("tag", f"v{checkout.version}")
    checkout.commit()
    assert checkout.problems() == [f"tag v{checkout.version} is another commit: raise the version in CMakeLists.txt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RELEASED, []),
        (RELEASED.replace("## 1.2.0", "## Unreleased\n\n## 1.2.0"), []),
        (
            RELEASED.replace("## 1.2.0", "## Unreleased\n\n* Two.\n\n## 1.2.0"),
            ["docs/CHANGELOG.md has entries under Unreleased: give them the heading '## 1.2.0 – DATE'"],
        ),
        ("# Changelog\n\n## Unreleased\n", ["docs/CHANGELOG.md says nothing of 1.2.0"]),
        ("# Changelog\n", ["docs/CHANGELOG.md has no heading '## VERSION – DATE'"]),
        (RELEASED.replace("2026-11-29", "soon"), ["docs/CHANGELOG.md: 'soon' of 1.2.0 is not a date like 2026-11-29"]),
        (RELEASED.replace(" – 2026-11-29", ""), ["docs/CHANGELOG.md: '' of 1.2.0 is not a date like 2026-11-29"]),
        (RELEASED.replace("1.2.0", "1.3.0"), ["CMakeLists.txt says 1.2.0, docs/CHANGELOG.md says 1.3.0 at its top"]),
    ],
)
def test_the_changelog_must_end_in_this_version(text, said):
    assert changelog_problems(text, "1.2.0") == said
