// What a controller can ask a sidecar: one method per request of the wire's controller part. Plain
// structs of the generated object API come back.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::sdk {

/// The keys for a tcp:// endpoint. Empty: the files where `dkv keys` and the operator put them, in
/// keys::folder().
struct KeyFiles {
    std::string secret = {};   ///< dkv.key_secret
    std::string sidecar = {};  ///< sidecars/HOST.key
};

/// A connection for requests, one after another, from one thread. Every method waits at most
/// `timeout`.
///
/// Errors of every method: over tcp://, what keys::read_pair() and read_public_key() say, and
/// PermissionDenied when the sidecar does not take the key or has another one; Unavailable when
/// no sidecar listens at the endpoint; DeadlineExceeded when one does and does not answer;
/// VersionMismatch; otherwise what the sidecar replied.
class Controller {
public:
    /// Errors: InvalidArgument for an endpoint that is none. Connecting itself never fails.
    static Result<std::unique_ptr<Controller>> connect(std::string endpoint,
                                                       std::chrono::milliseconds timeout,
                                                       KeyFiles const& keys = {});
    virtual ~Controller() = default;

    virtual Result<wire::StatusInfoT> status() = 0;
    virtual Result<wire::InstanceListT> instances() = 0;
    /// instance 0: every instance.
    virtual Result<wire::SessionListT> sessions(std::uint64_t instance) = 0;
    /// That session with its spans, open or remembered, of each engine that chose this id.
    virtual Result<wire::SessionListT> spans(std::uint64_t session) = 0;
    virtual Result<wire::SavingsInfoT> savings() = 0;
    virtual Result<wire::PolicyListT> policies() = 0;
    /// instance 0: all. nullptr: back to the default.
    virtual Result<void> set_policy(std::uint64_t instance, wire::PolicyT const* policy) = 0;
    /// The sidecar that answered before, or answers now: not one that takes its place meanwhile.
    virtual Result<void> stop() = 0;
    /// Errors: NotFound.
    virtual Result<void> detach(std::uint64_t instance) = 0;
    /// From now on next_notice() has something to give.
    virtual Result<void> subscribe() = 0;
    /// The next event, or nothing after `wait`. Errors: Unavailable when the sidecar went away.
    virtual Result<std::optional<wire::NoticeT>> next_notice(std::chrono::milliseconds wait) = 0;
};

}  // namespace dkv::sdk
