"""The occupancy calculator: cases worked out by hand, and NVIDIA's own calculator on a grid of others."""
import itertools
import os
import pathlib
import subprocess

import pytest

from occupancy import LIMITS, REGISTERS, REGISTERS_PER_THREAD_MAX, SHARED_RESERVED, occupancy


def test_few_registers_and_no_shared_memory_leave_the_warps_as_the_limit():
    # 8 warps a block; 64 / 8 = 8 blocks. 32 registers × 32 lanes = 1024 a warp, 65536 / 1024 = 64 warps: as many.
    found = occupancy(80, threads=256, registers=32, shared=0)
    assert (found.blocks, found.warps, found.share, found.limited_by) == (8, 64, 1.0, "warps")


def test_registers_are_given_in_units_of_a_warp():
    # 33 registers: 1056, rounded up to 1280; 16384 / 1280 = 12 warps a partition, 48 in all, 6 blocks of 8.
    found = occupancy(80, threads=256, registers=33, shared=0)
    assert (found.blocks, found.share, found.limited_by) == (6, 0.75, "registers")


def test_shared_memory_is_what_is_asked_for_and_a_kilobyte_more():
    # 49152 + 1024 = 50176; 102400 / 50176 = 2 blocks of 4 warps: 8 of 48.
    found = occupancy(86, threads=128, registers=32, shared=48 << 10)
    assert (found.blocks, found.share, found.limited_by) == (2, 8 / 48, "shared")


def test_small_blocks_run_out_of_blocks():
    # 16 blocks of one warp on sm_86, 24 on sm_89, 32 on sm_90.
    assert [occupancy(sm, 32, 16, 0).blocks for sm in (86, 89, 90)] == [16, 24, 32]
    assert occupancy(86, 32, 16, 0).limited_by == "blocks"


def test_what_does_not_fit_at_all_fits_no_times():
    assert occupancy(86, 128, 32, (99 << 10) + 1).blocks == 0
    assert occupancy(86, 128, 32, 99 << 10).blocks == 1
    assert occupancy(80, 1024, 65, 0).blocks == 0  # 72 × 1024 registers.
    assert occupancy(80, 1024, 64, 0).blocks == 1


HARNESS = """
#include <cstdio>
#include <cstring>
#include <cstddef>
#include <climits>
#include "cuda_occupancy.h"
int main() {
    int sm, warps, threads, registers; long shared, per_sm, per_block;
    while (std::scanf("%d %d %ld %ld %d %d %ld", &sm, &warps, &per_sm, &per_block, &threads, &registers, &shared) == 7) {
        cudaOccDeviceProp device;
        device.computeMajor = sm / 10; device.computeMinor = sm % 10;
        device.maxThreadsPerBlock = 1024; device.maxThreadsPerMultiprocessor = warps * 32;
        device.regsPerBlock = 65536; device.regsPerMultiprocessor = 65536; device.warpSize = 32;
        device.sharedMemPerBlock = 48 << 10; device.sharedMemPerMultiprocessor = per_sm; device.numSms = 1;
        device.sharedMemPerBlockOptin = per_block; device.reservedSharedMemPerBlock = 1024;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024; kernel.numRegs = registers; kernel.sharedSizeBytes = 0;
        kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN; kernel.maxDynamicSharedSizeBytes = per_block;
        kernel.numBlockBarriers = 1;
        cudaOccDeviceState state; cudaOccResult result;
        auto const failed = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
        std::printf("%d\\n", failed ? -1 : result.activeBlocksPerMultiprocessor);
    }
}
"""


@pytest.fixture(scope="module")
def nvidia(tmp_path_factory):
    header = pathlib.Path(os.environ.get("DKV_CUDA_ROOT", ""), "include/cuda_occupancy.h")
    if not header.is_file():
        pytest.skip("no CUDA toolkit (DKV_CUDA_ROOT)")
    folder = tmp_path_factory.mktemp("occupancy")
    (folder / "harness.cc").write_text(HARNESS)
    subprocess.run(["g++", "-O0", "-w", "-std=c++17", "-isystem", header.parent, "-o", folder / "harness",
                    folder / "harness.cc"], check=True)
    return folder / "harness"


def test_nvidias_own_calculator_says_the_same(nvidia):
    cases = [(sm, threads, registers, shared)
             for sm, threads, registers, shared in itertools.product(
                 LIMITS, (32, 64, 96, 128, 192, 256, 512, 1024), (16, 31, 40, 63, 72, 96, 128, 168, 200, 255),
                 (0, 1, 127, 4096, 16384, 33000, 49152, 81920, 99 << 10, 130000, 163 << 10))]
    lines = [f"{sm} {LIMITS[sm].warps} {LIMITS[sm].shared} {LIMITS[sm].block_shared} {threads} {registers} {shared}"
             for sm, threads, registers, shared in cases]
    done = subprocess.run([nvidia], input="\n".join(lines), capture_output=True, text=True, check=True)
    theirs = list(map(int, done.stdout.split()))
    assert len(theirs) == len(cases)
    assert REGISTERS == 65536 and REGISTERS_PER_THREAD_MAX == 255 and SHARED_RESERVED == 1024
    different = [(case, occupancy(*case).blocks, their) for case, their in zip(cases, theirs)
                 if occupancy(*case).blocks != their]
    assert not different
