"""What to keep of a KV cache, measured.

    dkv-lab calibrate MODEL -o profile.json    what each layer or KV head of a model is worth
    dkv-lab eval MODEL -o results.csv          every policy at equal bytes on needles and text
    dkv-lab eval report results.csv            its tables again
    dkv-lab eval figures results.csv           its figures
    dkv-lab certify results.csv --policy NAME  the smallest size whose risk of losing much is bounded
    dkv-lab report sweep.jsonl -o out/         what dkv sweep found, as a page
    dkv-lab ray sweep FILES -o OUT -- FLAGS    dkv sweep or compact over many files, on Ray's workers
    dkv-lab store ls URL                       dkv ls, verify, compact and prune in an object store
    dkv-lab quick                              a small evaluation that must come out as expected

`dkv calibrate`, `dkv eval` and `dkv report` are the same commands. Each has --help.
"""

from __future__ import annotations

import sys

from dkv import command

COMMANDS = {
    "calibrate": "dkv_lab.calibrate:main",
    "eval": "dkv_lab.evaluate:main",
    "certify": "dkv_lab.certify:main",
    "report": "dkv_lab.report.sweep_report:main",
    "ray": "dkv_lab.ray_work:main",
    "store": "dkv_lab.remote:main",
    "quick": "dkv_lab.quick:main",
}


def main() -> int:
    arguments = sys.argv[1:]
    resumes = arguments[:1] in (["calibrate"], ["eval"])
    interrupted = "stopped; the same command goes on from here" if resumes else "interrupted"
    return command.run(lambda: command.dispatch(__doc__, COMMANDS, arguments), interrupted)


if __name__ == "__main__":
    sys.exit(main())
