"""Counters of one interval. vLLM adds them up over processes and prints them as "KV Transfer metrics"."""

from __future__ import annotations

import dataclasses

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

WHOLE = "left whole: "


@dataclasses.dataclass
class DkvStats(KVConnectorStats):
    """`data` is counter → number; a request that was not compressed counts under WHOLE and its reason."""

    def reset(self) -> None:
        self.data = {}

    def add(self, counter: str, count: int = 1) -> None:
        self.data[counter] = self.data.get(counter, 0) + count

    def aggregate(self, other: KVConnectorStats) -> "DkvStats":
        for counter, count in other.data.items():
            self.add(counter, count)
        return self

    def reduce(self) -> dict[str, int]:
        return {f"dkv {counter}": count for counter, count in sorted(self.data.items())}

    def is_empty(self) -> bool:
        return not self.data

    def take(self) -> "DkvStats | None":
        """What came together since the last call; None for nothing."""
        taken = DkvStats(self.data)
        self.reset()
        return None if taken.is_empty() else taken
