"""What a cache asks the sidecar for: a policy, its parameters and a profile; under a risk those of a certificate."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
from pathlib import Path

import torch

import dkv
from dkv import parameters, programs
from dkv.errors import UserError

from . import profiles
from .profile_file import ProfileError


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `dkv certify` stored in a profile, as `dkv policy show NAME --profile FILE --risk SHARE` chooses it."""

    name: str
    policy: str
    wish: dict[str, object]  # The capacity and the other parameters, as dkv.Policy takes them.
    tokens: tuple[int, int]  # The shortest and the longest prompt that was measured.
    promise: str

    def outside(self, tokens: int) -> str | None:
        """Why it says nothing of a prompt of so many tokens."""
        least, most = self.tokens
        if least <= tokens <= most:
            return None
        return f"the prompt has {tokens} tokens, and '{self.name}' is of prompts of {least} to {most}: give a size instead of a risk"


def certificate(path: str | os.PathLike, policy: str, risk: float) -> Certificate:
    """Raises ProfileError, in dkv's words, where none fits or the program dkv is missing."""
    file = Path(path).expanduser()
    try:
        return _chosen(str(file), file.stat().st_mtime_ns, policy, risk)
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=32)
def _chosen(path: str, changed: int, policy: str, risk: float) -> Certificate:
    try:
        program = str(programs.find("dkv"))
    except UserError as missing:
        raise ProfileError(str(missing)) from None
    command = [program, "policy", "show", policy, "--profile", path, "--risk", repr(risk), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ProfileError(" ".join(done.stderr.split()).removeprefix("dkv: "))
    made = json.loads(done.stdout)
    kinds = {each.name: each.kind for each in parameters.PARAMETERS}
    wish: dict[str, object] = {"capacity": made["capacity"]}
    for flag, value in made["flags"].items():
        name = flag.replace("-", "_")
        if name not in kinds:
            raise ProfileError(f"{path}: '{made['name']}' has {flag}, which this dkv does not know")
        wish[name] = value == "true" if kinds[name] is bool else kinds[name](value)
    return Certificate(made["name"], made["policy"], wish, tuple(made["tokens"]), made["promise"])


def of(
    model: torch.nn.Module,
    policy: str | None,
    wish: dict[str, object],
    profile: str | os.PathLike | dkv.Profile | None,
    force_profile: bool,
    risk: float | None,
) -> tuple[dict[str, object], Certificate | None]:
    """What dkv.Policy takes, and the certificate that a risk chose.

    Raises ProfileError; DkvError (INVALID_ARGUMENT) for what a risk does not go with.
    """
    certified = None
    if risk is not None:
        _refuse_beside_risk(wish, profile, force_profile)
        policy = policy or "auto"
        own = profile is None or str(profile) == profiles.AUTO
        path, found = _own_profile(model) if own else (profile, None)
        certified = certificate(path, policy, float(risk))
        wish = certified.wish
        # It goes with its certificate: dynamickv, for one, goes by a profile where there is one.
        found = found or profiles.resolve(model, path)
    else:
        unasked = profile is None and policy in (None, "auto", "reuse")
        found = profiles.resolve(model, "auto" if unasked else profile, force_profile)
        if found is not None and policy is None and not unasked:
            policy = "dynamickv"
    wish = {**wish, "name": policy, "profile": found}
    return {key: value for key, value in wish.items() if value is not None}, certified


def _refuse_beside_risk(wish: dict[str, object], profile: object, force_profile: bool) -> None:
    given = next((name for name, value in wish.items() if value is not None), None)
    refused = None
    if given is not None:
        refused = f"risk takes {given} from the certificate: leave it out"
    elif force_profile:
        refused = "risk goes with no force_profile: a certificate is of the weights that it was measured on"
    elif isinstance(profile, dkv.Profile):
        refused = "risk needs the profile's file, which holds the certificates, and profile is a dkv.Profile"
    if refused is not None:
        raise dkv.DkvError(dkv.Status.INVALID_ARGUMENT, refused)


def _own_profile(model: torch.nn.Module) -> tuple[Path, dkv.Profile]:
    try:
        found = profiles.find(profiles.describe(model))
    except Exception as error:  # Configs refuse in many ways.
        raise ProfileError(f"risk needs a profile with a certificate, and {type(model).__name__} cannot have one: {error}") from error
    if found is None:
        raise ProfileError(f"risk needs a profile with a certificate, and there is none of this {type(model).__name__}: dkv certify makes one")
    return found
