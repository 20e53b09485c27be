"""Prefills on disk: a prompt is computed once, however many runs look at it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .probe import Layer, Probe, Prompt

log = logging.getLogger("dkv_lab")

_WORDS = "dkv.prefill"  # The metadata that a file of this store has, as JSON.
_ROWS = ("keys", "values", "queries", "accumulated")


class PrefillStore:
    """With a folder, prefills (and greedy continuations) are kept there; without one they are just computed.

    A prompt of 1,024 tokens of SmolLM2 takes 47 MB. Entries are found by model, tokens and window. They are
    safetensors, which contain numbers and no code; a file that is not readable is computed anew.
    """

    def __init__(self, probe: Probe, model_key: str, folder: Path | None = None):
        self._probe, self._model_key, self._folder = probe, model_key, folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        old = len(list(folder.glob("*.pt")))
        if old:
            log.warning(
                "%s: %d files *.pt of an earlier dkv are not read, because reading a pickle can run code: "
                "their prompts are computed anew; delete the files",
                folder,
                old,
            )

    def prefill(self, tokens: list[int], accumulate: bool = False, greedy: int = 0) -> tuple[Prompt, torch.Tensor | None]:
        """The prompt and, if wanted, its next `greedy` tokens with the full cache."""
        path = self._path(tokens)
        kept = self._read(path) if path is not None and path.exists() else None
        if kept is not None:
            enough = not accumulate or all(kept[0].layers[i].accumulated is not None for i in kept[0].compressed)
            if enough and (greedy == 0 or (kept[1] is not None and kept[1].numel() >= greedy)):
                return kept[0], kept[1][:greedy] if greedy else None
        prompt = self._probe.prefill(torch.tensor(tokens, device=self._probe.model.device), accumulate)
        continuation = self._probe.greedy(prompt, greedy) if greedy else None
        if path is not None:
            scratch = path.with_suffix(f".{os.getpid()}")
            _write(scratch, prompt, continuation)
            os.replace(scratch, path)
        return prompt, continuation

    def _path(self, tokens: list[int]) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(f"{self._model_key}/{self._probe.window}/{tokens}".encode()).hexdigest()[:24]
        return self._folder / f"{digest}.safetensors"

    def _read(self, path: Path) -> tuple[Prompt, torch.Tensor | None] | None:
        try:
            return _load(path, str(self._probe.model.device))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            log.warning("%s is not a kept prefill (%s): it is computed anew", path, error)
            return None


def _write(path: Path, prompt: Prompt, continuation: torch.Tensor | None) -> None:
    tensors = {"logits": prompt.logits}
    if continuation is not None:
        tensors["continuation"] = continuation
    layers = []
    for index, layer in enumerate(prompt.layers):
        rows = {f"layers.{index}.{name}": getattr(layer, name) for name in _ROWS}
        tensors |= {name: tensor for name, tensor in rows.items() if tensor is not None}
        layers.append({"scale": layer.scale, "softcap": layer.softcap, "sliding": layer.sliding})
    words = {"tokens": prompt.tokens, "window": prompt.window, "layers": layers}
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {_WORDS: json.dumps(words)}
    )


def _load(path: Path, device: str) -> tuple[Prompt, torch.Tensor | None]:
    with safe_open(path, "pt", device=device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        words = json.loads((file.metadata() or {})[_WORDS])
    layers = [
        Layer(**{name: tensors.get(f"layers.{index}.{name}") for name in _ROWS}, **said)
        for index, said in enumerate(words["layers"])
    ]
    return Prompt(words["tokens"], words["window"], layers, tensors["logits"]), tensors.get("continuation")
