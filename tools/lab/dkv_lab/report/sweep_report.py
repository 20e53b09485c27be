"""What `dkv sweep` found, as report.html with its figures as PNG and SVG.

    dkv sweep prompts/*.safetensors --policy dynamickv,snapkv --capacity 64,128,256 -o sweep.jsonl
    dkv report sweep.jsonl -o out/
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from . import page, sweep, words
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
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    points, missing = sweep.read(options.results)
    options.output.mkdir(parents=True, exist_ok=True)
    models = list(dict.fromkeys(point.model for point in points))
    studies = []
    for model in models:
        study = Study(model, [point for point in points if point.model == model])
        prefix = f"{re.sub('[^a-z0-9]+', '-', model.lower()).strip('-') or 'model'}-" if len(models) > 1 else ""
        studies.append((study, [each for each in missing if each.model in (model, "")], page.draw(study, prefix)))
    for _, _, drawn in studies:
        page.save(drawn, options.output)
    title = options.title or f"KV cache budgets{': ' + ', '.join(filter(None, models)) if any(models) else ''}"
    page.write(options.output / "report.html", title, studies, [str(path) for path in options.results])
    for study, absent, _ in studies:
        for sentence in words.summary(study, absent):
            print(sentence)
    figures = sum(len(drawn) for _, _, drawn in studies)
    print(f"{options.output / 'report.html'} and {figures} figures beside it")
    return 0
