"""The scheduler's half: tells the workers who is in prefill, and frees the blocks that they read no more."""

from __future__ import annotations

from vllm.logger import init_logger
from vllm.v1.request import RequestStatus

from .messages import Dropped, Key, Prefill, Report, StepMeta
from .settings import Choice
from .spec import DkvManager
from .stats import DkvStats

log = init_logger("vllm.dkv")


class Scheduler:
    def __init__(self, ranks: int):
        self._ranks = ranks
        self._requests: dict[str, object] = {}
        self._prefilled: set[str] = set()
        self._pending: dict[Key, Dropped] = {}  # Until every rank has reported.
        self._given_back: dict[str, int] = {}  # Blocks of requests that still run.
        self._cache = None
        self.stats = DkvStats()

    def bind(self, kv_cache_manager) -> None:
        self._cache = kv_cache_manager

    def add(self, request) -> None:
        self._requests[request.request_id] = request

    def remove(self, request) -> int:
        """Returns how many blocks the request gave back while it ran."""
        self._requests.pop(request.request_id, None)
        self._forget(request.request_id)
        return self._given_back.pop(request.request_id, 0)

    def step(self, output) -> StepMeta:
        """What the workers must know of a SchedulerOutput."""
        gone = [*output.finished_req_ids, *(output.preempted_req_ids or ())]
        for request in output.preempted_req_ids or ():
            self._forget(request)
        meta = StepMeta(gone=gone)
        cached = output.scheduled_cached_reqs
        scheduled = {each.req_id: each.num_computed_tokens for each in output.scheduled_new_reqs}
        scheduled.update(zip(cached.req_ids, cached.num_computed_tokens))
        started = {each.req_id for each in output.scheduled_new_reqs} | set(cached.resumed_req_ids)
        self._prefilled -= started
        for name, done in scheduled.items():
            request = self._requests.get(name)
            if request is None or name in self._prefilled or request.pooling_params is not None:
                continue
            blocks = self._cache.get_block_ids(name)
            ends = done + output.num_scheduled_tokens[name] >= request.num_tokens
            if ends:
                self._prefilled.add(name)
            meta.prefills.append(
                Prefill(
                    key=(name, request.num_preemptions),
                    tokens=request.num_tokens,
                    done=done,
                    choice=Choice.read(request.kv_transfer_params),
                    first=[ids[0] for ids in blocks],
                    blocks=[list(ids) for ids in blocks] if ends else None,
                )
            )
        return meta

    def take_report(self, report: Report) -> None:
        """Frees what all ranks have reported. Ranks compact their own KV heads, each in its own step."""
        for key, dropped in report.dropped.items():
            name, preemptions = key
            request = self._requests.get(name)
            # A report may be of a life before a preemption.
            if request is None or request.num_preemptions != preemptions or request.status != RequestStatus.RUNNING:
                continue
            known = self._pending.pop(key, None)
            dropped = dropped if known is None else known.join(dropped)
            if dropped.ranks < self._ranks:
                self._pending[key] = dropped
                continue
            managers = self._cache.coordinator.single_type_managers
            freed = sum(
                manager.drop(name, dropped.keep[index], dropped.full[index])
                for index, manager in enumerate(managers)
                if isinstance(manager, DkvManager)
            )
            self._given_back[name] = self._given_back.get(name, 0) + freed
            self.stats.add("blocks given back", freed)

    def _forget(self, name: str) -> None:
        self._prefilled.discard(name)
        for key in [key for key in self._pending if key[0] == name]:
            del self._pending[key]
