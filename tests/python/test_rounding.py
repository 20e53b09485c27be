"""Kept rows rounded up to an engine's blocks, or as many in every head, by a real dkvd."""

import pytest
import torch

import dkv

LAYERS, Q_HEADS, KV_HEADS, TOKENS, DIM, WINDOW = 2, 4, 2, 120, 16, 8


@pytest.fixture
def engine(sidecar):
    with dkv.Engine(dkv.Geometry(LAYERS, Q_HEADS, KV_HEADS, DIM, "f32"), endpoint=sidecar.endpoint) as engine:
        engine.wait_attached(10)
        yield engine


def lent(tensor: torch.Tensor) -> dkv.Rows:
    heads, tokens, dim = tensor.shape
    arena = dkv.Arena(tensor.numel() * 4)
    torch.frombuffer(arena.buffer, dtype=torch.float32)[: tensor.numel()].copy_(tensor.flatten())
    return dkv.Rows(arena, 0, "f32", heads, tokens, dim, tokens * dim, dim)


def kept(engine, capacity: int, progressive: bool, policy: str = "snapkv", **options) -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(5)
    wish = dkv.Policy(name=policy, capacity=capacity, window=WINDOW)
    with engine.open_session(TOKENS, wish, progressive, **options) as session:
        for layer in range(LAYERS):
            rows = [lent(torch.randn(heads, count, DIM, generator=generator))
                    for heads, count in ((KV_HEADS, TOKENS), (KV_HEADS, TOKENS), (Q_HEADS, session.plan.window or WINDOW))]  # fmt: skip
            session.layer_ready(layer, rows[0], rows[1], rows[2])
        session.finish(20)
        return [session.layer(layer).positions for layer in range(LAYERS)]


@pytest.mark.parametrize("progressive", [True, False])
def test_rows_are_filled_up_with_the_next_best_ones(engine, progressive):
    rounded = kept(engine, 30, progressive, row_multiple=16, row_offset=TOKENS % 16)

    assert rounded == kept(engine, 40, progressive)  # 40 is the next number that leaves whole blocks.


def test_an_offset_outside_of_a_block_is_refused(engine):
    with pytest.raises(dkv.DkvError, match="row_offset is 40, not below row_multiple 32"):
        engine.open_session(TOKENS, row_multiple=32, row_offset=40)


@pytest.mark.parametrize("policy", ["pyramidkv", "dynamickv", "streamingllm", "h2o"])
def test_a_uniform_session_keeps_the_capacity_in_every_head(engine, policy):
    policy_of_equal_budgets = policy if policy in ("streamingllm", "h2o") else "snapkv"

    uniform = kept(engine, 30, True, policy, uniform=True)

    assert {len(head) for layer in uniform for head in layer} == {30}
    assert uniform == kept(engine, 30, True, policy_of_equal_budgets)  # Ranked by the same attention.


def test_a_profiles_surrogate_is_put_in_the_order_of_the_engines_keys(engine):
    """By the sidecar: an operator's profile has the order of the model that it was made with."""
    generator, pairs = torch.Generator().manual_seed(9), DIM // 2
    features = 2 * KV_HEADS * DIM + 2 * KV_HEADS + 1
    weights = torch.randn(LAYERS * KV_HEADS, features, generator=generator).bfloat16().view(torch.int16).numpy().tobytes()
    profile = dkv.Profile("p", [[1.0]] * LAYERS, 1.0, 0.0, 7, dkv.Surrogate(KV_HEADS, DIM, weights, (0.5,) * pairs, False))
    by_halves = [half * pairs + pair for pair in range(pairs) for half in range(2)]  # Where each adjacent dim comes from.

    def reused(order, **options):
        keys = torch.Generator().manual_seed(5)
        wish = dkv.Policy(name="reuse", capacity=30, profile=profile)
        with engine.open_session(TOKENS, wish, **options) as session:
            for layer in range(LAYERS):
                rows = torch.randn(KV_HEADS, TOKENS, DIM, generator=keys)
                session.layer_ready(layer, lent(rows[:, :, order]), lent(rows))  # It scores without queries.
            session.finish(20)
            return [session.layer(layer).positions for layer in range(LAYERS)]

    as_made = reused(list(range(DIM)))
    assert reused(by_halves, rope_interleaved=True) == as_made
    assert reused(by_halves) != as_made


def test_a_share_of_the_attention_has_no_one_number(engine):
    with pytest.raises(dkv.DkvError, match="keep_mass gives each layer a number of its own"):
        engine.open_session(TOKENS, dkv.Policy(name="snapkv", keep_mass=0.9, window=WINDOW), uniform=True)
