"""The profile of the model that vLLM serves, found as dkv.hf finds it, and a rank's part of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vllm.logger import init_logger

import dkv
from dkv.hf import checkpoint, profiles

log = init_logger("vllm.dkv")


def find(config, layers: int) -> dkv.Profile | None:
    """Of a VllmConfig, `layers` of whose model are compressed. Logs which it is, or why there is none: no reason to fail."""
    model = config.model_config.model
    try:
        found = profiles.find(checkpoint.describe(_folder(config), config.model_config.hf_config))
    except Exception as error:  # Models are described and stored in many ways.
        log.info("dkv: no profile is looked for, since %s is not read as a model that has one: %s", model, error)
        return None
    if found is None:
        log.info("dkv: no profile was made for the weights of %s", model)
        return None
    path, profile = found
    if len(profile.weights) != layers:
        log.info("dkv: %s is of %d layers, and %d of %s are compressed", path, len(profile.weights), layers, model)
        return None
    log.info("dkv: the profile of %s is %s", model, path)
    return profile


def shares(profile: dkv.Profile) -> list[list[float]]:
    """Of the mean number of rows, what each layer and KV head is given, before any is cut to the prompt's length."""
    powers = [[weight**profile.alpha for weight in row] for row in profile.weights]
    mean = sum(map(sum, powers)) / sum(map(len, powers))
    return [[max(profile.floor, power / mean) for power in row] for row in powers]


def of_rank(profile: dkv.Profile, kv_heads: int, rank: int, ranks: int) -> dkv.Profile:
    """The weights of the KV heads that `rank` has. The surrogate reads K and V of all heads: a rank goes without it."""
    if ranks == 1:
        return profile
    weights = profile.weights
    if len(weights[0]) > 1:
        each = max(1, kv_heads // ranks)
        first = rank * kv_heads // ranks  # More ranks than heads: several have the same one.
        weights = [row[first : first + each] for row in weights]
    return dataclasses.replace(profile, weights=weights, surrogate=None)


def _folder(config) -> Path:
    model = Path(config.model_config.model)
    if model.is_dir():
        return model
    from huggingface_hub import snapshot_download

    options = dict(revision=config.model_config.revision, cache_dir=config.load_config.download_dir)
    return Path(snapshot_download(str(model), local_files_only=True, **options))
