// The device of an engine, as libdkv_cuda provides it: memory for sessions, and "the rows are
// written" without waiting for it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "protocol/base/result.h"
#include "protocol/sdk/arena.h"
#include "protocol/sdk/device_abi.h"

namespace dkv::sdk {

class Device {
public:
    /// Takes the functions over.
    explicit Device(dkv_device const& functions) : functions_(functions), uuid_(functions.uuid) {}
    Device(Device const&) = delete;
    Device& operator=(Device const&) = delete;
    ~Device() { functions_.free(functions_.self); }

    std::string const& uuid() const noexcept { return uuid_; }

    /// Errors: LimitExceeded when the device has no room; Device.
    Result<std::shared_ptr<Arena>> allocate(std::uint64_t bytes) const;
    /// The handles of all events, one after another. Errors: Unsupported, Device.
    Result<std::span<unsigned char const>> events() const;
    /// Errors: Device.
    Result<void> record(std::uint32_t event, void* stream) const;
    Result<void> write_timeline(void* word, std::uint64_t value, void* stream) const;

private:
    dkv_device const functions_;
    std::string const uuid_;
};

/// Takes the memory over.
std::shared_ptr<Arena> make_device_arena(dkv_device_memory const& memory);

}  // namespace dkv::sdk
