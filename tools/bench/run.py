#!/usr/bin/env python3
"""Runs dkv_bench and, where torch is installed, the same work in torch; prints one table. Ratios first: they
say more than GB/s on a machine whose memory is unknown. On one thread both sides are timed in CPU
seconds, so that a busy machine gives the same figures."""
import argparse
import json
import pathlib
import platform
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def run_ours(args):
    command = [args.binary, f"--threads={args.threads}", "--benchmark_format=json",
               f"--benchmark_min_time={args.min_time}"]
    if args.filter:
        command.append(f"--benchmark_filter={args.filter}")
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def run_torch(args):
    command = [args.python, str(HERE / "torch_baseline.py"), f"--threads={args.threads}",
               f"--filter={args.filter}", f"--min-time={args.min_time}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        print(f"no torch figures: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout)


def table(report, torch_seconds, threads):
    column = "cpu_time" if threads == 1 else "real_time"
    for row in report["benchmarks"]:
        name = row["name"].removesuffix("/real_time")
        op, model, dtype, tokens = name.split("/")
        seconds = row[column] * UNITS[row["time_unit"]]
        baseline = torch_seconds.get(name)
        yield {
            "op": op, "model": model, "dtype": dtype, "tokens": int(tokens), "ms": seconds * 1e3,
            "gb_per_s": row["GB/s"], "of_ceiling": row["of_ceiling"], "gflop_per_s": row.get("GFLOP/s"),
            "torch_ms": baseline and baseline * 1e3, "times_torch": baseline and baseline / seconds,
        }


def show(machine, rows):
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'op':10} {'model':13} {'dtype':5} {'tokens':>6} {'ms':>9} {'GB/s':>7} {'of ceiling':>10} "
          f"{'GFLOP/s':>8} {'torch ms':>9} {'x torch':>8}")
    for row in rows:
        number = lambda key, form: format(row[key], form) if row[key] is not None else "-"
        print(f"{row['op']:10} {row['model']:13} {row['dtype']:5} {row['tokens']:6} {row['ms']:9.3f} "
              f"{row['gb_per_s']:7.2f} {row['of_ceiling']:10.2f} {number('gflop_per_s', '.0f'):>8} "
              f"{number('torch_ms', '.3f'):>9} {number('times_torch', '.1f'):>8}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "build/release/bin/dkv_bench"))
    parser.add_argument("--python", default=sys.executable, help="one that has torch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--filter", default="")
    parser.add_argument("--min-time", type=float, default=0.3, metavar="SECONDS")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    report = run_ours(args)
    rows = list(table(report, run_torch(args), args.threads))
    context = report["context"]
    machine = {"cpu": cpu_model(), "backend": context["backend"],
               "read GB/s": float(context["ceiling_read_GB/s"]), "copy GB/s": float(context["ceiling_copy_GB/s"])}
    if args.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
    else:
        show(machine, rows)


if __name__ == "__main__":
    main()
