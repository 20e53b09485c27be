// An engine as a fuzzer sees it: a process of its own, whose memory the test fills and looks into.
#pragma once

#include <csignal>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <unistd.h>
#include <utility>

#include <sys/prctl.h>
#include <sys/wait.h>

#include "protocol/base/geometry.h"
#include "protocol/base/kv_layout.h"
#include "tests/support/engine_memory.h"

namespace dkv::fuzz {

/// Has every descriptor that was open when it was made, until it is killed.
class Process {
public:
    Process() : pid_(::fork()) {
        if (pid_ != 0) return;
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (true)
            ::pause();
    }
    Process(Process const&) = delete;
    Process& operator=(Process const&) = delete;
    ~Process() { kill(); }

    PeerCredentials credentials() const noexcept { return {::geteuid(), pid_}; }
    void kill() {
        if (killed_) return;
        killed_ = true;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }

private:
    pid_t pid_;
    bool killed_ = false;
};

/// K, V and the queries of every token, and the two buffers that a sidecar writes to.
class Memory {
public:
    static constexpr std::uint32_t kLayers = 3;
    static constexpr std::uint32_t kQHeads = 4;
    static constexpr std::uint32_t kKvHeads = 2;
    static constexpr std::uint32_t kDim = 8;
    static constexpr std::uint32_t kTokens = 64;       ///< At most, of one prompt.
    static constexpr std::uint32_t kBlockedLayer = 2;  ///< Its K and V lie in blocks.
    static constexpr std::uint32_t kBlockTokens = 16;
    static constexpr std::uint32_t kBlocks = kTokens / kBlockTokens;

    static constexpr Geometry geometry() {
        return {.layers = kLayers,
                .q_heads = kQHeads,
                .kv_heads = kKvHeads,
                .head_dim = kDim,
                .dtype = Dtype::F32};
    }
    static constexpr std::uint64_t kRowBytes = kDim * sizeof(float);
    static constexpr std::uint64_t kRowsBytes = kKvHeads * kTokens * kRowBytes;
    static constexpr std::uint64_t kLayerBytes = 2 * kRowsBytes + kQHeads * kTokens * kRowBytes;

    explicit Memory(std::uint64_t seed)
        : source(kLayers * kLayerBytes),
          staging(StagingLayout{geometry(), kTokens}.region_bytes()),
          destination(packed_bytes_max(geometry(), kLayers * kKvHeads * kTokens)),
          brittle(2 * kRowsBytes) {
        std::mt19937_64 random(seed);
        std::normal_distribution<float> normal;
        auto* const numbers = source.at<float>(0);
        for (std::size_t i = 0; i < source.bytes().size() / sizeof(float); ++i)
            numbers[i] = normal(random);
    }

    static constexpr std::uint64_t keys_offset(std::uint32_t layer) { return layer * kLayerBytes; }
    static constexpr std::uint64_t values_offset(std::uint32_t layer) {
        return keys_offset(layer) + kRowsBytes;
    }
    static constexpr std::uint64_t queries_offset(std::uint32_t layer) {
        return values_offset(layer) + kRowsBytes;
    }
    /// Which block a token of the blocked layer lies in: the last one first.
    static constexpr std::uint32_t block_of(std::uint32_t token) {
        return kBlocks - 1 - token / kBlockTokens;
    }
    /// Whether `row` is the bytes of this token's K (or V) in this layer and head.
    bool is_row(std::uint64_t offset,
                std::uint32_t head,
                std::uint32_t token,
                void const* row) const {
        auto const row_number =
            offset / kLayerBytes == kBlockedLayer
                ? (std::uint64_t{block_of(token)} * kKvHeads + head) * kBlockTokens +
                      token % kBlockTokens
                : std::uint64_t{head} * kTokens + token;
        return std::memcmp(source.at<std::byte>(offset + row_number * kRowBytes), row, kRowBytes) ==
               0;
    }

    test::EngineMemory source;
    test::EngineMemory staging;
    test::EngineMemory destination;
    test::EngineMemory brittle;  ///< May be cut while it is lent.
};

/// A prompt on its way through the sidecar, as its engine sees it.
struct Run {
    std::uint64_t session = 0;  ///< 0: none.
    std::uint32_t tokens = Memory::kTokens;
    bool compress = false;
    std::uint32_t window = 0;
    bool staged = false;
    std::uint32_t layers_sent = 0;
    bool tainted = false;  ///< Something wrong was taken: its rows are not compared.
};

struct Engine {
    Engine(std::string name, std::uint64_t number, std::uint64_t seed)
        : peer(std::move(name)),
          id(number),
          memory(std::make_unique<Memory>(seed)),
          process(std::make_unique<Process>()) {}

    std::string peer;  ///< Its connection.
    std::uint64_t id;
    std::uint32_t generation = 1;
    std::unique_ptr<Memory> memory;
    std::unique_ptr<Process> process;  ///< Made last: it has the descriptors.
    bool has_regions = false;
    std::uint64_t source = 0, staging = 0, destination = 0, brittle = 0;  ///< Regions.
    Run run;
};

}  // namespace dkv::fuzz
