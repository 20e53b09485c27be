"""Says what keeps this checkout from being released; nothing, and exit code 0, if it can be.

    python3 tools/release/check.py [FOLDER]
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

HEADING = re.compile(r"^## (?P<version>\S+)(?: – (?P<day>\S+))?$", re.M)
# Files that name the version, beside CMakeLists.txt, which is where it is set.
NAMED = {
    "tools/lab/pyproject.toml": r'^version = "([\d.]+)"$',
    "tools/package/container/compose.yaml": r"localhost/dkv:([\d.]+)",
    "tools/package/kubernetes/daemonset.yaml": r"localhost/dkv:([\d.]+)",
    "tools/package/kubernetes/pod.yaml": r"localhost/dkv:([\d.]+)",
}


def version_of(root: Path) -> str:
    return re.search(r"project\(dkv VERSION ([\d.]+)", (root / "CMakeLists.txt").read_text())[1]


def changelog_problems(text: str, version: str) -> list[str]:
    headings = list(HEADING.finditer(text))
    if not headings:
        return ["docs/CHANGELOG.md has no heading '## VERSION – DATE'"]
    first, problems = headings[0], []
    if first["version"] == "Unreleased":
        end = headings[1].start() if len(headings) > 1 else len(text)
        if text[first.end() : end].strip():
            return [f"docs/CHANGELOG.md has entries under Unreleased: give them the heading '## {version} – DATE'"]
        if len(headings) == 1:
            return [f"docs/CHANGELOG.md says nothing of {version}"]
        first = headings[1]
    if first["version"] != version:
        problems.append(f"CMakeLists.txt says {version}, docs/CHANGELOG.md says {first['version']} at its top")
    try:
        date.fromisoformat(first["day"] or "")
    except ValueError:
        problems.append(f"docs/CHANGELOG.md: '{first['day'] or ''}' of {first['version']} is not a date like 2026-11-29")
    return problems


def version_problems(root: Path, version: str) -> list[str]:
    problems = []
    for name, pattern in NAMED.items():
        found = set(re.findall(pattern, (root / name).read_text(), re.M))
        if found != {version}:
            problems.append(f"{name} says {', '.join(sorted(found)) or 'no version'}, CMakeLists.txt says {version}")
    return problems


def checkout_problems(root: Path, version: str) -> list[str]:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], check=True, capture_output=True, text=True).stdout.rstrip()

    problems = []
    changed = git("status", "--porcelain")
    if changed:
        problems.append("files are changed or not under version control: " + ", ".join(line[3:] for line in changed.splitlines()))
    tagged = git("tag", "--list", f"v{version}")
    if tagged and git("rev-parse", f"{tagged}^{{commit}}") != git("rev-parse", "HEAD"):
        problems.append(f"tag {tagged} is another commit: raise the version in CMakeLists.txt")
    return problems


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
    version = version_of(root)
    problems = changelog_problems((root / "docs" / "CHANGELOG.md").read_text(), version)
    problems += version_problems(root, version) + checkout_problems(root, version)
    for problem in problems:
        print(f"release: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
