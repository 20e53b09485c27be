// A right message of every type that a sidecar takes, for an engine in the middle of a prompt.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "protocol/schema/dkv_generated.h"
#include "tests/fuzz/engine.h"
#include "tests/fuzz/random.h"

namespace dkv::fuzz {

inline constexpr std::uint64_t kBoot = 0x600d'b007;

/// What messages are made of.
struct Scene {
    Engine& engine;
    Random& random;
    std::uint64_t& last_session;
};

wire::HelloT hello(Engine const& engine);
wire::RegisterRegionT register_region(Engine const& engine,
                                      test::EngineMemory const& memory,
                                      bool writable);
/// Compressed whatever the policy: the prompt is longer than what is kept.
wire::OpenSessionT open_session(Scene const& scene, char const* policy);
wire::BindBuffersT bind_buffers(Engine const& engine);
wire::LayerReadyT layer_ready(Engine const& engine, std::uint32_t layer);
wire::AdoptedT adopted(Engine const& engine, Random& random);
wire::CloseSessionT close_session(Engine const& engine, std::string reason);

/// The message of that type that the engine (or its controller) would send now; a body of type NONE
/// where this file does not know it.
wire::BodyUnion right_message(wire::Body type, Scene const& scene);

/// With every number in its place, those that are the default, too.
std::vector<std::uint8_t> encoded(std::uint64_t id, wire::BodyUnion const& body);

template <class Message>
wire::BodyUnion body_of(Message message) {
    wire::BodyUnion body;
    body.Set(std::move(message));
    return body;
}

}  // namespace dkv::fuzz
