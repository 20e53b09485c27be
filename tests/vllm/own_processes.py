"""An engine as a server has it, its core in a process of its own: answers prompts and prints their tokens as JSON.

    python own_processes.py MODEL ENDPOINT
"""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    import engine  # Sets the environment, which asks for one process; this program does not.

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    model, endpoint = sys.argv[1:]
    llm = engine.LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        block_size=32,
        num_gpu_blocks_override=600,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        kv_transfer_config=engine.transfer(endpoint=endpoint),
    )
    params = engine.SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [(31 * at + 7 * each) % 1000 + 3 for each in range(400)]} for at in range(3)]
    said = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False)]
    print(json.dumps(said), flush=True)
    llm.llm_engine.engine_core.shutdown()
