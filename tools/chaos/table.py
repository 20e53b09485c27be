"""What was tried and what came of it: as a table for the terminal and for docs/RELIABILITY.md."""

from __future__ import annotations

import collections
import os
import pathlib
import re

from faults import FAULTS
from states import points

WORDS = {"compressed": "c", "partly": "p", "whole": "w", "engine ended": "e", "broken": "BROKEN"}


def machine() -> str:
    text = pathlib.Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)
    return f"{os.cpu_count()}-core {name[1].strip() if name else 'machine'}"


def put(page: pathlib.Path, program: str, text: str) -> None:
    """Between the two comments that the page has for this program."""
    begin, end = f"<!-- {program} --write begins -->", f"<!-- {program} --write ends -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} has no place for what {program} writes: '{begin}' … '{end}'")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


class Results:
    def __init__(self, seed: int):
        self.seed = seed
        self.counts: dict[tuple[str, str], collections.Counter] = collections.defaultdict(collections.Counter)
        self.kinds: collections.Counter = collections.Counter()
        self.disk: dict[str, list[str]] = {}

    def add(self, fault: str, state: str, kind: str, outcome: str) -> None:
        self.counts[fault, state][outcome] += 1
        self.kinds[kind] += 1

    def broken(self) -> int:
        return sum(counts["broken"] for counts in self.counts.values())

    def cell(self, fault: str, state: str) -> str:
        counts = self.counts.get((fault, state))
        return " ".join(f"{counts[word]}{letter}" for word, letter in WORDS.items() if counts[word]) if counts else "-"

    def text(self, seconds: float, growth: int) -> str:
        total = collections.Counter()
        for counts in self.counts.values():
            total += counts
        lines = [
            f"Seed {self.seed}, {machine()}, {seconds / 60:.0f} minutes, load average {os.getloadavg()[2]:.1f}. dkvd's "
            f"resident memory between faults: at most {growth / 2**20:.1f} MiB above its first rest.",
            "",
            f"{sum(total.values())} faults ({self.kinds['c']} beside the C engine, {self.kinds['hf']} beside SmolLM2 in "
            f"transformers, {self.kinds['vllm']} in vLLM), {self.broken() or 'no'} promise broken: "
            + ", ".join(f"{total[word]} {word} ({letter})" for word, letter in WORDS.items() if word != "broken"),
            "",
            "| fault | " + " | ".join(points()) + " |",
            "| --- |" + " --- |" * len(points()),
        ]
        for fault in FAULTS:
            cells = [self.cell(fault.name, state) for state in points()]
            if set(cells) != {"-"}:
                lines.append(f"| {fault.name} | " + " | ".join(cells) + " |")
        if self.disk:
            lines += ["", "| full disk under | done | refused |", "| --- | --- | --- |"]
            lines += [f"| `{name}` | {all_.count('done')} | {all_.count('refused')} |" for name, all_ in self.disk.items()]
        return "\n".join(lines)
