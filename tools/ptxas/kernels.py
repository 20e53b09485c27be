#!/usr/bin/env python3
"""The table of what the compiler made of every kernel, for every architecture, and what must be so.

    kernels.py check  --objects build/ptxas/kernels/cuda --toolkit DIR   fails on a spill, on a fact of
                      launches.toml that does not hold, and when the table is another than kernels.csv
    kernels.py accept (the same)                                           writes kernels.csv, and the summary
                      in docs/KERNELS.md

Read from what nvcc and ptxas said while compiling, from the PTX and from the machine code in the objects: nothing
here was measured.
"""
import argparse
import concurrent.futures
import csv
import difflib
import fnmatch
import io
import pathlib
import shutil
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import remarks  # noqa: E402
import sass  # noqa: E402
import summary  # noqa: E402
from occupancy import occupancy  # noqa: E402

SHOWN = ["HMMA", "LDGSTS", "LDSM", "LDG.128", "STG.128", "LDS.128", "BAR"]
COLUMNS = ["file", "kernel", "sm", "registers", "static_shared", "dynamic_shared", "stack", "spill_stores",
           "spill_loads", "constant", "threads", "blocks_per_sm", "occupancy", "limited_by", *SHOWN]
DIFF_MAX = 40  # Lines.
DISASSEMBLERS = 8  # At a time.


class Refused(Exception):
    pass


def output_of(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Refused(f"{command[0]}: {getattr(error, 'stderr', '') or error}") from error


def disassembler_of(toolkit):
    """cuobjdump: not in every toolkit."""
    of_venv = sorted(HERE.parents[1].glob(".venv/lib/python3*/site-packages/nvidia/cu13/bin"))
    found = next((path for folder in (f"{toolkit}/bin", *map(str, of_venv)) if (path := shutil.which(f"{folder}/cuobjdump"))),
                 shutil.which("cuobjdump"))
    if found is None:
        raise Refused(f"{toolkit} has no cuobjdump, and it is not on PATH; tools/dev/install_deps.sh cuda brings one")
    return found


def compiler_of(toolkit):
    """"V13.0.88": nvcc's, which the table depends on."""
    return output_of([f"{toolkit}/bin/nvcc", "--version"]).split(", ")[-1].split()[0]


class Declared:
    """launches.toml: what cannot be read from an object."""

    def __init__(self, path):
        content = tomllib.loads(path.read_text())
        self.launches = content.get("launch", [])
        self.facts = content.get("fact", [])
        self.locals = content.get("local", [])
        self._used = set()

    def of(self, entries, kernel):
        found = [entry for entry in entries if fnmatch.fnmatchcase(kernel, entry["kernel"])]
        self._used |= {entry["kernel"] for entry in found}
        return found

    def launch(self, kernel):
        found = self.of(self.launches, kernel)
        if len(found) > 1:
            raise Refused(f"launches.toml: {kernel} is declared {len(found)} times")
        return found[0] if found else {}

    def unused(self):
        every = {entry["kernel"] for entry in (*self.launches, *self.facts, *self.locals)}
        return sorted(every - self._used)


def read_object(path, cuobjdump):
    """([Remarks], {symbol: threads}, {(symbol, architecture): code}) of one object."""
    said = path.with_suffix(".ptxas")
    if not said.exists():
        raise Refused(f"{said} is missing: {path.name} was not compiled by this build")
    found = remarks.read_remarks(said.read_text(), str(said))
    if not found:
        return [], {}, {}
    bounds = remarks.read_launch_bounds(output_of([cuobjdump, "-ptx", str(path)]))
    return found, bounds, sass.read_sass(output_of([cuobjdump, "-sass", str(path)]))


def row_of(file, name, found, bounds, declared, counts):
    launch = declared.launch(name)
    threads = bounds.get(found.symbol) or launch.get("threads")
    if threads is None:
        raise Refused(f"{file}: {name} states no __launch_bounds__ and launches.toml no threads")
    dynamic = launch.get("dynamic", 0)
    if isinstance(dynamic, dict):
        dynamic = dynamic.get(str(found.architecture), dynamic["other"])
    fits = occupancy(found.architecture, threads, found.registers, found.shared + dynamic)
    values = [file, name, found.architecture, found.registers, found.shared, dynamic, found.stack,
              found.spill_stores, found.spill_loads, found.constant, threads, fits.blocks,
              f"{fits.share:.2f}", fits.limited_by, *(counts.shown(what) for what in SHOWN)]
    return dict(zip(COLUMNS, map(str, values)))


def problems_of(row, counts, declared):
    """What must be so and is not, one line each."""
    where = f"{row['file']}.cu: {row['kernel']} for sm_{row['sm']}"
    if int(row["spill_stores"]) or int(row["spill_loads"]):
        yield f"{where} spills {row['spill_stores']} bytes of stores, {row['spill_loads']} of loads"
    if int(row["blocks_per_sm"]) == 0:
        yield f"{where} cannot be launched: too many {row['limited_by']}"
    local = counts.whole["LDL"] + counts.whole["STL"]
    if local and not declared.of(declared.locals, row["kernel"]):
        yield f"{where} has {local} accesses to local memory (LDL, STL)"
    for fact in declared.of(declared.facts, row["kernel"]):
        for part, held in (("loop", counts.loops), ("has", counts.whole)):
            for what in fact.get(part, []):
                if not held[what]:
                    yield f"{where} has no {what}{' in a loop' if part == 'loop' else ''}"


def read_kernels(objects, toolkit, declared):
    """(rows, problems) of every object in the folder."""
    cuobjdump = disassembler_of(toolkit)
    paths = sorted(objects.glob("*.o"))
    if not paths:
        raise Refused(f"{objects} has no objects: build dkv_cuda with a CUDA toolkit first")
    with concurrent.futures.ThreadPoolExecutor(DISASSEMBLERS) as pool:  # They are processes, and take seconds.
        read = dict(zip(paths, pool.map(lambda path: read_object(path, cuobjdump), paths)))
    names = remarks.demangle(found.symbol for said, _, _ in read.values() for found in said)
    rows, problems = [], []
    for path, (said, bounds, code) in read.items():
        for found in said:
            key = (found.symbol, found.architecture)
            if key not in code:
                raise Refused(f"{path.name}: no machine code of {names[found.symbol]} for sm_{found.architecture}")
            counts = sass.count(code[key])
            row = row_of(path.stem, remarks.readable(names[found.symbol]), found, bounds, declared, counts)
            rows.append(row)
            problems += problems_of(row, counts, declared)
    rows.sort(key=lambda row: (row["file"], row["kernel"], int(row["sm"])))
    problems += [f"launches.toml: no kernel is called {pattern}" for pattern in declared.unused()]
    return rows, problems


def written(rows, compiler):
    text = io.StringIO()
    text.write(f"# nvcc {compiler}. Written by tools/ptxas/kernels.py; HMMA and what follows: in the kernel / of these "
               "in loops / of these in innermost loops.\n")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def made_with(table):
    """The compiler in the head of a table: "# nvcc V13.0.88. …"."""
    return table.read_text().split()[2].rstrip(".")


def committed_rows(table, architectures):
    """The table's rows for these architectures, and of all."""
    rows = list(csv.DictReader(table.read_text().splitlines()[1:]))
    return [row for row in rows if row["sm"] in architectures], rows


def compare(table, rows, compiler):
    """Problems: the table's lines that differ, at most a screen of them."""
    committed, _ = committed_rows(table, {row["sm"] for row in rows})
    if made_with(table) != compiler:
        print(f"ptxas: {table.name} was made with nvcc {made_with(table)}, this is {compiler}: not compared")
        return []
    if committed == rows:
        return []
    lines = [written(some, compiler).splitlines() for some in (committed, rows)]
    diff = [line for line in difflib.unified_diff(*lines, "committed", "built", n=0, lineterm="")
            if not line.startswith("@@")]
    shown = diff[:DIFF_MAX]
    if len(diff) > len(shown):
        shown.append(f"… {len(diff) - len(shown)} more lines")
    return ["\n".join([f"{table.name} is not what was built; if that is meant: make ptxas-accept", *shown])]


def check(args, rows, compiler):
    """Problems: the table, and the page that sums it up, are not of what was built."""
    if not args.table.exists():
        return [f"{args.table} does not exist: make ptxas-accept"]
    _, every = committed_rows(args.table, set())
    return compare(args.table, rows, compiler) + summary.check(
        args.page, "ptxas", summary.of(every, made_with(args.table)))


def accept(args, rows, compiler):
    args.table.write_text(written(rows, compiler))
    summary.put(args.page, "ptxas", summary.of(rows, compiler))
    return []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["check", "accept"])
    parser.add_argument("--objects", type=pathlib.Path, required=True)
    parser.add_argument("--toolkit", required=True)
    parser.add_argument("--launches", type=pathlib.Path, default=HERE / "launches.toml")
    parser.add_argument("--table", type=pathlib.Path, default=HERE / "kernels.csv")
    parser.add_argument("--page", type=pathlib.Path, default=HERE.parents[1] / "docs/KERNELS.md")
    args = parser.parse_args()
    try:
        declared = Declared(args.launches)
        compiler = compiler_of(args.toolkit)
        rows, problems = read_kernels(args.objects, args.toolkit, declared)
    except (Refused, remarks.Unreadable) as error:
        print(f"ptxas: {error}", file=sys.stderr)
        return 1
    problems += (accept if args.action == "accept" else check)(args, rows, compiler)
    for problem in problems:
        print(f"ptxas: {problem}", file=sys.stderr)
    kernels = {(row["file"], row["kernel"]) for row in rows}
    print(f"ptxas: {len(kernels)} kernels for {len({row['sm'] for row in rows})} architectures, nvcc {compiler}, "
          f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
