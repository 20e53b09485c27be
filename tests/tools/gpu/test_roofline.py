"""The roofline: figures worked out by hand, and the page that holds them."""
from pathlib import Path

import pytest
import roofline
import summary

PAGE = Path(__file__).resolve().parents[3] / "docs/KERNELS.md"


def test_work_is_counted():
    # 8 heads × 4096 tokens × 128 × 2 bytes = 8 MiB of keys, twice; 32 × 32 × 128 × 2 of queries; 8 × 4064 scores.
    found = roofline.work("score", roofline.LLAMA, "bf16", 4096)
    assert found.bytes == 2 * (8 << 20) + (256 << 10) + 4 * 8 * 4064
    assert found.flops == 2 * (2 * 32 * 32 * 4096 * 128)
    assert found.exponentials == 2 * 32 * 32 * 4096
    assert roofline.work("gather", roofline.LLAMA, "f32", 4096).bytes == 2 * 8 * 1024 * 128 * 4


def test_the_largest_time_is_the_bound():
    gpu = roofline.Gpu("test", memory=1e9, tensor=1e12, f32=1e10, exponentials=1e9)
    assert roofline.bound(gpu, roofline.Work(bytes=1e6, flops=1e8, exponentials=1e5), "bf16") == (1e-3, "memory")
    assert roofline.bound(gpu, roofline.Work(bytes=1e6, flops=1e8, exponentials=1e5), "f32") == (1e-2, "products")
    seconds, by = roofline.bound(gpu, roofline.Work(bytes=1e3, exponentials=1e6), "bf16")
    assert (seconds, by) == (pytest.approx(1e-3), "exponentials")


@pytest.mark.parametrize("name, capability, multiprocessors, clock, memory", [
    ("A100", "8.0", 108, 1.41e9, 2.039e12), ("H100", "9.0", 132, 1.83e9, 3.35e12), ("L4", "8.9", 58, 2.04e9, 300e9)])
def test_a_device_is_what_its_data_sheet_says(name, capability, multiprocessors, clock, memory):
    found = roofline.gpu_of({"name": name, "compute_capability": capability, "multiprocessors": multiprocessors,
                             "clock_hz": clock, "memory_bytes_per_s": memory})
    (sheet,) = [gpu for gpu in roofline.GPUS if gpu.name == name]
    for field in ("memory", "tensor", "f32", "exponentials"):
        assert getattr(found, field) == pytest.approx(getattr(sheet, field), rel=0.08), field


def test_a_device_without_clocks_or_of_another_kind_is_not_guessed():
    device = {"name": "?", "compute_capability": "8.0", "multiprocessors": 4, "clock_hz": 0, "memory_bytes_per_s": 0}
    assert roofline.gpu_of(device) is None
    assert roofline.gpu_of({**device, "clock_hz": 1e9, "memory_bytes_per_s": 1e9, "compute_capability": "13.0"}) is None


def test_the_page_is_what_the_script_writes():
    assert summary.check(PAGE, "roofline", roofline.page()) == []
