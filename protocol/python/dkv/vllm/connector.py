"""The KV connector: it moves no KV to other engines, but it is called where dkv must act, in scheduler and workers."""

from __future__ import annotations

from . import refusals

_old = refusals.old_version()
if _old is not None:
    raise RuntimeError(_old)

from vllm.distributed.kv_transfer.kv_connector.v1.base import (  # noqa: E402
    KVConnectorBase_V1,
    KVConnectorRole,
    SupportsHMA,
)

from .messages import Report, StepMeta  # noqa: E402
from .scheduler import Scheduler  # noqa: E402
from .settings import Settings  # noqa: E402
from .stats import DkvStats  # noqa: E402


class DkvConnector(KVConnectorBase_V1, SupportsHMA):
    """One object for each role: `_scheduler` or `_worker` is None."""

    requires_kv_delivery = False

    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config, role, kv_cache_config)
        refusals.check(vllm_config)
        refusals.check_groups(vllm_config, kv_cache_config.kv_cache_groups)
        settings = Settings.read(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self._scheduler = self._worker = None
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = Scheduler(vllm_config.parallel_config.world_size)
        else:
            from .worker import Worker

            self._worker = Worker(vllm_config, kv_cache_config, settings)

    # ---------------------------------------------------------------- in the scheduler

    def bind_kv_cache_manager(self, kv_cache_manager) -> None:
        self._scheduler.bind(kv_cache_manager)

    def on_new_request(self, request) -> None:
        self._scheduler.add(request)

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return 0, False

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        pass

    def build_connector_meta(self, scheduler_output) -> StepMeta:
        return self._scheduler.step(scheduler_output)

    def update_connector_output(self, connector_output) -> None:
        if isinstance(connector_output.kv_connector_worker_meta, Report):
            self._scheduler.take_report(connector_output.kv_connector_worker_meta)

    def request_finished(self, request, block_ids):
        return False, {"dkv_blocks_given_back": self._scheduler.remove(request)}

    def request_finished_all_groups(self, request, block_ids):
        return self.request_finished(request, block_ids)

    # ---------------------------------------------------------------- in a worker

    def get_mem_pool_context(self):
        return self._worker.pool

    def register_kv_caches(self, kv_caches) -> None:
        self._worker.bind_caches()

    def bind_connector_metadata(self, connector_metadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._worker.begin_step(connector_metadata)

    def start_load_kv(self, forward_context, **kwargs) -> None:
        pass

    def wait_for_layer_load(self, layer_name) -> None:
        pass

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs) -> None:
        pass

    def wait_for_save(self) -> None:
        self._worker.end_step()

    def build_connector_worker_meta(self) -> Report | None:
        return self._worker.report()

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()

    # ---------------------------------------------------------------- counters

    def get_kv_connector_stats(self) -> DkvStats | None:
        return (self._scheduler or self._worker).stats.take()

    @classmethod
    def build_kv_connector_stats(cls, data=None) -> DkvStats:
        return DkvStats(data or {})
