"""Calibration, evaluation and reports: which layers and heads matter, and what a budget costs.

    dkv calibrate MODEL -o profile.json                     needs no sidecar and no libdkv
    dkv eval MODEL --profile profile.json -o results.csv    every policy at equal bytes
    dkv report sweep.jsonl -o out/                          what a sweep found, as a page

The same commands without the controller: `dkv-lab COMMAND`, `python -m dkv_lab COMMAND`.
"""
