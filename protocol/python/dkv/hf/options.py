"""What Cache() is given: checked when it is made, not in the middle of a forward."""

from __future__ import annotations

import os

import torch

import dkv
from dkv import checks


def check(
    model: object,
    *,
    policy: object,
    wish: dict,
    endpoint: object,
    progressive: object,
    engine: object,
    timeout_s: object,
    prompt_tokens: object,
    strict: object,
    profile: object,
    force_profile: object,
    risk: object,
) -> None:
    """Raises TypeError for what is not a model, DkvError (INVALID_ARGUMENT) for another wrong value."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model is a {type(model).__name__}, not a model of transformers")
    if policy is not None:
        checks.text("policy", policy)
    dkv.Policy(**wish)
    if endpoint is not None:
        checks.text("endpoint", endpoint)
    checks.seconds("timeout_s", timeout_s)
    if prompt_tokens is not None:
        checks.count("prompt_tokens", prompt_tokens, least=1)
    for name, value in (("progressive", progressive), ("strict", strict), ("force_profile", force_profile)):
        checks.flag(name, value)
    if risk is not None:
        check_risk(risk)
    if engine is not None and not hasattr(engine, "open_session"):
        raise checks.refusal("engine", engine, "a dkv.Engine")
    if profile is not None and not isinstance(profile, (str, os.PathLike, dkv.Profile)):
        raise checks.refusal("profile", profile, 'the path of a file, a dkv.Profile or "auto"')


def check_risk(risk: object) -> None:
    """Raises DkvError (INVALID_ARGUMENT)."""
    checks.number("risk", risk, "a share of 0 … 1", lambda value: 0 <= value <= 1)
