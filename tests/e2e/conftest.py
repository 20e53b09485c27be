import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from engines import SANITIZED  # noqa: E402
from processes import sidecar  # noqa: E402, F401


@pytest.fixture(autouse=True)
def sanitizers(monkeypatch):
    """Of programs that were built with them (DKV_SANITIZED=1), what they report fails the test, whatever it expects."""
    if not SANITIZED:
        yield
        return
    folder = tempfile.TemporaryDirectory()
    reports = Path(folder.name)
    reports.chmod(0o777)  # Some tests' programs are another user's.
    for name in ("ASAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS"):
        # tools/chaos/through.c is preloaded before the sanitizer's own library.
        first = " verify_asan_link_order=0" if name == "ASAN_OPTIONS" else ""
        monkeypatch.setenv(name, f"{os.environ.get(name, '')} log_path={reports}/report{first}")
    yield
    with folder:
        found = sorted(reports.iterdir())
        assert not found, "\n".join(one.read_text() for one in found)
