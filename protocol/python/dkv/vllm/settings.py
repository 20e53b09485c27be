"""What an operator and a request can choose."""

from __future__ import annotations

import dataclasses

import dkv
from dkv import parameters

CONNECTOR = "DkvConnector"
GROUPS_MAX = 16  # Of the default: the scheduler's time per step grows with the groups (docs/VLLM.md).


def configured(config) -> bool:
    """Whether this VllmConfig (or None) asks for dkv."""
    transfer = getattr(config, "kv_transfer_config", None)
    return transfer is not None and transfer.kv_connector == CONNECTOR


@dataclasses.dataclass(frozen=True)
class Settings:
    """`kv_connector_extra_config`. Raises ValueError for a key that is not known and a value that cannot be."""

    layers_per_group: int | None = None  # Layers that share a block table and a count; None: see layers_of_group().
    endpoint: str | None = None  # Of dkvd; None: DKV_ENDPOINT, else this user's default.

    @classmethod
    def read(cls, given: dict) -> "Settings":
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise ValueError(f"dkv: kv_connector_extra_config has {name!r}: expected {' or '.join(known)}")
        settings = cls(**given)
        layers, endpoint = settings.layers_per_group, settings.endpoint
        if layers is not None and (not isinstance(layers, int) or isinstance(layers, bool) or layers < 1):
            raise ValueError(f"dkv: layers_per_group is {layers!r}: expected a whole number of at least 1")
        if endpoint is not None and not isinstance(endpoint, str):
            raise ValueError(f"dkv: endpoint is {endpoint!r}: expected a string such as ipc:///run/dkv/dkvd.sock")
        return settings

    def layers_of_group(self, layers: int) -> int:
        """Layers in each group. vLLM needs groups of equal size. By default at most GROUPS_MAX groups.

        Raises ValueError for a setting that does not divide the model's layers."""
        divisors = [each for each in range(1, layers + 1) if layers % each == 0]
        if self.layers_per_group is None:
            return next(each for each in divisors if layers // each <= GROUPS_MAX)
        if self.layers_per_group not in divisors:
            raise ValueError(
                f"dkv: layers_per_group is {self.layers_per_group}, which does not divide the model's {layers} "
                f"full-attention layers: use one of {', '.join(map(str, divisors))}"
            )
        return self.layers_per_group


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one request asked for, in its kv_transfer_params."""

    off: bool = False
    policy: tuple[tuple[str, object], ...] = ()  # Fields of dkv.Policy; hashable, and small to send.
    wrong: str | None = None  # Why the wish was not understood: the request is then left whole.

    @classmethod
    def read(cls, params: dict | None) -> "Choice":
        """{"dkv": "off"}, {"dkv": {"capacity": 512}} or nothing. Does not raise: no request fails for a wish."""
        if not params or "dkv" not in params:
            return cls()
        wish = params["dkv"]
        if wish == "off":
            return cls(off=True)
        if not isinstance(wish, dict):
            return cls(wrong=f'kv_transfer_params["dkv"] is {wish!r}: expected "off" or parameters of a policy')
        known = ("name", *parameters.NAMES)
        for name in wish:
            if name not in known:
                return cls(wrong=f'kv_transfer_params["dkv"] has {name!r}: expected {", ".join(known)}')
        try:
            dkv.Policy(**wish)
        except dkv.DkvError as error:
            return cls(wrong=str(error))
        return cls(policy=tuple(sorted(wish.items())))
