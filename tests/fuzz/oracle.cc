#include "tests/fuzz/oracle.h"

#include <algorithm>
#include <optional>

#include <doctest/doctest.h>

#include "protocol/schema/envelope.h"

namespace dkv::fuzz {
namespace {

/// Everything is looked at after one of so many messages that change nothing.
constexpr unsigned kQuiet = 4;
constexpr std::size_t kTraceMax = 60;

/// The fewest events that lead from one state to the other; nothing: the table has no such way.
std::optional<unsigned> events_between(SessionState from, SessionState to) {
    using enum SessionEvent;
    std::vector<SessionState> reached{from};
    for (unsigned events = 0; events < 8; ++events) {
        if (std::ranges::find(reached, to) != reached.end()) return events;
        for (auto const state : std::vector(reached))
            for (auto const event : {Bind, Layer, Plan, Commit, Adopt, Fail, Close})
                if (auto const after = next(state, event)) reached.push_back(*after);
    }
    return std::nullopt;
}

struct Named {
    std::uint64_t instance = 0;
    std::uint64_t session = 0;
};

Named named_in(wire::BodyUnion const& body) {
    if (auto const* const one = body.AsHello()) return {one->instance, 0};
    if (auto const* const one = body.AsRegisterRegion()) return {one->instance, 0};
    if (auto const* const one = body.AsUnregisterRegion()) return {one->instance, 0};
    if (auto const* const one = body.AsRegisterEvents()) return {one->instance, 0};
    if (auto const* const one = body.AsOpenSession()) return {one->instance, one->session};
    if (auto const* const one = body.AsBindBuffers()) return {one->instance, one->session};
    if (auto const* const one = body.AsLayerReady()) return {one->instance, one->session};
    if (auto const* const one = body.AsAdopted()) return {one->instance, one->session};
    if (auto const* const one = body.AsCloseSession()) return {one->instance, one->session};
    if (auto const* const one = body.AsGoodbye()) return {one->instance, 0};
    if (auto const* const one = body.AsHeartbeat()) return {one->instance, 0};
    if (auto const* const one = body.AsSetPolicy()) return {one->instance, 0};
    if (auto const* const one = body.AsDetach()) return {one->instance, 0};
    return {};
}

wire::Body answer_to(wire::Body request) {
    switch (request) {
        case wire::Body::Hello: return wire::Body::Welcome;
        case wire::Body::RegisterRegion: return wire::Body::RegionRegistered;
        case wire::Body::OpenSession: return wire::Body::SessionOpened;
        case wire::Body::GetStatus: return wire::Body::StatusInfo;
        case wire::Body::ListInstances: return wire::Body::InstanceList;
        case wire::Body::ListSessions: return wire::Body::SessionList;
        case wire::Body::GetSavings: return wire::Body::SavingsInfo;
        case wire::Body::ListPolicies: return wire::Body::PolicyList;
        default: return wire::Body::Done;
    }
}

/// All of an engine's sessions may end by it.
bool ends_sessions(wire::Body type) {
    return type == wire::Body::Hello || type == wire::Body::Goodbye || type == wire::Body::Detach;
}

/// A layer is the worker's first.
bool changes_session(wire::Body type) {
    return type == wire::Body::OpenSession || type == wire::Body::BindBuffers ||
           type == wire::Body::Adopted || type == wire::Body::CloseSession || ends_sessions(type);
}

bool changes_regions(wire::Body type) {
    return type == wire::Body::RegisterRegion || type == wire::Body::UnregisterRegion;
}

bool changes_instance(wire::Body type) {
    return changes_session(type) || changes_regions(type) || type == wire::Body::SetPolicy;
}

bool is_over(SessionState state) {
    return state == SessionState::Closed || state == SessionState::Failed;
}

}  // namespace

Told Oracle::ask(Sender const& from, std::vector<std::uint8_t> const& bytes) {
    Told told;
    std::uint64_t id = 0;
    if (auto request = decode(std::as_bytes(std::span(bytes)), &id))
        told.request = std::move(request).value();
    told.answer = world_.ask(from, bytes, id);
    ++messages;
    note(from, told);
    auto const type = told.request == nullptr ? wire::Body::NONE : told.request->body.type;
    auto const events = std::move(world_.events);
    CAPTURE(std::string(wire::EnumNameBody(type)));
    check_answer(told);
    if (type == wire::Body::Hello && !told.is_refused())
        engines_of_[from.peer].insert(told.request->body.AsHello()->instance);
    if (!told.is_refused() && changes_regions(type))
        lending_.insert(named_in(told.request->body).instance);
    // What one changed in spite of that is found a little later.
    bool const changes_nothing =
        told.is_refused() || !changes_instance(type) || changes_regions(type);
    if (changes_nothing && events.empty() && ++quiet_ % kQuiet != 0) return told;
    told.weight = changes_nothing ? kQuiet : 1;
    auto after = world_.look();
    told.is_deep = is_deep(told, after);
    check_changes(told, after);
    for (auto const& letter : events)
        check_event(letter, after);
    take(std::move(after));
    share.count(told);
    return told;
}

/// Only who passed the check of the instance was heard just now.
bool Oracle::is_deep(Told const& told, Snapshot const& after) const {
    if (told.request == nullptr) return false;
    auto const type = told.request->body.type;
    if (type == wire::Body::Hello || type == wire::Body::SetPolicy || type == wire::Body::Detach)
        return false;
    auto const instance = named_in(told.request->body).instance;
    auto const idle = after.idle_ms.find(instance);
    return now_.is_alive(instance) && idle != after.idle_ms.end() && idle->second == 0;
}

void Oracle::check_answer(Told const& told) const {
    auto const& body = told.answer->body;
    if (auto const* const failure = body.AsFailure()) {
        auto const code = failure->code;
        if (code == wire::ErrorCode::None || code > wire::ErrorCode::MAX ||
            code == wire::ErrorCode::Internal || failure->message.empty() ||
            !is_clean(failure->message))
            FAIL("a failure of code ", static_cast<int>(code), ": ", failure->message);
        return;
    }
    if (told.request == nullptr || body.type != answer_to(told.request->body.type))
        FAIL("answered by ", std::string(wire::EnumNameBody(body.type)));
    if (auto const* const status = body.AsStatusInfo()) {
        REQUIRE(is_clean(status->last_error));
        REQUIRE(std::ranges::all_of(status->gone, is_clean));
    }
}

void Oracle::check_changes(Told const& told, Snapshot const& after) const {
    auto const type = told.is_refused() ? wire::Body::NONE : told.request->body.type;
    auto const named = told.is_refused() ? Named() : named_in(told.request->body);
    bool const is_policy_of_all = type == wire::Body::SetPolicy && named.instance == 0;
    for (auto const& [id, before] : now_.instances) {
        auto const found = after.instances.find(id);
        if (id == named.instance && changes_instance(type)) continue;
        if (found == after.instances.end()) {
            REQUIRE(!before.alive);  // Forgotten, for a younger one.
            continue;
        }
        auto same = found->second;
        if (lending_.contains(id))
            same.regions = before.regions, same.mapped_bytes = before.mapped_bytes;
        if (is_policy_of_all)
            same.policy = before.policy, same.policy_source = before.policy_source;
        if (!(same == before)) FAIL("engine ", id, " changed");
    }
    for (auto const& [name, before] : now_.sessions) {
        auto const* const found = after.session(name);
        bool const is_named = name.first == named.instance && changes_session(type) &&
                              (ends_sessions(type) || name.second == named.session);
        if (found == nullptr ? !is_named && !is_over(before.state)
                             : !is_named && !(*found == before))
            FAIL("session ", name.second, " of engine ", name.first, " changed");
    }
    // Adopt, Bind or Layer; or Fail and Close.
    bool const may_end = ends_sessions(type) || type == wire::Body::CloseSession;
    check_states(after, type == wire::Body::NONE ? 0 : may_end ? 2 : 1);
}

void Oracle::check_states(Snapshot const& after, unsigned events_max) const {
    for (auto const& [name, before] : now_.sessions) {
        auto const* const found = after.session(name);
        if (found == nullptr) continue;
        // What is over and has an error is told as failed, closed or not.
        auto const to = found->state;
        auto const events = events_between(before.state, to);
        bool const is_right = events && *events <= events_max &&
                              found->layers_done >= before.layers_done &&
                              (to == SessionState::Failed) == !found->error.empty();
        if (!is_right)
            FAIL("session ", name.second, " went from ", std::string(name_of(before.state)), " to ",
                 std::string(name_of(to)), ": ", found->error);
    }
    for (auto const& [name, view] : after.sessions)
        if (now_.session(name) == nullptr) REQUIRE(view.state == SessionState::Open);
}

/// It went to an engine that has that session.
void Oracle::check_event(World::Letter const& letter, Snapshot const& after) const {
    CAPTURE(letter.peer);
    auto const& body = letter.envelope->body;
    std::uint64_t session = 0;
    if (auto const* const notice = body.AsNotice()) {
        if (!is_clean(notice->text)) FAIL("a notice: ", notice->text);
        return;
    }
    if (auto const* const failed = body.AsSessionFailed()) {
        CAPTURE(failed->failure->message);
        REQUIRE(is_clean(failed->failure->message));
        session = failed->session;
    }
    if (auto const* const progress = body.AsLayerProgress()) session = progress->session;
    if (auto const* const plan = body.AsPlanned()) session = plan->session;
    if (auto const* const done = body.AsCommitted()) session = done->session;
    auto const engines = engines_of_.find(letter.peer);
    if (body.type == wire::Body::NONE) return;  // To a watcher: are you there?
    REQUIRE(engines != engines_of_.end());
    REQUIRE(std::ranges::any_of(engines->second, [&](std::uint64_t instance) {
        return now_.session({instance, session}) != nullptr ||
               after.session({instance, session}) != nullptr;
    }));
}

void Oracle::look_again() {
    auto after = world_.look();
    check_states(after, 8);
    for (auto const& letter : world_.events)
        check_event(letter, after);
    take(std::move(after));
}

void Oracle::note(Sender const& from, Told const& told) {
    auto line = from.peer + ": ";
    if (told.request != nullptr) {
        auto const named = named_in(told.request->body);
        line += wire::EnumNameBody(told.request->body.type);
        line += " " + std::to_string(named.instance) + "/" + std::to_string(named.session);
    }
    line += " -> ";
    line += wire::EnumNameBody(told.answer->body.type);
    if (told.is_refused()) line += ": " + told.answer->body.AsFailure()->message.substr(0, 200);
    trace_.push_back(std::move(line));
    if (trace_.size() > kTraceMax) trace_.pop_front();
}

std::string Oracle::trace() const {
    std::string all;
    for (auto const& line : trace_)
        all += "\n  " + line;
    return all;
}

void Oracle::take(Snapshot after) {
    now_ = std::move(after);
    lending_.clear();
    for (auto const& [name, view] : now_.sessions)
        ++seen[view.state];
}

}  // namespace dkv::fuzz
