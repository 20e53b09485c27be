"""Where the programs and the libraries of this package's own build are."""

from __future__ import annotations

import os
import pathlib
import sys

from .errors import DkvError, Status, UserError

HERE = pathlib.Path(__file__).resolve().parent


def builds() -> list[pathlib.Path]:
    """Build folders of the sources that this package lies in: the one whose programs `make build` linked into
    this environment, then the presets that Python can load."""
    folder = HERE.parents[2] / "build"
    linked = pathlib.Path(sys.prefix, "bin", "dkvd").resolve().parents[1]
    presets = [folder / "release", folder / "dev"]
    return list(dict.fromkeys(([linked] if linked.parent == folder else []) + presets))


def shared(path: str) -> str:
    """A text that C++ and Python read, such as "sdk/dkv.h": of protocol/, which a wheel has beside this file.

    Raises DkvError (NOT_FOUND).
    """
    for folder in (HERE / "protocol", HERE.parents[1]):
        if (folder / path).is_file():
            return (folder / path).read_text()
    raise DkvError(Status.NOT_FOUND, f"{HERE} has no protocol/{path}: install dkv again")


def libraries() -> list[str]:
    """What to try to load as libdkv: $DKV_LIBRARY alone; else the package's own, the builds' and the system's."""
    given = os.environ.get("DKV_LIBRARY")
    if given:
        return [given]
    places = [HERE / "libdkv.so.1"] + [build / "lib/libdkv.so" for build in builds()]
    return [str(path) for path in places if path.exists()] + ["libdkv.so.1"]


def find(name: str) -> pathlib.Path:
    """$DKV_BIN_DIR/NAME; else that of the build whose library is used, of this environment, of the PATH.

    Raises UserError when there is none.
    """
    given = os.environ.get("DKV_BIN_DIR")
    if given:
        places = [pathlib.Path(given)]
    else:
        library = os.environ.get("DKV_LIBRARY")
        places = [pathlib.Path(library).parent.parent / "bin"] if library else []
        places += [build / "bin" for build in builds()] + [pathlib.Path(sys.executable).parent]
        places += [pathlib.Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise UserError(f"no {name} was found: build it, or set DKV_BIN_DIR")


def _become(name: str) -> None:
    os.environ.setdefault("DKV_PYTHON", sys.executable)  # For `dkv eval` and the others that are written in Python.
    os.execv(HERE / "bin" / name, [name, *sys.argv[1:]])


def dkv() -> None:
    """The command that pip puts on the PATH with a wheel."""
    _become("dkv")


def dkvd() -> None:
    """As dkv()."""
    _become("dkvd")
