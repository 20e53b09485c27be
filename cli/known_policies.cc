#include "cli/known_policies.h"

#include "cli/wire_policy.h"
#include "sidecar/policy/policy.h"

namespace dkv::cli {
namespace {

Result<wire::PolicyListT> asked(Context const& context) {
    auto const controller = DKV_TRY(context.connect());
    return controller->policies();
}

Result<wire::PolicyListT> built_in() {
    wire::PolicyListT list;
    for (PolicyEntry const& entry : policies()) {
        PolicyRequest request;
        request.name = entry.name;
        auto info = std::make_unique<wire::PolicyInfoT>();
        info->name = entry.name;
        info->summary = entry.summary;
        info->policy = std::make_unique<wire::PolicyT>(cli::to_wire(DKV_TRY(resolve(request))));
        list.policies.push_back(std::move(info));
    }
    return list;
}

}  // namespace

Result<wire::PolicyListT> known_policies(Context const& context) {
    auto answer = asked(context);
    if (answer || exit_code_of(answer.error().code) != kExitNoSidecar) return answer;
    auto list = DKV_TRY(built_in());
    list.default_source = answer.error().message;
    return list;
}

}  // namespace dkv::cli
