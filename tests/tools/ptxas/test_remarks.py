"""What ptxas says, by recorded lines of nvcc 13.0."""
import pytest

import remarks

KERNEL = "_ZN3dkv4cuda41_GLOBAL__N__4b01e380_9_gather_cu_a8ce4e9f13gather_kernelI5uint4EEvPKT_mmmPKiPKNS1_4HeadEPhjPKNS0_5FaultE"
SAID = f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{KERNEL}' for 'sm_86'
ptxas info    : Function properties for {KERNEL}
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 22 registers, used 1 barriers, 16 bytes cumulative stack size, 4096 bytes smem, 424 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Compile time = 2.864 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{KERNEL}' for 'sm_120'
ptxas info    : Function properties for {KERNEL}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers
"""


def test_every_kernel_and_architecture_is_read():
    first, second = remarks.read_remarks(SAID)
    assert first == remarks.Remarks(KERNEL, 86, registers=22, shared=4096, constant=432, stack=16, spill_stores=4,
                                    spill_loads=8)
    assert second == remarks.Remarks(KERNEL, 120, registers=18)


def test_a_line_that_is_not_understood_is_an_error():
    with pytest.raises(remarks.Unreadable, match="log:1: not understood: ptxas warning : stack size unknown"):
        remarks.read_remarks("ptxas warning : stack size unknown\n", "log")


def test_a_device_function_that_was_not_inlined_may_not_spill():
    helper = SAID.splitlines()[1] + """
ptxas info    : Function properties for helper
    8 bytes stack frame, {} bytes spill stores, 0 bytes spill loads
"""
    assert remarks.read_remarks(helper.format(0)) == []
    with pytest.raises(remarks.Unreadable, match="helper, which is not a kernel, spills"):
        remarks.read_remarks(helper.format(8))


def test_names_are_for_people():
    assert remarks.readable(remarks.demangle([KERNEL])[KERNEL]) == "gather_kernel<uint4>"
    for demangled, name in {
        "void dkv::cuda::(anonymous namespace)::sums_kernel<dkv::cuda::MmaProducts<16u> >(dkv::cuda::PassShape, int)":
            "sums_kernel<MmaProducts<16>>",
        "void dkv::cuda::(anonymous namespace)::chunks<(bool)1, (unsigned int)4>(float const*)": "chunks<1, 4>",
        "dkv::cuda::(anonymous namespace)::join_kernel(void (*)(int))": "join_kernel",
    }.items():
        assert remarks.readable(demangled) == name


def test_launch_bounds_are_read_from_ptx():
    ptx = """
.entry one(
    .param .u64 one_param_0
)
.maxntid 256
{
}
.visible .entry two(
)
.maxntid 16, 8, 1
.entry three(
)
"""
    assert remarks.read_launch_bounds(ptx) == {"one": 256, "two": 128}
