"""A libcuda.so.1 that has no GPU, compiled where a test wants it."""
import subprocess
from pathlib import Path


def make_stub_driver(folder: Path, status: int) -> Path:
    """The folder, for LD_LIBRARY_PATH. Every call answers `status`; 0: there are no devices."""
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", f"-DSTATUS={status}", "-o", folder / "libcuda.so.1",
                    Path(__file__).with_suffix(".c"), "-ldl"], check=True)
    return folder
