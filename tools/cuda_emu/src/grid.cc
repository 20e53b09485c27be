#include "tools/cuda_emu/src/grid.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <string>

#include "tools/cuda_emu/src/architecture.h"
#include "tools/cuda_emu/src/block.h"
#include "tools/cuda_emu/src/memory.h"

// Where the section begins and ends, by the linker's names.
extern "C" char shared_begin[] __asm__("__start_cudaemu_shared") __attribute__((weak));
extern "C" char shared_end[] __asm__("__stop_cudaemu_shared") __attribute__((weak));

namespace cudaemu {
namespace {

constexpr std::size_t kSharedDefault = std::size_t{48} << 10U;

struct Attributes {
    std::mutex mutex;
    std::map<void const*, int> shared_bytes_max;
};
Attributes& attributes() {
    static Attributes& all = *new Attributes;
    return all;
}
std::size_t shared_limit(void const* kernel) {
    Attributes& all = attributes();
    std::lock_guard const lock(all.mutex);
    auto const found = all.shared_bytes_max.find(kernel);
    return found == all.shared_bytes_max.end() ? kSharedDefault
                                               : static_cast<std::size_t>(found->second);
}

/// CUDAEMU_ORDER=forward, reverse, shuffle or shuffle:<seed>.
struct Ordering {
    Order order = Order::Forward;
    unsigned seed = 0;
};
Ordering const& ordering() {
    static Ordering const chosen = [] {
        char const* const wish = std::getenv("CUDAEMU_ORDER");
        std::string const text = wish == nullptr ? "forward" : wish;
        Ordering result;
        if (text == "reverse") result.order = Order::Reverse;
        if (text.starts_with("shuffle")) result.order = Order::Shuffle;
        if (text.starts_with("shuffle:"))
            result.seed = static_cast<unsigned>(std::strtoul(text.c_str() + 8, nullptr, 10));
        if (result.order == Order::Forward && text != "forward") {
            std::fprintf(stderr,
                         "cudaemu: CUDAEMU_ORDER is '%s', not forward, reverse, shuffle or "
                         "shuffle:<seed>\n",
                         text.c_str());
            std::abort();
        }
        block().set_order(result.order, result.seed);
        return result;
    }();
    return chosen;
}

struct Dynamic {
    std::byte* data = nullptr;
    std::size_t bytes = 0;
};
Dynamic dynamic;  // NOLINT: of the one block that runs.

// Redzones lie between the variables: not the sanitizers' business.
__attribute__((no_sanitize("address"))) void fill_with_nans(char* begin, char* end) {
    for (; begin < end; ++begin)
        *const_cast<char volatile*>(begin) = static_cast<char>(0xFF);
}

std::uint64_t block_of(std::uint64_t turn, std::uint64_t blocks, std::vector<std::uint32_t>& deal) {
    switch (ordering().order) {
        case Order::Forward: return turn;
        case Order::Reverse: return blocks - 1 - turn;
        case Order::Shuffle: break;
    }
    if (deal.empty()) {
        deal.resize(blocks);
        std::iota(deal.begin(), deal.end(), 0U);
        std::shuffle(deal.begin(), deal.end(), block().random());
    }
    return deal[turn];
}

}  // namespace

void print_order() {
    char const* const names[] = {"forward", "reverse", "shuffle"};
    std::fprintf(stderr, "cudaemu: CUDAEMU_ORDER=%s:%u\n",
                 names[static_cast<int>(ordering().order)], ordering().seed);
}

void* dynamic_shared() {
    return dynamic.data;
}

bool is_shared(void const* address, std::size_t bytes) {
    auto const begin = reinterpret_cast<std::uintptr_t>(address);
    auto const within = [&](void const* low, void const* high) {
        return begin >= reinterpret_cast<std::uintptr_t>(low) &&
               begin + bytes <= reinterpret_cast<std::uintptr_t>(high);
    };
    return within(dynamic.data, dynamic.data + dynamic.bytes) || within(shared_begin, shared_end);
}

// The kernel that asks runs under the device's lock.
bool is_readable(void const* address, std::size_t bytes) {
    return is_covered(address, bytes);
}

void run_grid(cudaLaunchConfig_t const& config,
              void const* /*kernel*/,
              std::function<void()> const& body) {
    gridDim = config.gridDim;
    blockDim = config.blockDim;
    static_cast<void>(ordering());
    dynamic.bytes = config.dynamicSmemBytes;
    // Of exactly this size, so that the address sanitizer knows its end.
    void* memory = nullptr;
    if (dynamic.bytes != 0 && ::posix_memalign(&memory, 1024, dynamic.bytes) != 0) std::abort();
    dynamic.data = static_cast<std::byte*>(memory);
    std::uint64_t const blocks = std::uint64_t{gridDim.x} * gridDim.y * gridDim.z;
    std::vector<std::uint32_t> deal;
    for (std::uint64_t turn = 0; turn < blocks; ++turn) {
        std::uint64_t const index = block_of(turn, blocks, deal);
        if (dynamic.bytes != 0) std::memset(dynamic.data, 0xFF, dynamic.bytes);
        fill_with_nans(shared_begin, shared_end);
        block().run({static_cast<unsigned>(index % gridDim.x),
                     static_cast<unsigned>(index / gridDim.x % gridDim.y),
                     static_cast<unsigned>(index / gridDim.x / gridDim.y)},
                    body);
    }
    std::free(memory);
    dynamic = {};
}

cudaError_t check_launch(cudaLaunchConfig_t const& config, void const* kernel) {
    dim3 const& block = config.blockDim;
    dim3 const& grid = config.gridDim;
    std::uint64_t const threads = std::uint64_t{block.x} * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
    if (grid.x == 0 || grid.x > 0x7fffffffU || grid.y == 0 || grid.y > 65535 || grid.z == 0 ||
        grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (config.dynamicSmemBytes > shared_limit(kernel)) return cudaErrorInvalidValue;
    return cudaSuccess;
}

cudaError_t set_attribute(void const* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)
        return value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<std::size_t>(value) > architecture().shared_block_max)
        return cudaErrorInvalidValue;
    Attributes& all = attributes();
    std::lock_guard const lock(all.mutex);
    all.shared_bytes_max[kernel] = value;
    return cudaSuccess;
}

cudaError_t get_attributes(void const* kernel, cudaFuncAttributes* result) {
    *result = {};
    result->maxThreadsPerBlock = 1024;
    result->maxDynamicSharedSizeBytes = static_cast<int>(shared_limit(kernel));
    result->ptxVersion = architecture().number;
    result->binaryVersion = architecture().number;
    return cudaSuccess;
}

cudaError_t occupancy(void const* /*kernel*/, int* blocks, int threads, std::size_t shared_bytes) {
    if (threads <= 0 || threads > 1024) return cudaErrorInvalidValue;
    Architecture const& mine = architecture();
    int const by_shared =
        shared_bytes == 0 ? mine.blocks : static_cast<int>(mine.shared / (shared_bytes + 1024));
    *blocks = std::min({mine.threads / threads, mine.blocks, by_shared});
    return cudaSuccess;
}

}  // namespace cudaemu
