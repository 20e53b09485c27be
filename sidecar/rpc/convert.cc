#include "sidecar/rpc/convert.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <optional>

#include "protocol/base/bf16.h"
#include "protocol/base/printable.h"

namespace dkv::rpc {
namespace {

/// Of lengths and masses in one list; the limit of a message less room for the rest.
constexpr std::size_t kListDetailBytesMax = 2U << 20U;

Error wrong(std::string message) {
    return {ErrorCode::InvalidArgument, std::move(message)};
}

template <class Enum>
unsigned number(Enum value) {
    return static_cast<unsigned>(value);
}

Result<Dtype> dtype(char const* what, wire::Dtype value) {
    if (auto const known = dtype_from_wire(static_cast<std::uint8_t>(value))) return *known;
    return wrong(std::string(what) + " has dtype " + std::to_string(number(value)) +
                 ", which is none of f32 (1), f16 (2), bf16 (3)");
}

Result<RowsAt> rows_at(char const* name, wire::RowsT const& rows) {
    return RowsAt{.region = rows.region,
                  .offset = rows.offset,
                  .dtype = DKV_TRY(dtype(name, rows.dtype)),
                  .heads = rows.heads,
                  .tokens = rows.tokens,
                  .head_dim = rows.head_dim,
                  .head_stride = rows.head_stride,
                  .token_stride = rows.token_stride,
                  .dim_stride = rows.dim_stride};
}

Result<BlocksAt> blocks_at(wire::BlocksT const& blocks) {
    if (std::ranges::any_of(blocks.ids, [](std::uint32_t id) { return id > INT32_MAX; }))
        return wrong("a block's id is above " + std::to_string(INT32_MAX));
    return BlocksAt{.ids = std::make_shared<std::vector<std::int32_t> const>(blocks.ids.begin(),
                                                                             blocks.ids.end()),
                    .stride = blocks.stride};
}

Result<std::array<std::byte, 64>> sixty_four(char const* what,
                                             std::vector<std::uint8_t> const& bytes) {
    std::array<std::byte, 64> all{};
    if (bytes.size() != all.size())
        return wrong(std::string(what) + " has " + std::to_string(bytes.size()) + " bytes, not 64");
    std::memcpy(all.data(), bytes.data(), all.size());
    return all;
}

/// Errors: InvalidArgument for a word that a later version may know.
template <class Word, class T>
Result<void> take_word(char const* name, flatbuffers::Optional<T> const& from, Word& to) {
    if (number(*from) >= kWordsOf<Word>.size()) {
        std::string known;
        for (std::size_t word = 0; word < kWordsOf<Word>.size(); ++word)
            known += (word == 0 ? "" : ", ") + std::string(kWordsOf<Word>[word]) + " (" +
                     std::to_string(word) + ")";
        return wrong(std::string(name) + " " + std::to_string(number(*from)) + " is none of " +
                     known);
    }
    to = static_cast<Word>(*from);
    return {};
}

std::shared_ptr<Surrogate const> surrogate_of(wire::ProfileT const& profile) {
    if (profile.surrogate == nullptr) return nullptr;
    auto surrogate = std::make_shared<Surrogate>();
    surrogate->kv_heads = profile.surrogate->kv_heads;
    surrogate->head_dim = profile.surrogate->head_dim;
    std::ranges::transform(profile.surrogate->weights, std::back_inserter(surrogate->weights),
                           f32_from_bf16);
    surrogate->frequencies = profile.surrogate->frequencies;
    surrogate->interleaved = profile.surrogate->interleaved;
    return surrogate;
}

std::size_t detail_bytes(SessionFacts const& facts) noexcept {
    return facts.lengths.size() * sizeof(std::uint32_t) + facts.mass_kept.size() * sizeof(float);
}

}  // namespace

Result<PolicyRequest> from_wire(wire::PolicyT const& policy) {
    PolicyRequest request;
    request.name = printable(policy.name, 64);
    Result<void> result;
    each_value(
        [&result]<class T>(char const* name, auto const& from, std::optional<T>& to) {
            if (!from || !result) return;
            if constexpr (std::is_enum_v<T>)
                result = take_word(name, from, to.emplace());
            else
                to = *from;
        },
        policy, request);
    DKV_TRY(std::move(result));
    request.preset = printable(policy.preset, 64);
    if (policy.profile)
        request.profile =
            std::make_shared<Profile>(Profile{.name = printable(policy.profile->name, 64),
                                              .layers = policy.profile->layers,
                                              .heads = policy.profile->heads,
                                              .weights = policy.profile->weights,
                                              .alpha = policy.profile->alpha,
                                              .floor = policy.profile->floor,
                                              .kernel = policy.profile->kernel,
                                              .surrogate = surrogate_of(*policy.profile)});
    return request;
}

Result<EngineHello> from_wire(wire::HelloT const& hello) {
    auto const& geometry = *hello.geometry;
    auto const element = DKV_TRY(dtype("the geometry", geometry.dtype));
    return EngineHello{.instance = hello.instance,
                       .generation = hello.generation,
                       .group = hello.group,
                       .pid = hello.pid,
                       .engine = hello.engine,
                       .model = hello.model,
                       .device = hello.device,
                       .geometry = {.layers = geometry.layers,
                                    .q_heads = geometry.q_heads,
                                    .kv_heads = geometry.kv_heads,
                                    .head_dim = geometry.head_dim,
                                    .dtype = element}};
}

Result<RegionSource> from_wire(wire::RegionSourceUnion const& source) {
    if (auto const* const shm = source.AsPosixShm()) return RegionSource(PosixShmSource{shm->name});
    if (auto const* const memfd = source.AsMemfd())
        return RegionSource(MemfdSource{.pid = memfd->pid, .fd = memfd->fd, .inode = memfd->inode});
    if (auto const* const ipc = source.AsCudaIpc())
        return RegionSource(CudaIpcSource{.handle = DKV_TRY(sixty_four("handle", ipc->handle)),
                                          .allocation_bytes = ipc->allocation_bytes,
                                          .offset = ipc->offset});
    if (auto const* const vmm = source.AsCudaVmmFd())
        return RegionSource(CudaVmmSource{.ticket = vmm->ticket,
                                          .allocation_bytes = vmm->allocation_bytes,
                                          .offset = vmm->offset});
    if (auto const* const pool = source.AsCudaPool())
        return RegionSource(CudaPoolSource{.ticket = pool->ticket,
                                           .pointer = DKV_TRY(sixty_four("pointer", pool->pointer)),
                                           .allocation_bytes = pool->allocation_bytes,
                                           .offset = pool->offset});
    if (source.type == wire::RegionSource::Inproc)
        return Error{ErrorCode::Unsupported,
                     "region kind Inproc (6) was removed: lend shared memory, or CUDA memory by "
                     "handle or descriptor"};
    return Error{ErrorCode::Unsupported,
                 "region kind " + std::to_string(number(source.type)) +
                     " is none of PosixShm (1), Memfd (2), CudaIpc (3), CudaVmmFd (4), CudaPool "
                     "(5)"};
}

Result<std::vector<cuda::EventHandle>> from_wire(wire::RegisterEventsT const& message) {
    constexpr std::size_t kBytes = sizeof(cuda::EventHandle);
    if (message.handles.size() % kBytes != 0)
        return wrong("event handles have " + std::to_string(message.handles.size()) +
                     " bytes, which is no multiple of 64");
    std::vector<cuda::EventHandle> handles(message.handles.size() / kBytes);
    if (!handles.empty())
        std::memcpy(handles.data(), message.handles.data(), message.handles.size());
    return handles;
}

Result<LayerRequest> from_wire(wire::LayerReadyT const& ready) {
    LayerRequest request{.layer = ready.layer,
                         .keys = DKV_TRY(rows_at("keys", *ready.keys)),
                         .values = DKV_TRY(rows_at("values", *ready.values)),
                         .queries = std::nullopt,
                         .scores = std::nullopt,
                         .scale = ready.scale,
                         .softcap = ready.softcap,
                         .sink_logits = ready.sink_logits,
                         .blocks = std::nullopt,
                         .event = ready.event,
                         .timeline_region = ready.timeline_region,
                         .timeline_offset = ready.timeline_offset,
                         .timeline_value = ready.timeline_value};
    if (request.event < -1)
        return wrong("event " + std::to_string(request.event) + " is neither an index nor -1");
    if (ready.queries) request.queries = DKV_TRY(rows_at("queries", *ready.queries));
    if (ready.scores) request.scores = DKV_TRY(rows_at("scores", *ready.scores));
    if (ready.blocks) request.blocks = DKV_TRY(blocks_at(*ready.blocks));
    return request;
}

wire::FailureT to_wire(Error const& error) {
    wire::FailureT failure;
    failure.code = static_cast<wire::ErrorCode>(error.code);
    failure.retryable = is_retryable(error.code);
    failure.message = printable(error.message, kErrorTextBytesMax);
    return failure;
}

std::unique_ptr<wire::PolicyT> to_wire(PolicyParams const& params) {
    auto policy = std::make_unique<wire::PolicyT>();
    policy->name = params.name;
    // A size that was given in another way leaves the capacity out.
    if (!params.ratio && !params.bytes && !params.keep_mass) policy->capacity = params.capacity;
    each_number([]<class T>(char const*, auto const& value,
                            flatbuffers::Optional<T>& out) { out = static_cast<T>(value); },
                params, *policy);
    auto const copy = [](auto const& source, auto& target) {
        if (source) target = *source;
    };
    copy(params.ratio, policy->ratio);
    copy(params.bytes, policy->bytes);
    copy(params.keep_mass, policy->keep_mass);
    if (params.profile) {  // Without its weights: the sender has them.
        policy->profile = std::make_unique<wire::ProfileT>();
        policy->profile->name = params.profile->name;
        policy->profile->layers = params.profile->layers;
        policy->profile->heads = params.profile->heads;
        policy->profile->alpha = params.profile->alpha;
        policy->profile->floor = params.profile->floor;
        policy->profile->kernel = params.profile->kernel;
    }
    return policy;
}

std::unique_ptr<wire::LimitsT> to_wire(Limits const& limits) {
    auto out = std::make_unique<wire::LimitsT>();
    out->sessions_max = limits.sessions_max;
    out->regions_max = limits.regions_max;
    out->message_bytes_max = limits.message_bytes_max;
    out->tokens_max = limits.tokens_max;
    return out;
}

std::unique_ptr<wire::SavingsT> to_wire(Savings const& savings) {
    auto out = std::make_unique<wire::SavingsT>();
    out->sessions = savings.sessions;
    out->sessions_failed = savings.sessions_failed;
    out->prompt_tokens = savings.prompt_tokens;
    out->bytes_full = savings.bytes_full;
    out->bytes_dropped = savings.bytes_dropped;
    out->bytes_returned = savings.bytes_returned;
    out->bytes_pool = savings.bytes_pool;
    out->bytes_block_table = savings.bytes_block_table;
    out->bytes_peak = savings.bytes_peak;
    out->busy_ns = savings.busy_ns;
    out->wait_ns = savings.wait_ns;
    return out;
}

std::unique_ptr<wire::GeometryT> to_wire(Geometry const& geometry) {
    auto out = std::make_unique<wire::GeometryT>();
    out->layers = geometry.layers;
    out->q_heads = geometry.q_heads;
    out->kv_heads = geometry.kv_heads;
    out->head_dim = geometry.head_dim;
    out->dtype = static_cast<wire::Dtype>(geometry.dtype);
    return out;
}

std::unique_ptr<wire::InstanceInfoT> to_wire(InstanceFacts const& facts) {
    auto out = std::make_unique<wire::InstanceInfoT>();
    out->instance = facts.hello.instance;
    out->generation = facts.hello.generation;
    out->group = facts.hello.group;
    out->pid = facts.hello.pid;
    out->engine = facts.hello.engine;
    out->model = facts.hello.model;
    out->device = facts.hello.device;
    out->geometry = to_wire(facts.hello.geometry);
    out->alive = facts.alive;
    out->attached_ms = facts.attached_ms;
    out->idle_ms = facts.idle_ms;
    out->sessions_open = facts.sessions_open;
    out->sessions_total = facts.sessions_total;
    out->sessions_failed = facts.sessions_failed;
    out->mapped_bytes = facts.mapped_bytes;
    out->regions = facts.regions;
    out->policy = to_wire(facts.policy.params);
    out->policy_source = name_of(facts.policy.source);
    out->last_error = facts.last_error;
    out->savings = to_wire(facts.savings);
    out->backend = facts.backend;
    return out;
}

std::unique_ptr<wire::SessionInfoT> to_wire(SessionFacts const& facts) {
    auto out = std::make_unique<wire::SessionInfoT>();
    out->instance = facts.instance;
    out->session = facts.session;
    out->state = static_cast<wire::SessionState>(facts.state);
    out->policy = to_wire(facts.policy);
    out->prompt_tokens = facts.prompt_tokens;
    out->layers_done = facts.layers_done;
    out->layers = facts.layers;
    out->kv_heads = facts.kv_heads;
    out->lengths = facts.lengths;
    out->mass_kept = facts.mass_kept;
    out->bytes_full = facts.bytes_full;
    out->bytes_kept = facts.bytes_kept;
    out->bytes_block_table = facts.bytes_block_table;
    out->bytes_returned = facts.bytes_returned;
    out->bytes_peak = facts.bytes_peak;
    out->bytes_final = facts.bytes_final;
    out->bytes_pool = facts.bytes_pool;
    for (auto const& span : facts.spans)
        out->spans.emplace_back(span.begin_ns, span.duration_ns, span.layer,
                                static_cast<wire::Stage>(span.stage));
    out->busy_ns = facts.busy_ns;
    out->wait_ns = facts.wait_ns;
    out->age_ms = facts.age_ms;
    out->error = facts.error;
    return out;
}

std::vector<std::unique_ptr<wire::SessionInfoT>> to_wire(std::vector<SessionFacts> const& facts) {
    // The table gives open sessions first, then closed ones from the oldest on; what is oldest
    // matters least, so the room is given out by age.
    std::vector<SessionFacts const*> by_age;
    by_age.reserve(facts.size());
    for (auto const& one : facts)
        by_age.push_back(&one);
    std::stable_sort(by_age.begin(), by_age.end(),
                     [](auto const* a, auto const* b) { return a->age_ms < b->age_ms; });
    std::size_t room = kListDetailBytesMax;
    std::vector<SessionFacts const*> bare;
    for (auto const* const one : by_age) {
        if (detail_bytes(*one) <= room)
            room -= detail_bytes(*one);
        else
            bare.push_back(one);
    }
    std::vector<std::unique_ptr<wire::SessionInfoT>> out;
    out.reserve(facts.size());
    for (auto const& one : facts) {
        out.push_back(to_wire(one));
        if (std::find(bare.begin(), bare.end(), &one) == bare.end()) continue;
        out.back()->lengths.clear();
        out.back()->mass_kept.clear();
    }
    return out;
}

std::vector<std::unique_ptr<wire::InstanceInfoT>> to_wire(std::vector<InstanceFacts> const& facts) {
    std::vector<std::unique_ptr<wire::InstanceInfoT>> out;
    out.reserve(facts.size());
    for (auto const& one : facts)
        out.push_back(to_wire(one));
    return out;
}

}  // namespace dkv::rpc
