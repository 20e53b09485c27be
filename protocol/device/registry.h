// What this process has opened of others' device memory: each mapping once. CUDA counts the opens
// of a legacy handle in some versions and not in others, and one close too many unmaps for all.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "protocol/base/result.h"
#include "protocol/base/unique_fd.h"

namespace dkv::cuda {

/// A whole allocation of another process, mapped. Closes on destruction.
class Mapping {
public:
    Mapping(Mapping const&) = delete;
    Mapping& operator=(Mapping const&) = delete;
    virtual ~Mapping() = default;
    std::byte* base() const noexcept { return base_; }
    std::uint64_t bytes() const noexcept { return bytes_; }

protected:
    Mapping() = default;
    std::byte* base_ = nullptr;
    std::uint64_t bytes_ = 0;
};

enum class MappingKind : std::uint8_t { Ipc, Vmm, Pool };

/// What makes two requests the same mapping. Handles can be used again, byte for byte, by a later
/// allocation: an engine that attaches again has another generation.
struct MappingKey {
    std::uint64_t instance = 0;
    std::uint32_t generation = 0;
    int device = 0;
    MappingKind kind = MappingKind::Ipc;
    std::array<std::byte, 64> handle{};  ///< Zero where a descriptor alone names the memory.

    // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 sees a 0 in what is generated.
    auto operator<=>(MappingKey const&) const = default;
};

class Registry {
public:
    using Open = std::function<Result<std::unique_ptr<Mapping>>()>;

    /// The process's one. Leases may outlive main(), and so does it.
    static Registry& instance();

    /// A share of the mapping, opened now unless it is open. `file` (-1: none) belongs to the key:
    /// two descriptors are the same only where they are the same open file. What kind of file it
    /// is, its inode included, may be the same for all memory of a device.
    Result<std::shared_ptr<Mapping const>> lease(MappingKey const& key, int file, Open const& open);

    std::size_t count() const noexcept;

private:
    struct Entry {
        UniqueFd file;
        std::unique_ptr<Mapping> mapping;
        std::size_t leases = 0;
    };
    using Entries = std::multimap<MappingKey, Entry>;
    std::shared_ptr<Mapping const> share(Entries::iterator entry);

    /// Held while CUDA opens and closes: an open must not meet a close of the same handle.
    mutable std::mutex mutex_;
    Entries entries_;
};

/// Whether both descriptors are one open file (kcmp(2)); false where that cannot be asked.
bool is_same_file(int a, int b) noexcept;

}  // namespace dkv::cuda
