#include "sidecar/session/facts.h"

#include <fmt/format.h>

namespace dkv {
std::string instance_name(std::uint64_t instance) {
    return fmt::format("{:016x}", instance);
}

}  // namespace dkv
