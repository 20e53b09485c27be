"""The demo's --backend cuda: one short prompt through the CPU backend and through the CUDA backend, and whether
the two kept the same positions. Where there is no GPU the CUDA backend runs on the emulation."""

from __future__ import annotations

import dataclasses
import pathlib

from rich.console import Console
from rich.table import Table

from document import EXPECTED, LICENCE, NOTE, QUESTION, Document

SHORT_CHARACTERS = 1200  # About 300 of SmolLM2's tokens: a lane of a warp is a fiber on the emulation.
POLICIES = ("streamingllm", "snapkv", "pyramidkv", "dynamickv")
CAPACITY = 96


@dataclasses.dataclass(frozen=True)
class Build:
    """Where a backend's programs and libraries are."""

    title: str
    bin: pathlib.Path
    flags: tuple[str, ...]
    environment: dict[str, str]


def short_document() -> Document:
    """The beginning of the default document, with its sentence in the middle."""
    text = LICENCE.read_text(encoding="utf-8").split("\n\n", 2)[2][:SHORT_CHARACTERS]
    at = text.index("\n\n", len(text) * 45 // 100)
    return Document(f"the beginning of {LICENCE}, with one sentence added", f"{text[:at]}\n\n{NOTE}{text[at:]}", QUESTION, EXPECTED)


def gpu_words(folder: pathlib.Path) -> str | None:
    """Of the GPU that the libdkv_cuda in `folder` sees; None: it sees none, or is not there."""
    import ctypes

    path = folder / "libdkv_cuda.so"
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    library.dkv_cuda_built_with.restype = ctypes.c_char_p
    count = ctypes.c_uint32()
    return library.dkv_cuda_built_with().decode() if library.dkv_cuda_device_count(ctypes.byref(count)) == 0 else None


def builds(bin_folder: pathlib.Path) -> tuple[Build, Build]:
    """The CPU's, and the GPU's or its stand-in."""
    top = bin_folder.parent
    cpu = Build("cpu", bin_folder, ("--backend", "cpu"), {"DKV_DEVICE": "cpu"})
    flags = ("--backend", "cuda", "--event-timeout-ms", "60000")
    if words := gpu_words(top / "lib"):
        return cpu, Build(words, bin_folder, flags, {"DKV_CUDA_LIBRARY": str(top / "lib" / "libdkv_cuda.so"), "DKV_DEMO_GPU": "1"})
    emulated = top / "emulated"
    if not (emulated / "bin" / "dkvd").exists():
        raise SystemExit(f"demo: no GPU, and no emulation in {emulated}: build where a CUDA toolkit is (make deps)")
    library = emulated / "lib" / "libdkv_cuda.so"
    words = gpu_words(library.parent)
    if words is None:
        raise SystemExit(f"demo: {library} does not load")
    return cpu, Build(words, emulated / "bin", flags, {"DKV_CUDA_LIBRARY": str(library), "DKV_DEVICE": "cuda"})


def compare(options, document: Document, make_sidecar, make_engine, folder: pathlib.Path, console: Console) -> dict:
    """Runs every policy twice. Returns demo.json's content."""
    policies = (options.policy,) if options.policy else POLICIES
    runs: dict[str, list[dict]] = {}
    for build in builds(options.bin):
        name = "cpu" if build.title == "cpu" else "cuda"
        console.print(f"{name}: {build.title}" if name == "cuda" else "cpu: this machine's cores")
        sidecar = make_sidecar(build.bin, f"ipc://{folder}/{name}.sock", options.out / f"dkvd-{name}.log", build.flags)
        engine = make_engine(options.out / f"engine-{name}.log", build.environment)
        try:
            events = engine.events()
            next(events)
            runs[name] = [ask(engine, events, sidecar, document, policy, options) for policy in policies]
        finally:
            engine.close()
            sidecar.close()
    report = {"document": document.name, "runs": [], "cuda": builds(options.bin)[1].title}
    for policy, cpu, cuda in zip(policies, runs["cpu"], runs["cuda"]):
        report["runs"].append({"policy": policy, "cpu": cpu, "cuda": cuda, "same": same(cpu, cuda)})
    return report


def ask(engine, events, sidecar, document: Document, policy: str, options) -> dict:
    wish = {"policy": policy, "capacity": options.capacity or CAPACITY, "strict": True, "timeout_s": 600.0}
    engine.ask(
        dkv=True,
        endpoint=sidecar.endpoint,
        wish=wish,
        document=dataclasses.asdict(document),
        max_new_tokens=options.max_new_tokens,
        positions=True,
    )
    return next(event for event in events if event.pop("event") == "done")


def same(cpu: dict, cuda: dict) -> list[bool]:
    """Per layer: the same positions in every KV head."""
    return [a == b and a is not None for a, b in zip(cpu["positions"], cuda["positions"], strict=True)]


def print_comparison(report: dict, console: Console) -> bool:
    """Whether all is the same."""
    table = Table(title=f"{report['runs'][0]['cpu']['prompt_tokens']} tokens, kept by the CPU and by {report['cuda']}", title_justify="left")
    for name in ("policy", "same positions", "same answer", "cpu: sidecar s", "cuda: sidecar s", "slower"):
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for run in report["runs"]:
        cpu, cuda = run["cpu"], run["cuda"]
        seconds = cpu["sidecar_seconds"], cuda["sidecar_seconds"]
        table.add_row(
            run["policy"],
            f"{sum(run['same'])} of {len(run['same'])} layers",
            "yes" if cpu["answer"] == cuda["answer"] else "no",
            f"{seconds[0]:.2f}",
            f"{seconds[1]:.2f}",
            f"{seconds[1] / seconds[0]:.0f}×" if seconds[0] else "?",
        )
    console.print(table)
    for run in report["runs"]:
        for name in ("cpu", "cuda"):
            if run[name]["failure"]:
                console.print(f"[red]{run['policy']} on {name}: not compressed: {run[name]['failure']}[/]")
    if "emulated" in report["cuda"]:
        console.print("The times are the emulation's, a fiber for each lane, and say nothing of a GPU's.", style="dim")
    return all(all(run["same"]) and not run["cpu"]["failure"] and not run["cuda"]["failure"] for run in report["runs"])
