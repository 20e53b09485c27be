"""The whole check on an object of one kernel, with recorded output in the place of cuobjdump's."""
import csv

import kernels
import pytest
from test_sass import text

SAID = """ptxas info    : Compiling entry function 'gather_kernel' for 'sm_80'
ptxas info    : Function properties for gather_kernel
    0 bytes stack frame, {spills} bytes spill stores, {spills} bytes spill loads
ptxas info    : Used {registers} registers, used 0 barriers, 424 bytes cmem[0]
"""
FACT = '[[fact]]\nkernel = "gather_*"\nloop = ["LDG.128"]\nhas = ["STG.128"]\n'


class Bench:
    """A folder with a build's outputs, a toolkit, a table and a page."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "objects").mkdir()
        (folder / "bin").mkdir()
        (folder / "objects/gather.o").write_bytes(b"")
        (folder / "page.md").write_text("before\n<!-- ptxas: by a script -->\nold\n<!-- /ptxas -->\nafter\n")
        self.tool("nvcc", "Cuda compilation tools, release 13.0, V13.0.88\n")
        self.declare(FACT)
        self.built()

    def tool(self, name, says, otherwise=""):
        (self.folder / f"{name}.out").write_text(says)
        (self.folder / f"{name}.ptx").write_text(otherwise)
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/sh\n[ "$1" = -ptx ] && exec cat {self.folder}/{name}.ptx\nexec cat {self.folder}/{name}.out\n')
        path.chmod(0o755)

    def declare(self, toml):
        (self.folder / "launches.toml").write_text(toml)

    def built(self, spills=0, registers=32, code=("LDG.E.128 R4, [R2.64]", "STG.E.128 [R2.64], R4", "@P0 BRA 0x0", "EXIT"),
              ptx=".entry gather_kernel(\n)\n.maxntid 256\n"):
        (self.folder / "objects/gather.ptxas").write_text(SAID.format(spills=spills, registers=registers))
        self.tool("cuobjdump", text(*code, symbol="gather_kernel"), ptx)

    def run(self, action, monkeypatch):
        monkeypatch.setattr("sys.argv", [
            "kernels.py", action, "--objects", str(self.folder / "objects"), "--toolkit", str(self.folder),
            "--launches", str(self.folder / "launches.toml"), "--table", str(self.folder / "kernels.csv"),
            "--page", str(self.folder / "page.md")])
        return kernels.main()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_what_is_accepted_is_what_is_checked(bench, monkeypatch, capsys):
    assert bench.run("accept", monkeypatch) == 0
    assert bench.run("check", monkeypatch) == 0
    assert "1 kernels for 1 architectures, nvcc V13.0.88, 0 problems" in capsys.readouterr().out
    (row,) = csv.DictReader((bench.folder / "kernels.csv").read_text().splitlines()[1:])
    assert (row["file"], row["kernel"], row["sm"]) == ("gather", "gather_kernel", "80")
    assert (row["registers"], row["threads"], row["occupancy"], row["limited_by"]) == ("32", "256", "1.00", "warps")
    assert row["LDG.128"] == "1/1/1"
    page = (bench.folder / "page.md").read_text()
    assert page.startswith("before\n<!-- ptxas: by a script -->\n1 kernels, nvcc V13.0.88, sm_80;")
    assert page.endswith("<!-- /ptxas -->\nafter\n")


def test_a_change_shows_as_a_difference_and_how_to_accept_it(bench, monkeypatch, capsys):
    bench.run("accept", monkeypatch)
    bench.built(registers=33)
    assert bench.run("check", monkeypatch) == 1
    said = capsys.readouterr().err
    assert "kernels.csv is not what was built; if that is meant: make ptxas-accept" in said
    assert "-gather,gather_kernel,80,32," in said and "+gather,gather_kernel,80,33," in said


def test_another_compiler_is_not_compared(bench, monkeypatch, capsys):
    bench.run("accept", monkeypatch)
    bench.built(registers=33)
    bench.tool("nvcc", "Cuda compilation tools, release 12.9, V12.9.86\n")
    assert bench.run("check", monkeypatch) == 0
    assert "made with nvcc V13.0.88, this is V12.9.86: not compared" in capsys.readouterr().out


@pytest.mark.parametrize("build, complaint", [
    ({"spills": 4}, "gather.cu: gather_kernel for sm_80 spills 4 bytes of stores, 4 of loads"),
    ({"code": ("LDG.E.128 R4, [R2.64]", "STG.E.128 [R2.64], R4", "EXIT")}, "for sm_80 has no LDG.128 in a loop"),
    ({"code": ("LDG.E.128 R4, [R2.64]", "STG.E.64 [R2.64], R4", "@P0 BRA 0x0", "EXIT")}, "for sm_80 has no STG.128"),
    ({"code": ("LDL R4, [R1]", "LDG.E.128 R4, [R2.64]", "STG.E.128 [R2.64], R4", "@P0 BRA 0x0", "EXIT")},
     "has 1 accesses to local memory (LDL, STL)"),
    ({"registers": 255, "ptx": ".entry gather_kernel(\n)\n.maxntid 1024\n"}, "cannot be launched: too many registers"),
    ({"ptx": ".entry gather_kernel(\n)\n"}, "states no __launch_bounds__ and launches.toml no threads"),
])
def test_what_must_be_so(bench, monkeypatch, capsys, build, complaint):
    bench.run("accept", monkeypatch)
    bench.built(**build)
    assert bench.run("check", monkeypatch) == 1
    assert complaint in capsys.readouterr().err


def test_a_declaration_of_no_kernel_is_a_mistake(bench, monkeypatch, capsys):
    bench.declare(FACT + '[[launch]]\nkernel = "scatter_kernel"\nthreads = 64\n')
    assert bench.run("accept", monkeypatch) == 1
    assert "launches.toml: no kernel is called scatter_kernel" in capsys.readouterr().err


def test_a_folder_without_objects_is_a_mistake(bench, monkeypatch, capsys):
    (bench.folder / "objects/gather.o").unlink()
    assert bench.run("check", monkeypatch) == 1
    assert "has no objects: build dkv_cuda with a CUDA toolkit first" in capsys.readouterr().err
