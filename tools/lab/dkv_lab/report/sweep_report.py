"""What `dkv sweep` found, as report.html with its figures as PNG and SVG.

    dkv sweep prompts/*.safetensors --policy dynamickv,snapkv --capacity 64,128,256 -o sweep.jsonl
    dkv report sweep.jsonl -o out/
    dkv report sweep.jsonl -o out/ --model MODEL --question questions.txt

With a model its answers are measured, too: each point is compacted and asked the questions, a line each, and so is the
whole cache. Then the page ranks policies by KL to the whole cache, and out/judged.csv has every number. A line may be
{"question": "…", "answer": "…", "file": "…"}: whether the answer is found is counted; a question with a file is of that cache alone.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from dkv.errors import UserError

from . import measured, page, sweep, words
from .means import Study


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("DKV_COMMAND", "dkv-lab report"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS", help="JSON lines of dkv sweep")
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), metavar="FOLDER", help="made if missing (%(default)s)")
    parser.add_argument("--title", help="of the page")
    parser.add_argument("--model", help="asks this model: a Hugging Face folder, or smollm2 or gemma3-270m")
    parser.add_argument("--question", type=Path, metavar="FILE", help="what it is asked")
    options = parser.parse_args(arguments)
    if (options.model is None) != (options.question is None):
        parser.error("--model and --question belong together")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    points, missing = sweep.read(options.results)
    models = list(dict.fromkeys(point.model for point in points))
    if options.model is not None and len(models) > 1:
        raise UserError(f"--model is one model, and the sweep has caches of {', '.join(models)}: report on each alone")
    options.output.mkdir(parents=True, exist_ok=True)
    verdicts = _judged(points, options) if options.model is not None else []
    studies = []
    for model in models:
        study = Study(model, [point for point in points if point.model == model])
        judged = measured.Judged(study, verdicts) if verdicts else None
        prefix = f"{re.sub('[^a-z0-9]+', '-', model.lower()).strip('-') or 'model'}-" if len(models) > 1 else ""
        studies.append((study, [each for each in missing if each.model in (model, "")], page.draw(study, prefix), judged))
    for _, _, drawn, _ in studies:
        page.save(drawn, options.output)
    title = options.title or f"KV cache budgets{': ' + ', '.join(filter(None, models)) if any(models) else ''}"
    page.write(options.output / "report.html", title, studies, [str(path) for path in options.results])
    for study, absent, _, judged in studies:
        for sentence in [*(judged.summary() if judged else []), *words.summary(study, absent)]:
            print(sentence)
    figures = sum(len(drawn) for _, _, drawn, _ in studies)
    print(f"{options.output / 'report.html'} and {figures} figures beside it")
    return 0


def _judged(points: list[sweep.Point], options: argparse.Namespace) -> list:
    from dkv.hf import models

    from .. import judge  # torch, which a report does without.

    questions = judge.read_questions(options.question)
    model, tokenizer, _ = models.load(options.model)
    verdicts = judge.judge(points, questions, model, tokenizer)
    judge.write(options.output / "judged.csv", verdicts)
    return verdicts
