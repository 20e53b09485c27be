#include "protocol/sdk/clock.h"

#include <random>

namespace dkv::sdk {

std::uint64_t random_id() {
    std::random_device device;
    while (true) {
        std::uint64_t const id = (std::uint64_t{device()} << 32U) | device();
        if (id != 0) return id;
    }
}

std::string hex(std::uint64_t id) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text(16, '0');
    for (auto digit = text.rbegin(); digit != text.rend(); ++digit, id >>= 4U)
        *digit = kDigits[id & 0xfU];
    return text;
}

}  // namespace dkv::sdk
