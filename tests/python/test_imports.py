"""No module of our packages imports itself in the end: neither at the top, nor in a function, nor for types alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = [ROOT / "protocol" / "python" / "dkv", ROOT / "tools" / "lab" / "dkv_lab"]


def modules(package: Path) -> dict[str, Path]:
    """By dotted name; a package has the name of its folder."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The known modules that this one names in an import. A package that is only passed through does not count."""
    found = set()
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            inside = {f"{base}.{alias.name}" for alias in node.names} & known.keys()
            found |= inside if len(inside) == len(node.names) else inside | {base}
    return found & known.keys() - {name}


def cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """One that there is."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        for other in sorted(edges[name]):
            found = visit(other, [*trail, name])
            if found:
                return found
        done.add(name)
        return None

    return next((found for name in sorted(edges) if (found := visit(name, []))), None)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_imports_have_no_cycles(package):
    known = modules(package)

    found = cycle({name: imported(name, path, known) for name, path in known.items()})

    assert found is None, " → ".join(found)


def test_a_cycle_is_found_whatever_the_import_looks_like(tmp_path):
    package = tmp_path / "p"
    (package / "q").mkdir(parents=True)
    for name, text in {
        "__init__": "from .a import x",
        "a": "def f():\n    from .q import b",
        "q/__init__": "",
        "q/b": "import typing\nif typing.TYPE_CHECKING:\n    from ..c import y",
        "c": "import p.a",
    }.items():
        (package / f"{name}.py").write_text(text)
    known = modules(package)

    assert cycle({name: imported(name, path, known) for name, path in known.items()}) == ["p.a", "p.q.b", "p.c", "p.a"]


@pytest.mark.parametrize("module", ["dkv", "dkv_lab.report.sweep_report", "dkv_lab.report.tables", "dkv_lab.remote", "dkv_lab.ray_work"])
def test_what_needs_no_model_starts_without_torch(module):
    said = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )

    assert said.stdout == "False\n"
