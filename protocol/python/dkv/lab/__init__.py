"""Calibration and evaluation in pure torch: which layers and heads matter, and what a budget costs.

    python -m dkv.lab.calibrate MODEL_DIR -o profile.json
    python -m dkv.lab.evaluate MODEL_DIR --profile profile.json -o results.csv

Needs torch and transformers; neither a sidecar nor the C library.
"""
