// The device of an engine, as libdkv_cuda provides it: memory for sessions, and "the rows are
// written" without waiting for it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "protocol/base/result.h"
#include "protocol/sdk/arena.h"
#include "protocol/sdk/clock.h"
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
    /// One that has happened, so that it can be recorded again. Errors: DeadlineExceeded; Device.
    Result<std::uint32_t> next_event(Deadline deadline) const;
    /// Errors: BadState while a graph is captured; Device.
    Result<void> record(std::uint32_t event, void* stream) const;
    /// The same for the words of a timeline: at most DKV_DEVICE_WORDS.
    Result<std::uint32_t> next_word(Deadline deadline) const;
    Result<void> write_word(std::uint32_t word,
                            void* address,
                            std::uint64_t value,
                            void* stream) const;

private:
    dkv_device const functions_;
    std::string const uuid_;
};

/// Takes the memory over.
std::shared_ptr<Arena> make_device_arena(dkv_device_memory const& memory);

}  // namespace dkv::sdk
