#include "protocol/sdk/device.h"

#include <algorithm>
#include <array>
#include <limits>
#include <unistd.h>
#include <utility>

#include "protocol/sdk/clock.h"

namespace dkv::sdk {
namespace {

/// What a function of the other library said. The call: (error buffer) → status.
template <class Call>
Result<void> asked(Call&& call) {
    std::array<char, DKV_DEVICE_ERROR_BYTES> error{};
    dkv_status const status = call(error.data());
    if (status == DKV_OK) return {};
    return Error{static_cast<ErrorCode>(status), error.data()};
}

std::uint32_t left_until(Deadline deadline) {
    auto const left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
    return static_cast<std::uint32_t>(
        std::clamp<decltype(left)>(left, 0, std::numeric_limits<std::int32_t>::max()));
}

/// Frees on destruction; memory that has another share stays.
class DeviceMemory {
public:
    explicit DeviceMemory(dkv_device_memory const& functions)
        : functions_(functions), owner_(::getpid()) {}
    DeviceMemory(DeviceMemory const&) = delete;
    DeviceMemory& operator=(DeviceMemory const&) = delete;
    // A forked child has no device, and the memory is not its.
    ~DeviceMemory() {
        if (owner_ == ::getpid()) functions_.free(functions_.self);
    }
    dkv_device_memory const& functions() const noexcept { return functions_; }

private:
    dkv_device_memory const functions_;
    pid_t const owner_;
};

wire::RegionSourceUnion region_of(dkv_device_source const& found, std::uint64_t ticket) {
    wire::RegionSourceUnion region;
    auto const range = [&](auto& table) {
        table.allocation_bytes = found.allocation_bytes;
        table.offset = found.offset;
    };
    std::vector<std::uint8_t> handle(std::begin(found.handle), std::end(found.handle));
    if (found.kind == DKV_DEVICE_IPC) {
        wire::CudaIpcT ipc;
        range(ipc);
        ipc.handle = std::move(handle);
        region.Set(std::move(ipc));
    } else if (found.kind == DKV_DEVICE_VMM_FD) {
        wire::CudaVmmFdT vmm;
        range(vmm);
        vmm.ticket = ticket;
        region.Set(std::move(vmm));
    } else {
        wire::CudaPoolT pool;
        range(pool);
        pool.ticket = ticket;
        pool.pointer = std::move(handle);
        region.Set(std::move(pool));
    }
    return region;
}

class DeviceArena final : public Arena {
public:
    explicit DeviceArena(dkv_device_memory const& memory)
        : Arena(static_cast<std::byte*>(memory.base), memory.bytes),
          device_(memory.device),
          memory_(std::make_shared<DeviceMemory>(memory)) {}
    ~DeviceArena() override { static_cast<void>(give_back()); }

    std::string_view device() const noexcept override { return device_; }
    bool is_there() const noexcept override { return memory_ != nullptr; }
    std::uint64_t allocated_bytes() const noexcept override {
        return memory_ ? memory_->functions().held_bytes : 0;
    }
    /// One allocation, which goes as a whole or not at all.
    Result<void> release(std::uint64_t offset, std::uint64_t range_bytes) override {
        DKV_TRY(check_range(offset, range_bytes));
        if (range_bytes != bytes()) return {};
        return give_back();
    }

    Result<ArenaSource> source() override {
        DKV_TRY(check_there());
        auto const& functions = memory_->functions();
        dkv_device_source found{};
        found.fd = -1;
        DKV_TRY(
            asked([&](char* error) { return functions.describe(functions.self, &found, error); }));
        ArenaSource source;
        source.file = UniqueFd(found.fd);
        if (source.file) source.ticket = random_id();
        source.region = region_of(found, source.ticket);
        return source;
    }

    Result<void> read(std::uint64_t offset, std::span<std::byte> target) const override {
        DKV_TRY(check_there());
        auto const& functions = memory_->functions();
        return asked([&](char* error) {
            return functions.read(functions.self, offset, target.data(), target.size(), error);
        });
    }

private:
    Result<void> check_there() const {
        if (memory_) return {};
        return Error{ErrorCode::BadState, "this device arena was released"};
    }
    /// Freed here once every sidecar has let go, else by the thread that hears that it has.
    Result<void> give_back() {
        auto const memory = std::exchange(memory_, nullptr);
        if (!memory) return {};
        return detach(memory);
    }

    std::string const device_;
    std::shared_ptr<DeviceMemory> memory_;  // Null: released.
};

}  // namespace

std::shared_ptr<Arena> make_device_arena(dkv_device_memory const& memory) {
    return std::make_shared<DeviceArena>(memory);
}

Result<std::shared_ptr<Arena>> Device::allocate(std::uint64_t bytes) const {
    dkv_device_memory memory{};
    DKV_TRY(asked(
        [&](char* error) { return functions_.allocate(functions_.self, bytes, &memory, error); }));
    return make_device_arena(memory);
}

Result<std::span<unsigned char const>> Device::events() const {
    unsigned char const* handles = nullptr;
    std::uint32_t count = 0;
    DKV_TRY(asked(
        [&](char* error) { return functions_.events(functions_.self, &handles, &count, error); }));
    return std::span(handles, std::size_t{count} * DKV_DEVICE_HANDLE_BYTES);
}

Result<void> Device::record(std::uint32_t event, void* stream) const {
    return asked(
        [&](char* error) { return functions_.record(functions_.self, event, stream, error); });
}

Result<std::uint32_t> Device::next_event(Deadline deadline) const {
    std::uint32_t event = 0;
    DKV_TRY(asked([&](char* error) {
        return functions_.next_event(functions_.self, left_until(deadline), &event, error);
    }));
    return event;
}

Result<std::uint32_t> Device::next_word(Deadline deadline) const {
    std::uint32_t word = 0;
    DKV_TRY(asked([&](char* error) {
        return functions_.next_word(functions_.self, left_until(deadline), &word, error);
    }));
    return word;
}

Result<void> Device::write_word(std::uint32_t word,
                                void* address,
                                std::uint64_t value,
                                void* stream) const {
    return asked([&](char* error) {
        return functions_.write_word(functions_.self, word, address, value, stream, error);
    });
}

}  // namespace dkv::sdk
