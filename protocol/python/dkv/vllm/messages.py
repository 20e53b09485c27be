"""What the scheduler and the workers tell each other, once per step."""

from __future__ import annotations

import dataclasses

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from .settings import Choice

Key = tuple[str, int]  # A request and how often it was preempted: it prefills anew each time.


@dataclasses.dataclass
class Prefill:
    """A request whose prefill runs in this step."""

    key: Key
    tokens: int  # Of the whole prompt; of a resumed request with what it had said before.
    done: int  # Tokens before this step's.
    choice: Choice
    first: list[int]  # Its first block in each group: its name in the attention backend.
    blocks: list[list[int]] | None = None  # All of them, in the step that ends the prefill.


@dataclasses.dataclass
class StepMeta(KVConnectorMetadata):
    prefills: list[Prefill] = dataclasses.field(default_factory=list)
    gone: list[str] = dataclasses.field(default_factory=list)  # Requests that ended or were preempted.
    agreed: dict[Key, list[int]] = dataclasses.field(default_factory=dict)  # `keep` of plans that all ranks now have.


@dataclasses.dataclass
class Dropped:
    """A request of whose first `full` blocks only the first `keep` are read any more, in each group."""

    full: list[int]
    keep: list[int]
    ranks: int = 1

    def join(self, other: "Dropped") -> "Dropped":
        """What any rank keeps is kept."""
        keep = [max(pair) for pair in zip(self.keep, other.keep)]
        return Dropped(self.full, keep, self.ranks + other.ranks)


@dataclasses.dataclass
class Report(KVConnectorWorkerMetadata):
    """A block id stands for the blocks of all ranks, so ranks agree before they move a row: each says what its own plan
    would drop, and the scheduler answers with what all of them can (StepMeta.agreed). A rank alone does not ask."""

    wanted: dict[Key, Dropped] = dataclasses.field(default_factory=dict)
    dropped: dict[Key, Dropped] = dataclasses.field(default_factory=dict)  # Carried out.

    def aggregate(self, other: "Report") -> "Report":
        for mine, theirs in ((self.wanted, other.wanted), (self.dropped, other.dropped)):
            for key, dropped in theirs.items():
                mine[key] = mine[key].join(dropped) if key in mine else dropped
        return self

    def is_empty(self) -> bool:
        return not self.wanted and not self.dropped
