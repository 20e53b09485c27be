"""What the attention backend and the connector's worker half share: they meet in one process, and in no call."""

from __future__ import annotations

import dataclasses

from vllm.model_executor.layers.attention import Attention
from vllm.v1.kv_cache_interface import FullAttentionSpec

from . import refusals
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
    worker: object = None  # worker.Worker, once vLLM has made its connector.
    _specs: int = 0  # Calls of customize_spec() for `layers`.

    def begin(self, config) -> None:
        """Called for every attention layer; a config that was not seen before is a new engine."""
        if config is not self.config:
            self.config, self.settings = config, Settings.read(config.kv_transfer_config.kv_connector_extra_config)
            self.layers, self._specs, self.worker = {}, 0, None

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

    def next_layer(self) -> int:
        """The layer that customize_spec() is called for. vLLM does not name it, but asks in the model's order."""
        index = self._specs % len(self.layers)
        self._specs += 1
        return index


process = Process()
