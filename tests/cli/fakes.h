// A sidecar and a machine made of facts, and the program run against them.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "cli/app.h"
#include "protocol/sdk/controller.h"
#include "tests/support/contains.h"

namespace dkv::test {

wire::PolicyT some_policy(std::string name, std::uint32_t capacity);
/// Two layers of two KV heads of a 3584-token prompt.
std::unique_ptr<wire::SessionInfoT> some_session(std::uint64_t id);
std::unique_ptr<wire::InstanceInfoT> some_instance(std::uint64_t id);
wire::SavingsT some_savings();
cli::doctor::Readings good_machine();

/// What every controller of one test answers with; `fail` goes before everything.
struct FakeSidecar {
    std::optional<Error> fail;
    wire::StatusInfoT status;
    std::function<wire::InstanceListT()> instances = [] { return wire::InstanceListT(); };
    std::function<wire::SessionListT()> sessions = [] { return wire::SessionListT(); };
    wire::SavingsInfoT savings;
    wire::PolicyListT policies;
    std::optional<Error> refuse_policy;
    /// An event, or the reason why there is none any more; then nothing.
    std::deque<Result<wire::NoticeT>> notices;

    struct SetPolicy {
        std::uint64_t instance;
        std::optional<wire::PolicyT> policy;
    };
    std::vector<SetPolicy> set_policies;
    int connects = 0;
    int stops = 0;
    std::vector<std::uint64_t> detached;
    std::uint64_t sessions_asked_of = 0;
    std::uint64_t spans_asked_of = 0;

    static FakeSidecar running();
};

struct Ran {
    int exit_code = 0;
    std::string out;
    std::string err;
};

/// The program with these arguments, no terminal, 80 columns of UTF-8. `tweak` changes the world.
Ran run_dkv(std::vector<std::string> arguments,
            FakeSidecar& sidecar,
            std::function<void(cli::Environment&)> const& tweak = {});

}  // namespace dkv::test
