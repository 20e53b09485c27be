"""A real dkvd in a process of its own, the tiny model, and everything that can go wrong between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from processes import Sidecar, waited_for
from test_cache import greedy, logits_of_masked_model, plain, step_by_step

import dkv
import dkv.hf

pytestmark = pytest.mark.e2e

POLICIES = ["streamingllm", "h2o", "snapkv", "pyramidkv", "dynamickv", "knorm", "keydiff"]
LAYERS, KV_HEADS = 4, 2


def status(sidecar) -> dict:
    return json.loads(sidecar.dkv("--json", "status").stdout)["sidecar"]


def instances(sidecar) -> list[dict]:
    listed = json.loads(sidecar.dkv("--json", "instances").stdout)
    return listed["instances"] if isinstance(listed, dict) else listed


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("progressive", [pytest.param(True, marks=pytest.mark.sample), False])
def test_the_budget_is_kept_to_the_token(tiny_llama, prompt, sidecar, policy, progressive):
    cache = dkv.hf.Cache(
        tiny_llama, policy=policy, capacity=128, endpoint=sidecar.endpoint, progressive=progressive, timeout_s=60
    )

    greedy(tiny_llama, prompt(700), 4, past_key_values=cache)

    report = cache.report()
    assert report.failure is None
    assert report.compressed and report.policy == policy and report.capacity == 128
    for head in range(KV_HEADS):
        assert sum(layer[head] for layer in report.kept_per_head) == LAYERS * 128
    for index in range(LAYERS):
        for head, positions in enumerate(cache.kept_positions(index)):
            assert len(positions) == report.kept_per_head[index][head]
            assert positions == sorted(set(positions)) and positions[-1] == 699
    assert all(0 < mass <= 1.0001 for mass in report.mass_kept_per_layer if mass is not None)


@pytest.mark.parametrize("chunk", [None, 128])
@pytest.mark.parametrize("query_norm", [False, True])
def test_h2o_keeps_what_all_queries_attend_to(tiny_llama, prompt, sidecar, chunk, query_norm):
    tokens = prompt(500)
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = tiny_llama(tokens, output_attentions=True).attentions
    cache = dkv.hf.Cache(
        tiny_llama, policy="h2o", capacity=100, query_norm=query_norm, endpoint=sidecar.endpoint, timeout_s=60
    )

    greedy(tiny_llama, tokens, 1, past_key_values=cache, prefill_chunk_size=chunk)

    report = cache.report()
    assert report.failure is None and report.compressed
    assert all(0 < mass <= 1.0001 for mass in report.mass_kept_per_layer)
    for index, attention in enumerate(attentions):
        scores = attention[0].sum(1).view(KV_HEADS, -1, 500).mean(1)
        if query_norm:
            scores = scores / torch.arange(500, 0, -1)
        for head, positions in enumerate(cache.kept_positions(index)):
            assert positions[-32:] == list(range(468, 500))
            best = scores[head, :468].topk(68).indices.tolist()
            assert len(set(best) & set(positions)) >= 67  # Two that are equal to a bit or so may change places.


@pytest.mark.skipif("DKV_TEST_DEVICE" in os.environ, reason="on a GPU all layers' queries are one allocation")
def test_the_queries_of_a_whole_prompt_are_given_back_layer_by_layer(tiny_llama, prompt, sidecar):
    cache = dkv.hf.Cache(tiny_llama, policy="h2o", capacity=64, endpoint=sidecar.endpoint, timeout_s=60)

    greedy(tiny_llama, prompt(2000), 1, past_key_values=cache)

    report = cache.report()
    queries = 2000 * 6 * 16 * 4  # Of one layer.
    assert report.failure is None and report.window == 2000
    assert queries < report.peak_bytes  # They are counted …
    assert report.final_bytes < queries  # … and gone in the end.


@pytest.mark.parametrize("policy", ["knorm", "keydiff"])
def test_query_free_policies_rank_by_the_keys_alone(tiny_llama, prompt, sidecar, policy):
    tokens = prompt(400)
    with torch.no_grad():
        full = tiny_llama(tokens).past_key_values
    cache = dkv.hf.Cache(tiny_llama, policy=policy, capacity=80, endpoint=sidecar.endpoint, timeout_s=60)

    greedy(tiny_llama, tokens, 1, past_key_values=cache)

    assert cache.report().failure is None and cache.report().window == 0
    assert cache.report().mass_kept_per_layer == [None] * LAYERS
    for index in range(LAYERS):
        keys = full.layers[index].keys[0]
        if policy == "knorm":
            scores = -keys.norm(dim=-1)
        else:
            mean = torch.nn.functional.normalize(keys, dim=-1).mean(dim=1, keepdim=True)
            scores = -torch.nn.functional.cosine_similarity(keys, mean, dim=-1)
        for head, positions in enumerate(cache.kept_positions(index)):
            best = scores[head, :368].topk(48).indices.tolist()
            assert len(set(best) & set(positions)) >= 47


def test_fullkv_is_the_text_of_plain_transformers(tiny_llama, prompt, sidecar):
    tokens = prompt(700)
    cache = dkv.hf.Cache(tiny_llama, policy="fullkv", endpoint=sidecar.endpoint)

    out = greedy(tiny_llama, tokens, 64, past_key_values=cache)

    assert out == plain(tiny_llama, tokens, 64)
    assert cache.report().failure is None
    assert cache.report().kept_per_layer == [700] * LAYERS


@pytest.mark.parametrize("tokens", [5, 31, 32, 33, 128, 129, 140])
@pytest.mark.parametrize("policy", ["dynamickv", "streamingllm"])
def test_short_prompts_are_kept_whole_and_the_next_longer_ones_are_cut(tiny_llama, prompt, sidecar, tokens, policy):
    text = prompt(tokens)
    cache = dkv.hf.Cache(tiny_llama, policy=policy, capacity=128, endpoint=sidecar.endpoint, timeout_s=60)

    out = greedy(tiny_llama, text, 8, past_key_values=cache)

    report = cache.report()
    assert report.failure is None
    assert sum(report.kept_per_layer) == LAYERS * min(tokens, 128)
    if tokens <= 128:
        assert out == plain(tiny_llama, text, 8)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.sample), torch.bfloat16], ids=str)
def test_compressed_decode_is_plain_attention_masked_to_the_kept_positions(tiny_llama, prompt, sidecar, policy, dtype):
    model = tiny_llama.to(dtype)
    tokens = prompt(420)
    cache = dkv.hf.Cache(
        model, policy=policy, capacity=96, endpoint=sidecar.endpoint, prompt_tokens=400, timeout_s=60
    )

    logits = step_by_step(model, cache, tokens, 400)

    assert cache.report().compressed
    expected = logits_of_masked_model(model, tokens, cache, 400)
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)


def test_prefill_in_chunks_keeps_what_prefill_in_one_piece_keeps(tiny_llama, prompt, sidecar):
    tokens = prompt(600)

    def run(**kwargs):
        cache = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=128, endpoint=sidecar.endpoint, timeout_s=60)
        out = greedy(tiny_llama, tokens, 16, past_key_values=cache, **kwargs)
        assert cache.report().compressed, cache.report().failure
        return out, [cache.kept_positions(index) for index in range(LAYERS)]

    whole, whole_kept = run()
    cut, cut_kept = run(prefill_chunk_size=250)
    same = sum(len(set(a) & set(b)) for x, y in zip(whole_kept, cut_kept) for a, b in zip(x, y))
    assert same >= 0.99 * LAYERS * KV_HEADS * 128  # Near-ties may fall otherwise.
    assert cut[:600] == whole[:600]


def test_several_generate_calls_continue_a_compressed_text(tiny_llama, prompt, sidecar):
    tokens = prompt(500)
    cache = dkv.hf.Cache(tiny_llama, policy="dynamickv", capacity=96, endpoint=sidecar.endpoint, timeout_s=60)

    first = greedy(tiny_llama, tokens, 8, past_key_values=cache)
    longer = torch.cat([torch.tensor([first]), prompt(40, seed=11)], dim=1)
    second = greedy(tiny_llama, longer, 8, past_key_values=cache)

    assert cache.report().compressed
    whole = torch.tensor([second])
    expected = logits_of_masked_model(tiny_llama, whole, cache, 500)
    start = longer.shape[1] - 500 - 1
    assert second[longer.shape[1] :] == expected[start:-1].argmax(-1).tolist()


def test_the_next_prompt_of_the_same_model_uses_the_same_attachment(tiny_llama, prompt, sidecar):
    for seed in range(3):
        cache = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=96, endpoint=sidecar.endpoint, timeout_s=60)
        greedy(tiny_llama, prompt(300, seed=seed), 2, past_key_values=cache)
        assert cache.report().compressed, cache.report().failure

    (engine,) = instances(sidecar)
    assert engine["pid"] == os.getpid()
    assert engine["sessions_total"] == 3
    assert engine["savings"]["bytes_dropped"] > 0


# ---------------------------------------------------------------- bytes


@pytest.mark.sample
def test_the_bytes_come_back(tiny_llama, prompt, sidecar):
    cache = dkv.hf.Cache(tiny_llama, policy="dynamickv", capacity=256, endpoint=sidecar.endpoint, timeout_s=60)

    greedy(tiny_llama, prompt(3000), 2, past_key_values=cache)

    report = cache.report()
    assert report.compressed, report.failure
    assert report.bytes_dropped == report.bytes_full - LAYERS * KV_HEADS * 256 * 2 * 16 * 4
    assert report.bytes_returned >= 0.95 * report.bytes_dropped
    assert report.final_bytes <= report.bytes_full - report.bytes_returned + 64 * 4096


# ---------------------------------------------------------------- the operator


def test_a_policy_set_on_a_running_engine_changes_its_next_session(tiny_llama, prompt, sidecar):
    def kept() -> dkv.hf.Report:
        cache = dkv.hf.Cache(tiny_llama, endpoint=sidecar.endpoint, timeout_s=60)
        greedy(tiny_llama, prompt(600), 2, past_key_values=cache)
        assert cache.report().failure is None
        return cache.report()

    before = kept()
    (engine,) = instances(sidecar)
    sidecar.dkv("policy", "set", "snapkv", "--capacity", "64", "--instance", engine["instance"])
    after = kept()

    assert before.policy == "auto"
    assert (after.policy, after.capacity, after.kept_per_layer) == ("snapkv", 64, [64] * LAYERS)


def test_a_wish_without_a_policy_leaves_the_sidecars_own_parameters(tiny_llama, prompt, tmp_path):
    tmp_path.chmod(0o700)
    running = Sidecar(tmp_path).start("--policy", "snapkv", "--capacity", "64", "--granularity", "layer-head")
    try:
        cache = dkv.hf.Cache(tiny_llama, endpoint=running.endpoint, timeout_s=60, window=16)
        greedy(tiny_llama, prompt(600), 2, past_key_values=cache)
    finally:
        running.stop()

    report = cache.report()
    assert report.failure is None
    assert (report.policy, report.capacity) == ("snapkv", 64)


@pytest.mark.parametrize(
    "wish, words",
    [
        ({"policy": "nosuchkv"}, "nosuchkv"),
        ({"policy": "snapkv", "capacity": 16, "window": 32}, "16"),
        ({"policy": "snapkv", "kernel": 4}, "4"),
    ],
)
def test_a_bad_wish_is_a_typed_error_and_leaves_the_engine_unharmed(tiny_llama, prompt, sidecar, wish, words):
    tokens = prompt(300)

    cache = dkv.hf.Cache(tiny_llama, endpoint=sidecar.endpoint, **wish)
    out = greedy(tiny_llama, tokens, 8, past_key_values=cache)

    assert out == plain(tiny_llama, tokens, 8)
    assert words in cache.report().failure
    with pytest.raises(dkv.DkvError, match=words) as refused:
        greedy(
            tiny_llama, tokens, 8, past_key_values=dkv.hf.Cache(tiny_llama, endpoint=sidecar.endpoint, strict=True, **wish)
        )
    assert refused.value.status in (dkv.Status.INVALID_ARGUMENT, dkv.Status.NOT_FOUND)
    good = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=96, endpoint=sidecar.endpoint, timeout_s=60)
    greedy(tiny_llama, tokens, 2, past_key_values=good)
    assert good.report().compressed


def test_a_script_runs_unchanged_under_the_runner(tmp_path, sidecar):
    script, report = tmp_path / "script.py", tmp_path / "report.json"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(ROOT / 'tests' / 'python')!r})\n"
        "from conftest import make_tiny_llama\n"
        "tokens = torch.arange(2, 402)[None]\n"
        "assert sys.argv[1:] == ['an', '--argument'] and __name__ == '__main__'\n"
        "out = make_tiny_llama().generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=3, do_sample=False)\n"
        "print(out.shape[1])\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "dkv.hf", "--policy", "pyramidkv", "--capacity", "96", "--endpoint", sidecar.endpoint,
         "--report", report, script, "an", "--argument"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "403"
    (only,) = json.loads(report.read_text())
    assert only["failure"] is None
    assert (only["policy"], sum(only["kept_per_layer"])) == ("pyramidkv", LAYERS * 96)


# ---------------------------------------------------------------- death


def at_layer(model, index, action):
    """Runs `action` once, when the prefill reaches that layer."""
    done = []

    def hook(module, args, kwargs):
        if not done:
            done.append(True)
            action()

    return model.model.layers[index].register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.sample
@pytest.mark.parametrize("layer", [1, 3])
def test_killing_the_sidecar_during_prefill_costs_no_generation(tiny_llama, prompt, sidecar, layer):
    cache = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=96, endpoint=sidecar.endpoint, timeout_s=5)
    hook = at_layer(tiny_llama, layer, sidecar.kill)

    out = greedy(tiny_llama, prompt(500), 8, past_key_values=cache)

    hook.remove()
    assert len(out) == 508
    report = cache.report()
    assert not report.compressed
    assert report.failure is not None
    assert all(kept <= 500 for kept in report.kept_per_layer)


@pytest.mark.sample
def test_killing_the_sidecar_before_anything_was_released_changes_no_token(tiny_llama, prompt, sidecar):
    tokens = prompt(500)
    expected = plain(tiny_llama, tokens, 16)
    cache = dkv.hf.Cache(
        tiny_llama, policy="snapkv", capacity=96, endpoint=sidecar.endpoint, progressive=False, timeout_s=5
    )
    hook = at_layer(tiny_llama, 2, sidecar.kill)

    out = greedy(tiny_llama, tokens, 16, past_key_values=cache)

    hook.remove()
    assert out == expected
    assert cache.report().failure is not None


@pytest.mark.sample
def test_killing_the_sidecar_during_decode_changes_no_token(tiny_llama, prompt, sidecar):
    tokens = prompt(500)

    def run(killing: bool):
        cache = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=96, endpoint=sidecar.endpoint, timeout_s=60)
        with torch.no_grad():
            token = tiny_llama(tokens, past_key_values=cache).logits[:, -1:].argmax(-1)
            out = [int(token)]
            for step in range(16):
                if killing and step == 5:
                    sidecar.kill()
                token = tiny_llama(token, past_key_values=cache).logits[:, -1:].argmax(-1)
                out.append(int(token))
        assert cache.report().compressed, cache.report().failure
        return out

    assert run(killing=False) == run(killing=True)


def test_a_new_sidecar_is_picked_up_by_the_next_session(tiny_llama, prompt, sidecar):
    def run() -> dkv.hf.Report:
        cache = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=96, endpoint=sidecar.endpoint, timeout_s=10)
        greedy(tiny_llama, prompt(300), 2, past_key_values=cache)
        return cache.report()

    assert run().compressed
    sidecar.kill()
    alone = run()
    assert not alone.compressed and alone.failure is not None
    sidecar.start()

    assert waited_for(lambda: run().compressed, "the engine to find the new dkvd")
    assert len(instances(sidecar)) == 1


@pytest.fixture
def engine_process(sidecar):
    started = []

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("engine_process.py"), sidecar.endpoint],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_two_engines_are_compressed_at_once(sidecar, engine_process):
    engines = [engine_process(), engine_process()]

    reports = [json.loads(engine.stdout.readline()) for engine in engines]

    assert [report["failure"] for report in reports] == [None, None]
    assert [sum(report["kept_per_layer"]) for report in reports] == [LAYERS * 128] * 2
    assert {engine["pid"] for engine in instances(sidecar) if engine["alive"]} == {engine.pid for engine in engines}


def test_a_killed_engine_is_gone_from_status_and_leaves_nothing_behind(sidecar, engine_process):
    before = set(os.listdir("/dev/shm"))
    engine = engine_process()
    assert json.loads(engine.stdout.readline())["failure"] is None
    assert status(sidecar)["instances_attached"] == 1

    engine.send_signal(signal.SIGKILL)
    engine.wait()

    gone = waited_for(lambda: status(sidecar)["instances_attached"] == 0 and status(sidecar), "the engine to be missed")
    assert any(str(engine.pid) in line for line in gone["gone"])
    assert gone["mapped_bytes"] == 0
    assert set(os.listdir("/dev/shm")) <= before
