// What libdkv_cuda calls: dkv.h's arenas, engines and sessions with a device behind them.
#include <utility>

#include "protocol/base/endpoint.h"
#include "protocol/sdk/abi.h"
#include "protocol/sdk/device.h"

using dkv::Result;
using dkv::sdk::Device;
using dkv::sdk::guarded;
using dkv::sdk::null_pointer;

dkv_status dkv_device_arena_create(dkv_device_memory const* memory, dkv_arena** arena) {
    return guarded([&]() -> Result<void> {
        auto made = dkv::sdk::make_device_arena(*memory);
        if (arena == nullptr) return null_pointer("arena");
        *arena = new dkv_arena{std::move(made)};
        return {};
    });
}

dkv_status dkv_device_engine_open(dkv_engine_options const* options,
                                  dkv_device const* device,
                                  dkv_engine** engine) {
    return guarded([&]() -> Result<void> {
        return dkv::sdk::open_engine(options, std::make_shared<Device const>(*device), engine);
    });
}

dkv_status dkv_device_layer_ready(dkv_session* session,
                                  dkv_layer_ready const* ready,
                                  void* stream) {
    return guarded([&]() -> Result<void> {
        return dkv::sdk::report_layer(session, ready, dkv::sdk::Stream{stream});
    });
}

void dkv_device_remember(char const* message) {
    dkv::sdk::remember(message);
}
