#include "tests/fuzz/messages.h"

#include <array>

#include "protocol/schema/envelope.h"
#include "sidecar/policy/policy.h"

namespace dkv::fuzz {
namespace {

constexpr std::uint32_t kCapacity = 24;
constexpr std::uint32_t kWindow = 8;

std::unique_ptr<wire::PolicyT> policy_of(std::string name) {
    auto policy = std::make_unique<wire::PolicyT>();
    policy->name = std::move(name);
    policy->capacity = kCapacity;
    policy->window = kWindow;
    return policy;
}

std::unique_ptr<wire::RowsT> rows_of(std::uint64_t region,
                                     std::uint64_t offset,
                                     std::uint32_t heads,
                                     std::uint32_t tokens) {
    auto rows = std::make_unique<wire::RowsT>();
    rows->region = region;
    rows->offset = offset;
    rows->dtype = wire::Dtype::F32;
    rows->heads = heads;
    rows->tokens = tokens;
    rows->head_dim = Memory::kDim;
    rows->head_stride = std::uint64_t{Memory::kTokens} * Memory::kDim;
    rows->token_stride = Memory::kDim;
    rows->dim_stride = 1;
    return rows;
}

/// Any policy, with any of its numbers given.
std::unique_ptr<wire::PolicyT> any_policy(Random& random) {
    auto policy = policy_of(std::string(random.one_of(policies()).name));
    if (random.chance(20)) policy->kernel = static_cast<std::uint32_t>(random.below(4) * 2 + 1);
    if (random.chance(20)) policy->pool = static_cast<wire::Pool>(random.below(2));
    if (random.chance(20)) policy->reduce = static_cast<wire::GroupReduce>(random.below(3));
    if (random.chance(20)) policy->granularity = static_cast<wire::Granularity>(random.below(3));
    if (random.chance(20)) policy->score_norm = static_cast<wire::ScoreNorm>(random.below(3));
    if (random.chance(20))
        policy->update_interval = 1 + static_cast<std::uint32_t>(random.below(3));
    if (random.chance(20)) policy->sinks = static_cast<std::uint32_t>(random.below(kCapacity));
    if (random.chance(20)) policy->r_max = 1 + static_cast<double>(random.below(100)) / 50;
    if (random.chance(20)) policy->beta = 1 + static_cast<double>(random.below(20));
    switch (random.below(8)) {
        case 0: policy->capacity.reset(), policy->ratio = 0.5; break;
        case 1: policy->capacity.reset(), policy->keep_mass = 0.9; break;
        case 2: policy->capacity.reset(), policy->bytes = 8192; break;
        default: break;
    }
    if (policy->name == "dynamickv" && random.chance(40)) {
        policy->profile = std::make_unique<wire::ProfileT>();
        policy->profile->name = "measured";
        policy->profile->layers = Memory::kLayers;
        policy->profile->heads = Memory::kKvHeads;
        policy->profile->weights.assign(std::size_t{Memory::kLayers} * Memory::kKvHeads, 1.0);
        policy->profile->weights[1] = 3;
    }
    return policy;
}

template <class Message>
Message of(Engine const& engine) {
    Message message;
    message.instance = engine.id;
    return message;
}

wire::RegisterRegionT any_region(Scene const& scene) {
    auto const& memory = *scene.engine.memory;
    test::EngineMemory const* const lent[] = {&memory.source, &memory.staging, &memory.destination};
    auto const which = scene.random.below(3);
    auto message = register_region(scene.engine, *lent[which], which != 0);
    switch (scene.random.below(10)) {
        case 0: {
            wire::PosixShmT shm;
            shm.name = "/dkv-fuzz-there-is-none";
            message.source.Set(std::move(shm));
            break;
        }
        case 1: {
            wire::CudaIpcT ipc;
            ipc.handle.assign(64, 7);
            message.source.Set(std::move(ipc));
            break;
        }
        case 2: message.source.Set(wire::CudaVmmFdT{}); break;
        case 3: {
            wire::CudaPoolT pool;
            pool.pointer.assign(64, 7);
            message.source.Set(std::move(pool));
            break;
        }
        case 4: message.source.Set(wire::InprocT{}); break;
        default: break;
    }
    return message;
}

wire::BodyUnion engine_message(wire::Body type, Scene const& scene) {
    auto const& engine = scene.engine;
    auto& random = scene.random;
    switch (type) {
        case wire::Body::Hello: return body_of(hello(engine));
        case wire::Body::RegisterRegion: return body_of(any_region(scene));
        case wire::Body::UnregisterRegion: {
            auto message = of<wire::UnregisterRegionT>(engine);
            message.region = engine.brittle;
            return body_of(message);
        }
        case wire::Body::RegisterEvents: {
            auto message = of<wire::RegisterEventsT>(engine);
            message.handles.assign(128, 1);
            return body_of(std::move(message));
        }
        case wire::Body::OpenSession: {
            auto message = open_session(scene, "auto");
            if (random.chance(80)) message.policy = any_policy(random);
            return body_of(std::move(message));
        }
        case wire::Body::BindBuffers: return body_of(bind_buffers(engine));
        case wire::Body::LayerReady:
            return body_of(layer_ready(engine, engine.run.layers_sent % Memory::kLayers));
        case wire::Body::Adopted: return body_of(adopted(engine, random));
        case wire::Body::CloseSession:
            return body_of(
                close_session(engine, random.chance(50) ? "the request was cancelled" : ""));
        case wire::Body::Goodbye: return body_of(of<wire::GoodbyeT>(engine));
        case wire::Body::Heartbeat: return body_of(of<wire::HeartbeatT>(engine));
        default: return {};
    }
}

}  // namespace

wire::HelloT hello(Engine const& engine) {
    auto message = of<wire::HelloT>(engine);
    message.generation = engine.generation;
    message.pid = static_cast<std::uint32_t>(engine.process->credentials().pid);
    message.engine = "fuzzed 1.0";
    message.model = "a small one";
    message.device = "cpu";
    message.geometry = std::make_unique<wire::GeometryT>();
    message.geometry->layers = Memory::kLayers;
    message.geometry->q_heads = Memory::kQHeads;
    message.geometry->kv_heads = Memory::kKvHeads;
    message.geometry->head_dim = Memory::kDim;
    message.geometry->dtype = wire::Dtype::F32;
    return message;
}

wire::RegisterRegionT register_region(Engine const& engine,
                                      test::EngineMemory const& memory,
                                      bool writable) {
    auto message = of<wire::RegisterRegionT>(engine);
    wire::MemfdT memfd;
    memfd.pid = static_cast<std::uint32_t>(engine.process->credentials().pid);
    memfd.fd = memory.fd();
    memfd.inode = memory.inode();
    message.source.Set(memfd);
    message.bytes = memory.bytes().size();
    message.writable = writable;
    return message;
}

wire::OpenSessionT open_session(Scene const& scene, char const* policy) {
    auto message = of<wire::OpenSessionT>(scene.engine);
    message.session = ++scene.last_session;
    message.prompt_tokens =
        Memory::kTokens - static_cast<std::uint32_t>(scene.random.below(Memory::kTokens / 3));
    message.progressive = scene.random.chance(70);
    message.policy = policy_of(policy);
    return message;
}

wire::BindBuffersT bind_buffers(Engine const& engine) {
    auto message = of<wire::BindBuffersT>(engine);
    message.session = engine.run.session;
    message.staging_region = engine.run.staged ? engine.staging : 0;
    message.destination_region = engine.destination;
    return message;
}

wire::LayerReadyT layer_ready(Engine const& engine, std::uint32_t layer) {
    auto const& run = engine.run;
    auto message = of<wire::LayerReadyT>(engine);
    message.session = run.session;
    message.layer = layer;
    message.keys = rows_of(engine.source, Memory::keys_offset(layer), Memory::kKvHeads, run.tokens);
    message.values =
        rows_of(engine.source, Memory::values_offset(layer), Memory::kKvHeads, run.tokens);
    if (run.window > 0 && run.window <= run.tokens) {
        auto const first = std::uint64_t{run.tokens - run.window} * Memory::kRowBytes;
        message.queries = rows_of(engine.source, Memory::queries_offset(layer) + first,
                                  Memory::kQHeads, run.window);
    }
    if (layer == 1) message.sink_logits.assign(Memory::kQHeads, 0.5F);
    if (layer != Memory::kBlockedLayer) return message;
    for (auto* const rows : {message.keys.get(), message.values.get()}) {
        rows->tokens = Memory::kBlockTokens;
        rows->head_stride = std::uint64_t{Memory::kBlockTokens} * Memory::kDim;
    }
    message.blocks = std::make_unique<wire::BlocksT>();
    message.blocks->stride = Memory::kKvHeads * message.keys->head_stride;
    for (std::uint32_t first = 0; first < run.tokens; first += Memory::kBlockTokens)
        message.blocks->ids.push_back(Memory::block_of(first));
    return message;
}

wire::AdoptedT adopted(Engine const& engine, Random& random) {
    auto message = of<wire::AdoptedT>(engine);
    message.session = engine.run.session;
    message.bytes_returned = random.below(1U << 20U);
    message.bytes_peak = random.below(1U << 20U);
    message.bytes_final = random.below(1U << 20U);
    message.bytes_pool = random.below(1U << 20U);
    return message;
}

wire::CloseSessionT close_session(Engine const& engine, std::string reason) {
    auto message = of<wire::CloseSessionT>(engine);
    message.session = engine.run.session;
    message.reason = std::move(reason);
    return message;
}

wire::BodyUnion right_message(wire::Body type, Scene const& scene) {
    auto& random = scene.random;
    switch (type) {
        case wire::Body::GetStatus: return body_of(wire::GetStatusT());
        case wire::Body::ListInstances: return body_of(wire::ListInstancesT());
        case wire::Body::ListSessions: {
            auto list = of<wire::ListSessionsT>(scene.engine);
            list.session = random.below(2) == 0 ? 0 : scene.engine.run.session;
            list.spans = random.below(2) == 0;
            return body_of(std::move(list));
        }
        case wire::Body::GetSavings: return body_of(wire::GetSavingsT());
        case wire::Body::ListPolicies: return body_of(wire::ListPoliciesT());
        case wire::Body::SetPolicy: {
            wire::SetPolicyT message;
            if (random.chance(70)) message.instance = scene.engine.id;
            if (random.chance(80)) message.policy = any_policy(random);
            return body_of(std::move(message));
        }
        case wire::Body::Subscribe: {
            wire::SubscribeT message;
            message.on = random.chance(50);
            return body_of(message);
        }
        case wire::Body::Detach: return body_of(of<wire::DetachT>(scene.engine));
        case wire::Body::Stop: {
            wire::StopT message;
            message.boot_id = kBoot ^ (std::uint64_t{1} << random.below(64));
            return body_of(message);
        }
        default: return engine_message(type, scene);
    }
}

std::vector<std::uint8_t> encoded(std::uint64_t id, wire::BodyUnion const& body) {
    flatbuffers::FlatBufferBuilder builder;
    builder.ForceDefaults(true);
    auto const packed = body.Pack(builder);
    wire::FinishEnvelopeBuffer(
        builder, wire::CreateEnvelope(builder, kProtocolVersion, id, 0, body.type, packed));
    return {builder.GetBufferPointer(), builder.GetBufferPointer() + builder.GetSize()};
}

}  // namespace dkv::fuzz
