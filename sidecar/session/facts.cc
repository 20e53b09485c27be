#include "sidecar/session/facts.h"

#include <fmt/format.h>

namespace dkv {
std::string id_name(std::uint64_t id) {
    return fmt::format("0x{:016x}", id);
}

}  // namespace dkv
