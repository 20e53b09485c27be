"""Reads what dkv_gpu_bench and torch_baseline.py print, and puts it side by side."""

KEY = ("op", "model", "dtype", "tokens")


def read_bench(text):
    """{"device": …, "copy_gb_per_s": …, "ops": [{op, model, dtype, tokens, seconds, bytes, gb_per_s, of_copy}]}."""
    report = {"ops": []}
    for line in text.splitlines():
        kind, *values = line.split("\t")
        if kind == "device":
            name, uuid, capability, memory, multiprocessors, built_with = values
            report["device"] = {"name": name, "uuid": uuid, "compute_capability": capability, "bytes": int(memory),
                                "multiprocessors": int(multiprocessors), "built_with": built_with}
        elif kind == "copy":
            report["copy_gb_per_s"] = float(values[0]) / 1e9
        elif kind == "op":
            op, model, dtype, tokens, seconds, moved = values
            rate = float(moved) / float(seconds) / 1e9 if float(seconds) > 0 else None
            report["ops"].append({"op": op, "model": model, "dtype": dtype, "tokens": int(tokens),
                                  "seconds": float(seconds), "bytes": float(moved), "gb_per_s": rate})
        else:
            raise ValueError(f"not a line of dkv_gpu_bench: {line}")
    copy = report.get("copy_gb_per_s")
    for row in report["ops"]:
        row["of_copy"] = row["gb_per_s"] / copy if copy and row["gb_per_s"] else None
    return report


def read_torch(text):
    """{(op, model, dtype, tokens): seconds}."""
    rows = [line.split("\t") for line in text.splitlines() if line.startswith("op\t")]
    return {(op, model, dtype, int(tokens)): float(seconds) for _, op, model, dtype, tokens, seconds in rows}


def compare(ops, torch):
    for row in ops:
        theirs = torch.get(tuple(row[part] for part in KEY))
        row["torch_seconds"] = theirs
        row["times_torch"] = theirs / row["seconds"] if theirs and row["seconds"] else None


def show(report):
    number = lambda value, form: format(value, form) if value is not None else "-"
    device = report["device"]
    print(f"{device['name']}, sm_{device['compute_capability'].replace('.', '')}, copy "
          f"{report['copy_gb_per_s']:.0f} GB/s" + (" (emulated: no figure here means anything)"
                                                   if report["emulated"] else ""))
    print(f"{'op':11} {'model':13} {'dtype':5} {'tokens':>7} {'us':>10} {'GB/s':>8} {'of copy':>8} {'x torch':>8}")
    for row in report["ops"]:
        print(f"{row['op']:11} {row['model']:13} {row['dtype']:5} {row['tokens']:7} {row['seconds'] * 1e6:10.1f} "
              f"{number(row['gb_per_s'], '.1f'):>8} {number(row['of_copy'], '.2f'):>8} "
              f"{number(row['times_torch'], '.1f'):>8}")
