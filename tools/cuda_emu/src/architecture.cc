#include "tools/cuda_emu/src/architecture.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace cudaemu {
namespace {

constexpr std::size_t kKib = 1024;
constexpr Architecture kArchitectures[] = {
    {80, 2048, 32, 164 * kKib, 163 * kKib},  {86, 1536, 16, 100 * kKib, 99 * kKib},
    {89, 1536, 24, 100 * kKib, 99 * kKib},   {90, 2048, 32, 228 * kKib, 227 * kKib},
    {100, 2048, 32, 228 * kKib, 227 * kKib}, {120, 1536, 24, 100 * kKib, 99 * kKib},
};

Architecture chosen() {
    Architecture result = kArchitectures[0];
    char const* const wish = std::getenv("CUDAEMU_ARCH");
    for (Architecture const& each : kArchitectures) {
        if (wish != nullptr && std::to_string(each.number) == wish) return each;
        result.shared_block_max = std::min(result.shared_block_max, each.shared_block_max);
    }
    if (wish == nullptr) return result;
    std::fprintf(stderr, "cudaemu: CUDAEMU_ARCH is '%s', not 80, 86, 89, 90, 100 or 120\n", wish);
    std::abort();
}

}  // namespace

Architecture const& architecture() {
    static Architecture const the_one = chosen();
    return the_one;
}

}  // namespace cudaemu
