"""Reads what dkv_gpu_bench and torch_baseline.py print, and puts it side by side."""
import roofline
from steps import NotRun

KEY = ("op", "model", "dtype", "tokens")


def read_device(values):
    name, uuid, capability, memory, multiprocessors, clock, bandwidth, l2, built_with = values
    return {"name": name, "uuid": uuid, "compute_capability": capability, "bytes": int(memory),
            "multiprocessors": int(multiprocessors), "clock_hz": float(clock), "memory_bytes_per_s": float(bandwidth),
            "l2_bytes": int(l2), "built_with": built_with}


def read_op(values):
    op, model, dtype, tokens, median, least, most, runs, moved = values
    return {"op": op, "model": model, "dtype": dtype, "tokens": int(tokens), "seconds": float(median),
            "seconds_least": float(least), "seconds_most": float(most), "runs": int(runs), "bytes": float(moved)}


def read_bench(text):
    """{"device": …, "copies_gb_per_s": […], "ops": […]}; ValueError for another line than dkv_gpu_bench's."""
    report = {"copies_gb_per_s": [], "ops": []}
    for line in text.splitlines():
        kind, *values = line.split("\t")
        try:
            if kind == "device":
                report["device"] = read_device(values)
            elif kind == "copy":
                report["copies_gb_per_s"].append(float(values[0]) / 1e9)
            elif kind == "op":
                report["ops"].append(read_op(values))
            else:
                raise ValueError
        except (ValueError, IndexError):
            raise ValueError(f"not a line of dkv_gpu_bench: {line}") from None
    return report


def read_part(text):
    """The same of a program that died: the lines before the one that is not whole."""
    lines = text.splitlines()
    while lines:
        try:
            return read_bench("\n".join(lines))
        except ValueError:
            lines.pop()
    return read_bench("")


def read_torch(text):
    """{"version", "device", "rows": {(op, model, dtype, tokens): seconds}, "left_out": [line]}.

    NotRun where Python has no torch, or torch no GPU.
    """
    said = {"rows": {}, "left_out": []}
    for line in text.splitlines():
        kind, *values = line.split("\t")
        if kind == "torch":
            said["version"], said["device"] = values
        elif kind == "op":
            op, model, dtype, tokens, seconds = values
            said["rows"][op, model, dtype, int(tokens)] = float(seconds)
        elif kind == "left out":
            said["left_out"].append(" ".join(values))
        elif kind == "not here":
            raise NotRun(" ".join(values))
    if "version" not in said:
        raise ValueError("not what torch_baseline.py prints")
    return said


def compare(report):
    """Next to each op: its rate against the copies', the least time it can take, and torch's."""
    device, rows = report.get("device"), (report["torch"] or {}).pop("rows", {})
    copy = max(report["copies_gb_per_s"], default=None)
    peaks = device and roofline.gpu_of(device)
    ratio = lambda a, b: a / b if a and b else None
    report["roofline_of"] = peaks.name if peaks else "H100, by its data sheet: this device does not say its clocks"
    for row in report["ops"]:
        theirs = rows.get(tuple(row[part] for part in KEY))
        prefill = rows.get(("flash_prefill", row["model"], row["dtype"], row["tokens"]))
        work = roofline.work(row["op"], roofline.MODELS[row["model"]], row["dtype"], row["tokens"])
        least, by = roofline.bound(peaks or roofline.H100, work, row["dtype"])
        rate = ratio(row["bytes"] / 1e9, row["seconds"])
        row.update(gb_per_s=rate, of_copy=ratio(rate, copy), least_seconds=least, least_by=by,
                   times_least=ratio(row["seconds"], least), torch_seconds=theirs,
                   times_torch=ratio(theirs, row["seconds"]), flash_prefill_seconds=prefill,
                   of_flash_prefill=ratio(row["seconds"], prefill))


def show(report):
    """Of ours, how much of a copy's rate; least: computed (m memory, p products, e exponentials)."""
    number = lambda value, form: format(value, form) if value is not None else "-"
    device = report["device"]
    copies = " and ".join(f"{copy:.0f}" for copy in report["copies_gb_per_s"])
    print(f"\n{device['name']}, sm_{device['compute_capability'].replace('.', '')}, {device['built_with']}; copies "
          f"{copies} GB/s; least: computed for {report['roofline_of']}")
    print(f"{'op':10} {'model':12} {'dtype':5} {'tokens':>6} {'us':>9} {'GB/s':>7} {'of copy':>7} {'least us':>9} "
          f"{'x torch':>7} {'of flash prefill':>16}")
    for row in report["ops"]:
        least = f"{row['least_seconds'] * 1e6:.2f} {row['least_by'][0]}"
        print(f"{row['op']:10} {row['model']:12} {row['dtype']:5} {row['tokens']:6} {row['seconds'] * 1e6:9.1f} "
              f"{number(row['gb_per_s'], '.1f'):>7} {number(row['of_copy'], '.2f'):>7} {least:>9} "
              f"{number(row['times_torch'], '.1f'):>7} {number(row['of_flash_prefill'], '.4f'):>16}")
    print(flush=True)
