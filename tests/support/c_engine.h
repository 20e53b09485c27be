// The engine that tests of the C interface are: two layers, of small heads.
#pragma once

#include <cstdint>

#include "protocol/base/geometry.h"

namespace dkv::test {

/// A struct of the interface that says how long it is.
template <class Struct>
Struct sized() {
    Struct value{};
    value.struct_bytes = sizeof value;
    return value;
}

constexpr std::uint32_t kWindow = 8;
inline Geometry const kGeometry{
    .layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = Dtype::F32};

}  // namespace dkv::test
