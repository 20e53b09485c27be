"""The scheduler's half: tells the workers who is in prefill, and frees the blocks that they read no more."""

from __future__ import annotations

from collections.abc import Iterator

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
        self._wanted: dict[Key, Dropped] = {}  # Until every rank has its plan.
        self._agreed: dict[Key, list[int]] = {}  # Until the next step tells the workers.
        self._dropped: dict[Key, Dropped] = {}  # Until every rank has carried it out.
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
        meta = StepMeta(gone=gone, agreed=self._agreed)
        self._agreed = {}
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
        """Answers plans that all ranks have, and frees the blocks of those that all ranks have carried out."""
        for key, wanted in self._complete(report.wanted, self._wanted):
            self._agreed[key] = wanted.keep
        for (name, _), dropped in self._complete(report.dropped, self._dropped):
            managers = self._cache.coordinator.single_type_managers
            freed = sum(
                manager.drop(name, dropped.keep[index], dropped.full[index])
                for index, manager in enumerate(managers)
                if isinstance(manager, DkvManager)
            )
            self._given_back[name] = self._given_back.get(name, 0) + freed
            self.stats.add("requests compressed")
            self.stats.add("blocks given back", freed)

    def _complete(self, reported: dict[Key, Dropped], pending: dict[Key, Dropped]) -> Iterator[tuple[Key, Dropped]]:
        """What has now come from every rank, which is not in one step; the rest goes to `pending`."""
        for key, dropped in reported.items():
            name, preemptions = key
            request = self._requests.get(name)
            # A report may be of a life before a preemption.
            if request is None or request.num_preemptions != preemptions or request.status != RequestStatus.RUNNING:
                continue
            known = pending.pop(key, None)
            dropped = dropped if known is None else known.join(dropped)
            if dropped.ranks < self._ranks:
                pending[key] = dropped
            else:
                yield key, dropped

    def _forget(self, name: str) -> None:
        self._prefilled.discard(name)
        for each in (self._wanted, self._agreed, self._dropped):
            for key in [key for key in each if key[0] == name]:
                del each[key]
