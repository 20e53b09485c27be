"""The attention function against a dense, masked reference. No sidecar, no model."""

import pytest
import torch

from dkv.hf.attention import Prefix, lower_right_causal, two_part_attention


def dense_reference(query, keys, values, seen, scaling, softcap=None, sinks=None):
    """keys, values [Hkv, n, D]; seen [Hkv, q, n] bool. One head and one query at a time."""
    _, q_heads, q_length, _ = query.shape
    group = q_heads // keys.shape[0]
    out = torch.zeros(1, q_heads, q_length, values.shape[-1], dtype=torch.float64)
    for head in range(q_heads):
        for row in range(q_length):
            logits = keys[head // group].double() @ query[0, head, row].double() * scaling
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            logits[~seen[head // group, row]] = float("-inf")
            if sinks is not None:
                logits = torch.cat([logits, sinks[head : head + 1].double()])
            out[0, head, row] = logits.softmax(-1)[: values.shape[1]] @ values[head // group].double()
    return out


def random_case(kv_heads, group, lengths, tail, q_length, seed=0, dim=16):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    keys = [normal(length, dim) for length in lengths]
    values = [normal(length, dim) for length in lengths]
    query = normal(1, kv_heads * group, q_length, dim)
    return query, keys, values, normal(1, kv_heads, tail, dim), normal(1, kv_heads, tail, dim)


def reference_of(query, keys, values, tail_keys, tail_values, scaling, softcap=None, sinks=None):
    """The same rows as one dense cache: short heads are padded and the padding masked."""
    kv_heads, tail, q_length = tail_keys.shape[1], tail_keys.shape[2], query.shape[2]
    longest = max(len(rows) for rows in keys)
    dense_keys = torch.zeros(kv_heads, longest + tail, query.shape[-1])
    dense_values = torch.zeros_like(dense_keys)
    seen = torch.zeros(kv_heads, q_length, longest + tail, dtype=torch.bool)
    for head in range(kv_heads):
        rows = len(keys[head])
        dense_keys[head, :rows], dense_values[head, :rows] = keys[head], values[head]
        dense_keys[head, longest:], dense_values[head, longest:] = tail_keys[0, head], tail_values[0, head]
        seen[head, :, :rows] = True
        for row in range(q_length):
            seen[head, row, longest : longest + tail - (q_length - 1 - row)] = True
    return dense_reference(query, dense_keys, dense_values, seen, scaling, softcap, sinks)


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("q_length, tail", [(1, 1), (1, 9), (5, 5), (5, 9), (300, 310)])
def test_heads_of_equal_length_are_one_batch(group, q_length, tail):
    query, keys, values, tail_keys, tail_values = random_case(2, group, [11, 11], tail, q_length)
    prefix = Prefix([11, 11], torch.stack(keys), torch.stack(values))

    out = two_part_attention(query, prefix, tail_keys, tail_values, scaling=0.3)

    assert prefix.uniform
    expected = reference_of(query, keys, values, tail_keys, tail_values, 0.3)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("q_length, tail", [(1, 1), (1, 9), (5, 5), (5, 9)])
def test_heads_of_different_lengths_are_attended_unpadded(group, q_length, tail):
    lengths = [3, 40, 1]
    query, keys, values, tail_keys, tail_values = random_case(3, group, lengths, tail, q_length)

    out = two_part_attention(query, Prefix(lengths, keys, values), tail_keys, tail_values, scaling=0.25)

    expected = reference_of(query, keys, values, tail_keys, tail_values, 0.25)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


def test_a_head_may_have_kept_nothing():
    query, keys, values, tail_keys, tail_values = random_case(2, 2, [0, 4], 3, 2)

    out = two_part_attention(query, Prefix([0, 4], keys, values), tail_keys, tail_values, scaling=0.25)

    expected = reference_of(query, keys, values, tail_keys, tail_values, 0.25)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


def test_scaling_defaults_to_the_head_dimension_and_softcap_is_honoured():
    query, keys, values, tail_keys, tail_values = random_case(2, 2, [7, 7], 3, 1)
    prefix = Prefix([7, 7], torch.stack(keys), torch.stack(values))

    out = two_part_attention(query, prefix, tail_keys, tail_values, softcap=1.5)

    expected = reference_of(query, keys, values, tail_keys, tail_values, 16**-0.5, softcap=1.5)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("lengths, grad", [([7, 7], False), ([3, 9], False), ([3, 9], True), ([0, 4], False)])
def test_sinks_are_in_the_sum_and_have_no_value(lengths, grad, softcap):
    query, keys, values, tail_keys, tail_values = random_case(2, 3, lengths, 5, 4)
    rows = (torch.stack(keys), torch.stack(values)) if len(set(lengths)) == 1 else (keys, values)
    sinks = torch.tensor([0.0, 4.0, -2.0, 1.0, 9.0, 0.5])

    out = two_part_attention(
        query.requires_grad_(grad), Prefix(lengths, *rows), tail_keys, tail_values, 0.25, softcap, sinks=sinks.bfloat16()
    )

    expected = reference_of(query, keys, values, tail_keys, tail_values, 0.25, softcap, sinks)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_keeps_its_softmax_in_float32(dtype, tolerance):
    query, keys, values, tail_keys, tail_values = random_case(2, 3, [50, 50], 4, 1)
    prefix = Prefix([50, 50], torch.stack(keys).to(dtype), torch.stack(values).to(dtype))

    out = two_part_attention(query.to(dtype), prefix, tail_keys.to(dtype), tail_values.to(dtype), scaling=0.25)

    expected = reference_of(query, keys, values, tail_keys, tail_values, 0.25)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


def test_a_mask_over_the_tail_replaces_the_causal_one():
    query, keys, values, tail_keys, tail_values = random_case(1, 2, [4], 3, 1)
    prefix = Prefix([4], torch.stack(keys), torch.stack(values))
    mask = torch.tensor([[True, False, True]])

    out = two_part_attention(query, prefix, tail_keys, tail_values, scaling=0.25, tail_mask=mask)
    additive = two_part_attention(
        query, prefix, tail_keys, tail_values, scaling=0.25, tail_mask=torch.tensor([[0.0, -1e30, 0.0]])
    )

    without = [0, 2]
    expected = reference_of(query, keys, values, tail_keys[:, :, without], tail_values[:, :, without], 0.25)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(additive, out)


def test_the_prefix_is_read_where_it_lies():
    """Strided views over a packed buffer, as the adapter makes them, are not made contiguous."""
    rows = torch.randn(2 * 30 * 16)
    keys = rows.as_strided((2, 10, 16), (15 * 16, 16, 1))
    values = rows.as_strided((2, 10, 16), (15 * 16, 16, 1), 5 * 16)
    query, tail = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 2, 16)

    out = two_part_attention(query, Prefix([10, 10], keys, values), tail, tail)

    expected = reference_of(query, list(keys), list(values), tail, tail, 0.25)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


def test_the_causal_mask_is_aligned_to_the_last_query():
    mask = lower_right_causal(2, 4, torch.device("cpu"))

    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]
