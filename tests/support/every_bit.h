#pragma once

#include <cstddef>
#include <cstdlib>

namespace dkv::test {

/// How far apart the bits are that a test flips, one after another: `make fuzz` tries every bit,
/// `make test` a fifth of them, which visits each bit of a byte.
inline std::size_t bit_step() {
    return std::getenv("DKV_EVERY_BIT") == nullptr ? 5 : 1;
}

}  // namespace dkv::test
