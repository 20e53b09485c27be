"""How many blocks of a kernel fit on a multiprocessor, and what keeps more of them out.

The limits are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; how
they are applied is what the toolkit's own cuda_occupancy.h does, which a test compiles and compares with. The
shared memory is the largest carve-out that the multiprocessor has.
"""
from dataclasses import dataclass

WARP = 32
REGISTERS = 65536  # Of a multiprocessor, and the most of a block.
REGISTERS_PER_THREAD_MAX = 255
REGISTER_UNIT = 256  # Registers are given to a warp in these.
PARTITIONS = 4  # Of a multiprocessor: each has a quarter of the registers.
SHARED_UNIT = 128
SHARED_RESERVED = 1024  # By the system, of every block.


@dataclass(frozen=True)
class Limits:
    warps: int
    blocks: int
    shared: int  # Bytes.
    block_shared: int


KIB = 1024
LIMITS = {
    80: Limits(warps=64, blocks=32, shared=164 * KIB, block_shared=163 * KIB),
    86: Limits(warps=48, blocks=16, shared=100 * KIB, block_shared=99 * KIB),
    89: Limits(warps=48, blocks=24, shared=100 * KIB, block_shared=99 * KIB),
    90: Limits(warps=64, blocks=32, shared=228 * KIB, block_shared=227 * KIB),
    100: Limits(warps=64, blocks=32, shared=228 * KIB, block_shared=227 * KIB),
    120: Limits(warps=48, blocks=24, shared=100 * KIB, block_shared=99 * KIB),
}


@dataclass(frozen=True)
class Occupancy:
    blocks: int  # On one multiprocessor; 0: the launch fails.
    warps: int
    share: float  # Of the warps that there could be.
    limited_by: str  # "warps", "blocks", "registers" or "shared".


def up(value, unit):
    return -(-value // unit) * unit


def blocks_by_registers(registers, warps):
    if registers > REGISTERS_PER_THREAD_MAX:
        return 0
    of_warp = up(max(registers, 1) * WARP, REGISTER_UNIT)
    if of_warp * up(warps, PARTITIONS) > REGISTERS:
        return 0
    return REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps


def blocks_by_shared(limits, shared):
    if shared > limits.block_shared:
        return 0
    return limits.shared // up(shared + SHARED_RESERVED, SHARED_UNIT)


def occupancy(architecture, threads, registers, shared):
    """Of a kernel launched with `threads` a block and `shared` bytes, static and dynamic together."""
    limits = LIMITS[architecture]
    warps = up(threads, WARP) // WARP
    fits = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": blocks_by_registers(registers, warps),
        "shared": blocks_by_shared(limits, shared),
    }
    limited_by = min(fits, key=fits.get)
    blocks = fits[limited_by]
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps, limited_by)
