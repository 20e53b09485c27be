"""What the attention backend and the connector's worker half share: they meet in one process, and in no call."""

from __future__ import annotations

import dataclasses

from vllm.model_executor.layers.attention import Attention
from vllm.v1.kv_cache_interface import FullAttentionSpec

import dkv

from . import groups, profile, refusals
from .settings import Settings


def compressible(spec) -> bool:
    """Whether a layer of this cache spec can be compressed: plain full attention."""
    return type(spec) is FullAttentionSpec and spec.sliding_window is None and spec.attention_chunk_size is None


@dataclasses.dataclass
class Process:
    """Of the engine whose model was made last in this process."""

    config: object = None  # Its VllmConfig; None: dkv is not configured here.
    settings: Settings | None = None
    layers: dict = dataclasses.field(default_factory=dict)  # Name → layer that can be compressed, in the model's order.
    profile: dkv.Profile | None = None  # The model's.
    worker: object = None  # worker.Worker, once vLLM has made its connector.
    _groups: list[int] = dataclasses.field(default_factory=list)  # Of each of `layers`.
    _specs: int = 0  # Calls of customize_spec() for `layers`.

    def begin(self, config) -> None:
        """Called for every attention layer; a config that was not seen before is a new engine."""
        if config is not self.config:
            self.config, self.settings = config, Settings.read(config.kv_transfer_config.kv_connector_extra_config)
            self.layers, self.profile, self._groups, self._specs, self.worker = {}, None, [], 0, None

    def find_layers(self) -> dict:
        """`layers`, looked up when the model is complete; empty before. Raises ValueError for what is refused."""
        if self.config is None or self.layers:
            return self.layers
        made = self.config.compilation_config.static_forward_context
        found = {
            name: layer
            for name, layer in made.items()
            if isinstance(layer, Attention)
            and (layer.kv_sharing_target_layer_name or compressible(layer.get_kv_cache_spec(self.config)))
        }
        refusals.check_layers(found)
        self.layers = found
        return found

    def next_group(self) -> int:
        """Of the layer that customize_spec() is called for. vLLM does not name it, but asks in the model's order."""
        if not self._groups:
            self._groups = self._make_groups()
        index = self._specs % len(self._groups)
        self._specs += 1
        return self._groups[index]

    def _make_groups(self) -> list[int]:
        """The same on every rank: by the whole model's profile."""
        layers = list(self.layers.values())
        self.profile = profile.find(self.config, len(layers))
        shares = None if self.profile is None else profile.shares(self.profile)
        if shares is not None and not all(getattr(layer.impl, "heads_apart", False) for layer in layers):
            shares = [[max(heads)] for heads in shares]
        return groups.of(len(layers), self.settings.layers_of_group(len(layers)), shares)


process = Process()
