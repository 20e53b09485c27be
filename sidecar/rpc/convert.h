// Wire structs ↔ our own words. Numbers from outside are checked before they become an enum.
#pragma once

#include <memory>

#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"
#include "sidecar/config/config.h"
#include "sidecar/session/table.h"

namespace dkv::rpc {

/// Errors: InvalidArgument, naming the value.
Result<PolicyRequest> from_wire(wire::PolicyT const& policy);
Result<EngineHello> from_wire(wire::HelloT const& hello);
Result<RegionSource> from_wire(wire::RegionSourceUnion const& source);
Result<std::vector<cuda::EventHandle>> from_wire(wire::RegisterEventsT const& message);
Result<LayerRequest> from_wire(wire::LayerReadyT const& ready);

/// What an error quotes of a peer's message is cut, and made fit for a terminal.
constexpr std::size_t kErrorBytesMax = 1000;

/// The one way from an error of ours to the wire.
wire::FailureT to_wire(Error const& error);
std::unique_ptr<wire::PolicyT> to_wire(PolicyParams const& params);
std::unique_ptr<wire::LimitsT> to_wire(Limits const& limits);
std::unique_ptr<wire::SavingsT> to_wire(Savings const& savings);
std::unique_ptr<wire::GeometryT> to_wire(Geometry const& geometry);
std::unique_ptr<wire::InstanceInfoT> to_wire(InstanceFacts const& facts);
std::unique_ptr<wire::SessionInfoT> to_wire(SessionFacts const& facts);

/// All of them in one message: where it would grow too long, the oldest come without their lengths.
std::vector<std::unique_ptr<wire::SessionInfoT>> to_wire(std::vector<SessionFacts> const& facts);
std::vector<std::unique_ptr<wire::InstanceInfoT>> to_wire(std::vector<InstanceFacts> const& facts);

}  // namespace dkv::rpc
