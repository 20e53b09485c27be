"""LongBench (Bai et al. 2023) from files that the user has: its prompts, its truncation, its metrics.

Rows are JSON lines with "input", "context", "answers" and, for classifications, "all_classes"; the task is
the row's "dataset" or the file's name. Nothing is downloaded.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

from dkv.errors import UserError

from . import metrics
from .needles import Row

# The release asks these without a chat template: they are examples to go on with.
_PLAIN = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
_STOPS_AT_LINE = ("samsum",)


class LongBenchError(UserError):
    """A file is none of LongBench's, or there is none."""


@functools.cache
def tasks() -> dict[str, dict]:
    """Per task its prompt and how many tokens may be written."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))["tasks"]


def rows(tokenizer, path: Path, longest: int, count: int | None) -> list[Row]:
    """Every task's first `count` rows (None: all), prompts cut in the middle to `longest` tokens."""
    out: list[Row] = []
    for file in _files(path):
        lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        entries = [(number, *_entry(file, number, line)) for number, line in lines if line.strip()]
        all_of_task = Counter(task for _, task, _ in entries)
        taken: Counter = Counter()
        for number, task, entry in entries:
            taken[task] += 1
            if count is None or taken[task] <= count:
                key = f"longbench-{file.stem}-{longest}-{entry.get('_id', number)}"
                out.append(_row(tokenizer, task, entry, key, longest, all_of_task[task]))
    return out


def prompt_tokens(tokenizer, task: str, entry: dict, longest: int) -> list[int]:
    """The task's prompt; where it is too long the middle goes, since both ends may instruct."""
    text = tasks()[task]["prompt"].format(context=entry["context"], input=entry["input"])
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) > longest:
        half = longest // 2
        text = tokenizer.decode(tokens[:half]) + tokenizer.decode(tokens[-half:])
    if task not in _PLAIN and getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer(text)["input_ids"]


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise LongBenchError(f"{path} is neither a LongBench file nor a folder with .jsonl files")
    return files


def _entry(file: Path, number: int, line: str) -> tuple[str, dict]:
    try:
        entry = json.loads(line)
        task = str(entry.get("dataset") or file.stem).removesuffix("_e")
        missing = [name for name in ("input", "context", "answers") if name not in entry]
    except (ValueError, AttributeError):
        raise LongBenchError(f"{file}:{number} is not a JSON object") from None
    if missing:
        raise LongBenchError(f"{file}:{number} has no {', '.join(missing)}")
    if task not in tasks():
        raise LongBenchError(f"{file}:{number} is of task {task}: there are {', '.join(tasks())}")
    return task, entry


def _row(tokenizer, task: str, entry: dict, key: str, longest: int, all_of_task: int) -> Row:
    def judge(text: str) -> float:
        if task in _STOPS_AT_LINE:
            text = text.lstrip("\n").split("\n")[0]
        return metrics.score(task, text, entry["answers"], entry.get("all_classes"))

    tokens = prompt_tokens(tokenizer, task, entry, longest)
    source = {name: value for name, value in entry.items() if name != "context"} | {"rows": all_of_task, "longest": longest}
    return Row(key, "longbench", task, tokens, [], writes=tasks()[task]["tokens"], judge=judge, source=source)
