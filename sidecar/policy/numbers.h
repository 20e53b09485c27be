// The numbers of a policy under the names they have everywhere: in a request, in what comes of it,
// and on the wire. What copies one into another says each name here, once.
#pragma once

namespace dkv {

/// visit(a.window, b.window), visit(a.kernel, b.kernel) …: of PolicyRequest, PolicyParams and
/// wire::PolicyT, in any order.
template <class Visit, class... Policies>
void each_number(Visit const& visit, Policies&... of) {
    visit(of.window...);
    visit(of.kernel...);
    visit(of.pool...);
    visit(of.reduce...);
    visit(of.r_max...);
    visit(of.r_min...);
    visit(of.update_interval...);
    visit(of.sinks...);
    visit(of.beta...);
    visit(of.granularity...);
    visit(of.score_norm...);
    visit(of.query_norm...);
}

/// The same of the ways to say a size, of which a request has one at most.
template <class Visit, class... Policies>
void each_size(Visit const& visit, Policies&... of) {
    visit(of.capacity...);
    visit(of.ratio...);
    visit(of.bytes...);
    visit(of.keep_mass...);
}

}  // namespace dkv
