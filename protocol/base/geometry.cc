#include "protocol/base/geometry.h"

namespace dkv {
namespace {

constexpr std::uint32_t kCountMax = 1024;

Result<void> check_count(char const* name, std::uint32_t count) {
    if (count >= 1 && count <= kCountMax) return {};
    return Error{ErrorCode::InvalidArgument, std::string(name) + " is " + std::to_string(count) +
                                                 ", not in 1 … " + std::to_string(kCountMax)};
}

}  // namespace

Result<void> check(Geometry const& geometry) {
    DKV_TRY(check_count("layers", geometry.layers));
    DKV_TRY(check_count("q_heads", geometry.q_heads));
    DKV_TRY(check_count("kv_heads", geometry.kv_heads));
    DKV_TRY(check_count("head_dim", geometry.head_dim));
    if (geometry.q_heads % geometry.kv_heads != 0)
        return Error{ErrorCode::InvalidArgument, "q_heads is " + std::to_string(geometry.q_heads) +
                                                     ", no multiple of kv_heads " +
                                                     std::to_string(geometry.kv_heads)};
    return {};
}

std::string describe(Geometry const& geometry) {
    return std::to_string(geometry.layers) + " layers, " + std::to_string(geometry.q_heads) + "/" +
           std::to_string(geometry.kv_heads) + " heads, head_dim " +
           std::to_string(geometry.head_dim) + ", " + std::string(name_of(geometry.dtype));
}

}  // namespace dkv
