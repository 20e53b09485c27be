"""Prefills on disk: a prompt is computed once, however many runs look at it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from .probe import Probe, Prompt


class PrefillStore:
    """With a folder, prefills (and greedy continuations) are kept there; without one they are just computed.

    A prompt of 1,024 tokens of SmolLM2 takes 47 MB. Entries are found by model, tokens and window.
    """

    def __init__(self, probe: Probe, model_key: str, folder: Path | None = None):
        self._probe, self._model_key, self._folder = probe, model_key, folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def prefill(self, tokens: list[int], accumulate: bool = False, greedy: int = 0) -> tuple[Prompt, torch.Tensor | None]:
        """The prompt and, if wanted, its next `greedy` tokens with the full cache."""
        path = self._path(tokens)
        if path is not None and path.exists():
            kept = torch.load(path, weights_only=False)
            enough = not accumulate or all(kept[0].layers[i].accumulated is not None for i in kept[0].compressed)
            if enough and (greedy == 0 or (kept[1] is not None and kept[1].numel() >= greedy)):
                return kept[0], kept[1][:greedy] if greedy else None
        prompt = self._probe.prefill(torch.tensor(tokens, device=self._probe.model.device), accumulate)
        continuation = self._probe.greedy(prompt, greedy) if greedy else None
        if path is not None:
            scratch = path.with_suffix(f".{os.getpid()}")
            torch.save((prompt, continuation), scratch)
            os.replace(scratch, path)
        return prompt, continuation

    def _path(self, tokens: list[int]) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(f"{self._model_key}/{self._probe.window}/{tokens}".encode()).hexdigest()[:24]
        return self._folder / f"{digest}.pt"
