"""vLLM with SmolLM2's real weights and dkv's plugin beside dkvd: a prompt for each line of stdin, and whether its text is right.

    .venv-vllm/bin/python vllm_engine.py ENDPOINT

What attention sees of a prompt is what dkv's worker says it dropped; right_text.py says what text is right for that.
The engine's steps wait for the plan, which vLLM's never do: a case is about its fault, not about how late a plan comes.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # Its scheduler and its worker are looked at.
    VLLM_LOGGING_LEVEL="ERROR",
    OMP_NUM_THREADS="1",  # The other cores are dkvd's and other engines'.
)

from right_text import NEW_TOKENS, is_right, prompt_of  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

from dkv.hf import weights  # noqa: E402
from dkv.vllm.process import process  # noqa: E402
from dkv.vllm.prompt import State  # noqa: E402

LOOK_S = 0.002


class Engine:
    def __init__(self, endpoint: str):
        self.llm = LLM(
            model=str(weights.smollm2_folder()), dtype="float32", enforce_eager=True, max_model_len=512, block_size=32,
            enable_prefix_caching=False, skip_tokenizer_init=True, disable_log_stats=True,
            kv_transfer_config=dict(
                kv_connector="DkvConnector", kv_connector_module_path="dkv.vllm.connector", kv_role="kv_both",
                kv_connector_extra_config={"endpoint": endpoint},
            ),
        )  # fmt: skip
        self.core, self.worker, self.count = self.llm.llm_engine, process.worker, 0
        self.pool = self.core.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
        self.kept, self.reason = None, ""  # Of the last prompt.
        applied, count = self.worker._applied, self.worker._count

        def noted(prompt, dropped, positions):
            self.kept = positions, prompt.steps + 1
            applied(prompt, dropped, positions)

        def counted(reason, detail=None, session=None):
            self.reason = f"{reason}: {detail}" if detail else reason
            count(reason, detail, session)

        self.worker._applied, self.worker._count = noted, counted

    def settled(self) -> bool:
        """Whether every prompt that was read has its plan, or will have none."""
        return all(prompt.blocks is None or prompt.state != State.PREFILL for prompt in self.worker.prompts.values())

    def say(self, prompt: list[int], wish: dict) -> list[int]:
        self.kept, self.reason, self.count, text = None, "", self.count + 1, []
        chosen = {"kv_transfer_params": {"dkv": wish}}
        params = SamplingParams(
            temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False, extra_args=chosen
        )
        self.core.add_request(str(self.count), {"prompt_token_ids": prompt}, params)
        while self.core.has_unfinished_requests():
            while not self.settled():
                time.sleep(LOOK_S)
            for output in self.core.step():
                text = list(output.outputs[0].token_ids)
        return text


def run(engine: Engine, model, prompt, wish: dict) -> dict:
    free = engine.pool.get_num_free_blocks()
    text = engine.say(prompt[0].tolist(), wish)
    positions, after = engine.kept or ([None] * model.config.num_hidden_layers, 1)
    wrong = 0 if is_right(model, prompt, text, positions, after) else 1
    wrong += engine.pool.get_num_free_blocks() != free
    return {
        "status": "ok" if engine.kept else "failed",
        "error": engine.reason,
        "committed": engine.kept is not None,
        "rows_wrong": wrong,
        "forms": ["packed" if engine.kept else "full"] * len(positions),
    }


def main() -> None:
    said = os.fdopen(os.dup(1), "w")  # vLLM prints, too.
    os.dup2(2, 1)
    engine = Engine(sys.argv[1])
    model, tokenizer = weights.load_smollm2()
    prompt = prompt_of(tokenizer)
    print(json.dumps({"ready": True}), file=said, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(engine, model, prompt, json.loads(line))), file=said, flush=True)
        print(json.dumps({"paused": True}), file=said, flush=True)


if __name__ == "__main__":
    main()
