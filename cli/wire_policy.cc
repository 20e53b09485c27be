#include "cli/wire_policy.h"

namespace dkv::cli {
namespace {

template <class T>
flatbuffers::Optional<T> to_wire(std::optional<T> const& value) {
    return value ? flatbuffers::Optional<T>(*value) : flatbuffers::Optional<T>();
}

/// What the wire does not say keeps its default.
template <class From, class To>
void take(From const& from, To& to) {
    if (from) to = static_cast<To>(*from);
}

}  // namespace

wire::PolicyT to_wire(PolicyRequest const& request) {
    wire::PolicyT policy;
    policy.name = request.name;
    policy.capacity = to_wire(request.capacity);
    policy.window = to_wire(request.window);
    policy.kernel = to_wire(request.kernel);
    if (request.pool) policy.pool = static_cast<wire::Pool>(*request.pool);
    if (request.reduce) policy.reduce = static_cast<wire::GroupReduce>(*request.reduce);
    policy.r_max = to_wire(request.r_max);
    policy.r_min = to_wire(request.r_min);
    policy.update_interval = to_wire(request.update_interval);
    policy.sinks = to_wire(request.sinks);
    policy.beta = to_wire(request.beta);
    if (request.granularity)
        policy.granularity = static_cast<wire::Granularity>(*request.granularity);
    if (request.score_norm) policy.score_norm = static_cast<wire::ScoreNorm>(*request.score_norm);
    policy.query_norm = to_wire(request.query_norm);
    policy.ratio = to_wire(request.ratio);
    policy.bytes = to_wire(request.bytes);
    policy.keep_mass = to_wire(request.keep_mass);
    policy.preset = request.preset;
    policy.profile_alpha = to_wire(request.profile_alpha);
    policy.profile_floor = to_wire(request.profile_floor);
    if (request.profile) {
        policy.profile = std::make_unique<wire::ProfileT>();
        policy.profile->name = request.profile->name;
        policy.profile->layers = request.profile->layers;
        policy.profile->heads = request.profile->heads;
        policy.profile->weights = request.profile->weights;
        policy.profile->alpha = request.profile->alpha;
        policy.profile->floor = request.profile->floor;
        policy.profile->kernel = request.profile->kernel;
    }
    return policy;
}

PolicyParams params_of(wire::PolicyT const& policy) {
    PolicyParams params;
    params.name = policy.name;
    take(policy.capacity, params.capacity);
    take(policy.window, params.window);
    take(policy.kernel, params.kernel);
    take(policy.pool, params.pool);
    take(policy.reduce, params.reduce);
    take(policy.r_max, params.r_max);
    take(policy.r_min, params.r_min);
    take(policy.update_interval, params.update_interval);
    take(policy.sinks, params.sinks);
    take(policy.beta, params.beta);
    take(policy.granularity, params.granularity);
    take(policy.score_norm, params.score_norm);
    take(policy.query_norm, params.query_norm);
    if (policy.keep_mass) params.keep_mass = *policy.keep_mass;
    if (policy.profile) {
        Profile profile;
        profile.name = policy.profile->name;
        profile.alpha = policy.profile->alpha;
        profile.floor = policy.profile->floor;
        params.profile = std::make_shared<Profile>(std::move(profile));
    }
    return params;
}

}  // namespace dkv::cli
