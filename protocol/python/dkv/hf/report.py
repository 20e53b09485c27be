"""What one prompt's compression did, as numbers that were seen and not computed where possible."""

from __future__ import annotations

import dataclasses
import logging
import time
from contextlib import contextmanager

log = logging.getLogger("dkv.hf")

_warned: set[tuple[int, str]] = set()


@dataclasses.dataclass
class Report:
    """Counts are tokens per KV head; bytes are bytes of this prompt's K and V in compressible layers."""

    session: str | None = None  # Its id in `dkv sessions` and in the sidecar's log.
    policy: str | None = None  # As the sidecar will use it; None: it was never asked.
    capacity: int | None = None
    window: int | None = None  # Query rows it asked for with each layer: all for h2o, none for query-free policies.
    profile: str | None = None  # That was asked for; an operator's policy goes before it.
    certificate: str | None = None  # That a risk chose; as of the profile.
    prompt_tokens: int = 0
    layers: int = 0  # Compressible ones: sliding layers of a hybrid are bounded already and not counted.
    layers_left_alone: int = 0
    compressed: bool = False
    kept_per_layer: list[float] = dataclasses.field(default_factory=list)  # Mean over the layer's KV heads.
    kept_per_head: list[list[int]] = dataclasses.field(default_factory=list)
    mass_kept_per_layer: list[float | None] = dataclasses.field(default_factory=list)
    bytes_full: int = 0
    bytes_kept: int = 0
    bytes_dropped: int = 0
    bytes_returned: int = 0  # Measured: source blocks the system took back, less what the kept rows occupy.
    bytes_block_table: int = 0  # What a host with one block table for all layers would get back.
    peak_bytes: int = 0  # Measured: most blocks held at once, source, queries, staging and destination.
    final_bytes: int = 0  # Measured: blocks held for this prompt once prefill had ended.
    pss_before: int = 0  # Of this process, without mapped files, when the last layer was done …
    pss_after: int = 0  # … and when the packed rows had been adopted.
    engine_seconds: float = 0.0  # On the engine's thread, waiting at the end of prefill included.
    waiting_seconds: float = 0.0  # That wait alone.
    sidecar_seconds: float = 0.0  # The sidecar's own busy time.
    kept_whole: str | None = None  # Why nothing was to be dropped, when that was the plan.
    failure: str | None = None  # Why the prompt was not compressed although it should have been.

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    def warn_once(self, model: int) -> None:
        """Logs why the prompt was not compressed, once for each model and reason."""
        if self.failure is None:
            return
        known = (model, "".join(each for each in self.failure if not each.isdigit()))  # Times in it count down.
        if known not in _warned:
            _warned.add(known)
            said = f"session {self.session}: {self.failure}" if self.session else self.failure
            log.warning("dkv: generation goes on without compression: %s", said, extra={"dkv_session": self.session})

    def __str__(self) -> str:
        """For people: what was kept and what it saved, or why nothing was."""
        if not self.compressed:
            reason = self.failure or self.kept_whole or "no prompt has ended yet"
            return f"not compressed: {reason}"
        kept = sum(self.kept_per_layer) / len(self.kept_per_layer)
        masses = [mass for mass in self.mass_kept_per_layer if mass is not None]
        lines = [
            f"{self.policy} kept {kept:,.0f} of {self.prompt_tokens:,} tokens per KV head on average, in {self.layers} layers"
            + (f" ({min(self.kept_per_layer):,.0f} to {max(self.kept_per_layer):,.0f})" if self.layers > 1 else ""),
            f"K and V: {_mib(self.bytes_full)} before, {_mib(self.bytes_kept)} kept, {_mib(self.bytes_returned)} seen to return "
            "to the system",
            f"time: {self.engine_seconds:.2f} s of the engine's, {self.sidecar_seconds:.2f} s of the sidecar's",
        ]
        if masses:
            lines.insert(1, f"attention kept: {sum(masses) / len(masses):.1%} of what the window's queries give")
        return "\n".join(lines)

    @contextmanager
    def timed(self):
        """Adds the time of the block to engine_seconds."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.engine_seconds += time.perf_counter() - begin


def mean(lengths: list[int]) -> float:
    total = sum(lengths)
    return total // len(lengths) if total % len(lengths) == 0 else total / len(lengths)


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def process_pss() -> int:
    """Bytes of this process's anonymous and shared memory, shared pages in proportion; 0 where the system does not tell.

    Pages of files are left out: their share changes as other processes map the same libraries.
    """
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
            return sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    except OSError:
        return 0
