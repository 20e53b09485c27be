#include "cli/wire_policy.h"

#include <algorithm>
#include <iterator>

#include "protocol/base/bf16.h"

namespace dkv::cli {
namespace {

/// Fields left out keep their defaults.
constexpr auto kTake = []<class To>(char const*, auto const& from, To& to) {
    if (!from) return;
    if constexpr (requires { typename To::value_type; })
        to = static_cast<typename To::value_type>(*from);
    else
        to = static_cast<To>(*from);
};

std::unique_ptr<wire::SurrogateT> to_wire(Surrogate const& surrogate) {
    auto made = std::make_unique<wire::SurrogateT>();
    made->kv_heads = surrogate.kv_heads;
    made->head_dim = surrogate.head_dim;
    std::ranges::transform(surrogate.weights, std::back_inserter(made->weights), bf16_from_f32);
    made->frequencies = surrogate.frequencies;
    made->interleaved = surrogate.interleaved;
    return made;
}

}  // namespace

wire::PolicyT to_wire(PolicyRequest const& request) {
    wire::PolicyT policy;
    policy.name = request.name;
    each_value(kTake, request, policy);
    policy.preset = request.preset;
    if (request.profile) {
        policy.profile = std::make_unique<wire::ProfileT>();
        policy.profile->name = request.profile->name;
        policy.profile->layers = request.profile->layers;
        policy.profile->heads = request.profile->heads;
        policy.profile->weights = request.profile->weights;
        policy.profile->alpha = request.profile->alpha;
        policy.profile->floor = request.profile->floor;
        policy.profile->kernel = request.profile->kernel;
        if (request.profile->surrogate)
            policy.profile->surrogate = to_wire(*request.profile->surrogate);
    }
    return policy;
}

wire::PolicyT to_wire(PolicyParams const& params) {
    PolicyRequest request{.name = params.name, .capacity = params.capacity};
    each_number([](char const*, auto const& value, auto& out) { out = value; }, params, request);
    return to_wire(request);
}

}  // namespace dkv::cli
