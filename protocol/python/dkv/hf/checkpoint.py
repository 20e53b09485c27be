"""What a profile is found by, read from a Hugging Face folder: for engines that load the weights themselves."""

from __future__ import annotations

import contextlib
from pathlib import Path

from safetensors import safe_open

from . import profile_file


def describe(folder: Path, config) -> dict:
    """As profiles.describe() of the model that transformers loads from `folder`. `config`: of transformers.

    Raises ProfileError: no safetensors with matrices of K and V (a quantised model has none), layers that cannot be probed.
    """
    text = config.get_text_config(decoder=True)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
        # Mapped, not read: the fingerprint touches a few pages of each.
        sampled = {name: file.get_tensor(name) for file in files for name in file.keys() if profile_file.is_sampled(name)}
        if not sampled:
            raise profile_file.ProfileError(f"{folder} has no safetensors with k_proj.weight and v_proj.weight")
        return profile_file.describe(text, sampled.items(), profile_file.sliding_windows(text), folder.name)
