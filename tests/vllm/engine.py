"""A real vLLM in this process, stepped by hand, so that a test sees its pool and its steps."""

from __future__ import annotations

import collections
import contextlib
import dataclasses

import pytest
from conftest import transfer  # Sets vLLM's environment, too: imported first.
from processes import waited_for
from vllm import LLM, SamplingParams
from vllm.platforms.cpu import CpuPlatform

from dkv.vllm.process import process
from dkv.vllm.prompt import State
from dkv.vllm.worker import Worker


@dataclasses.dataclass
class Answer:
    tokens: list[int]
    logprobs: list[dict[int, float]]  # Of each step's five likeliest tokens.


@dataclasses.dataclass
class Kept:
    """How a prompt was compacted."""

    tokens: int
    positions: list  # [layer][KV head]: what attention sees of it.
    planned: list  # The same as the sidecar said it, before it was filled up to whole blocks.
    after: int  # Tokens that had been said by then.

    def lengths(self) -> list[list[int]]:
        return [[len(head) for head in layer] for layer in self.positions]


def watch(worker: Worker, kept: dict[str, Kept]) -> None:
    """Notes how each prompt is compacted."""
    usual = worker._applied

    def applied(prompt, dropped, positions):
        name = prompt.key[0].rsplit("-", 1)[0]  # vLLM appends a random number.
        kept[name] = Kept(prompt.tokens, positions, prompt.kept, prompt.steps + 1)
        usual(prompt, dropped, positions)

    worker._applied = applied


def settled(worker: Worker) -> bool:
    """Whether every prompt that was read has its plan, or will have none."""
    return all(prompt.blocks is None or prompt.state != State.PREFILL for prompt in worker.prompts.values())


@contextlib.contextmanager
def async_scheduling():
    """For an engine with `async_scheduling`: vLLM turns it off on the CPU, where it works nevertheless."""
    usual = CpuPlatform.check_and_update_config

    def check_and_update_config(config):
        usual(config)
        config.scheduler_config.async_scheduling = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuPlatform, "check_and_update_config", staticmethod(check_and_update_config))
        yield


class Engine:
    def __init__(self, model: str, endpoint: str | None, extra: dict | None = None, **options):
        """endpoint None: without dkv. `extra`: more of its settings."""
        defaults = dict(
            dtype="float32",
            enforce_eager=True,
            max_model_len=2048,
            max_num_batched_tokens=2048,
            max_num_seqs=8,
            block_size=32,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )
        if endpoint is not None:
            defaults["kv_transfer_config"] = transfer(endpoint=endpoint, **(extra or {}))
        self.llm = LLM(model=model, **{**defaults, **options})
        self.scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        self.preemptions = 0
        self._count_preemptions()
        self.answers: dict[str, Answer] = {}
        self.kept: dict[str, Kept] = {}  # Of each request's last prefill.
        self.stats: collections.Counter[str] = collections.Counter()
        self.worker: Worker | None = None  # Where it is in this process.
        if endpoint is not None:
            self._watch_scheduler()
            self._watch_workers()

    def _count_preemptions(self) -> None:
        usual = self.scheduler._preempt_request

        def preempt(*arguments, **options):
            self.preemptions += 1
            return usual(*arguments, **options)

        self.scheduler._preempt_request = preempt

    def _watch_scheduler(self) -> None:
        stats = self.scheduler.connector._scheduler.stats  # vLLM takes the counters at each step.
        stats.add = self._counted(stats.add)

    def _watch_workers(self) -> None:
        self.worker = process.worker
        watch(self.worker, self.kept)
        self.worker.stats.add = self._counted(self.worker.stats.add)
        waited_for(lambda: self.worker.sidecar.attached, "the engine to attach")

    def _counted(self, usual):
        def add(counter, count=1):
            self.stats[counter] += count
            usual(counter, count)

        return add

    @property
    def free(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def add(self, name: str, tokens: list[int], count: int = 24, dkv: object = None) -> None:
        """A request; `dkv` is its own choice."""
        extra = None if dkv is None else {"kv_transfer_params": {"dkv": dkv}}
        params = SamplingParams(
            temperature=0.0, max_tokens=count, logprobs=5, ignore_eos=True, detokenize=False, extra_args=extra
        )
        self.llm.llm_engine.add_request(name, {"prompt_token_ids": tokens}, params)

    def abort(self, name: str) -> None:
        self.llm.llm_engine.abort_request([name])

    def step(self) -> None:
        for output in self.llm.llm_engine.step():
            if output.finished:
                said = output.outputs[0]
                chances = [{token: each.logprob for token, each in step.items()} for step in said.logprobs or []]
                self.answers[output.request_id] = Answer(list(said.token_ids), chances)

    def settled(self) -> bool:
        return self.worker is None or settled(self.worker)

    def run(self, each_step=None, wait: bool = True) -> None:
        """Until no request is left. wait: for plans, which vLLM never does, so that a test knows when they are carried
        out: in the step after the prefill."""
        while self.llm.llm_engine.has_unfinished_requests():
            if wait:
                waited_for(self.settled, "the plans")
            self.step()
            if each_step is not None:
                each_step(self)

    def close(self) -> None:
        import gc

        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm, self.scheduler, self.worker
        gc.collect()
        cleanup_dist_env_and_memory()
