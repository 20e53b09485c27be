"""Calibration and evaluation in pure torch: which layers and heads matter, and what a budget costs.

    dkv calibrate MODEL -o profile.json
    dkv eval MODEL --profile profile.json -o results.csv

Needs torch and transformers; calibrate neither a sidecar nor the C library.
"""
