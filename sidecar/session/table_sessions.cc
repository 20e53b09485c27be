// Sessions: opening, layers, what the workers report, savings.
#include <algorithm>
#include <numeric>

#include <spdlog/spdlog.h>

#include "protocol/base/printable.h"
#include "sidecar/metrics/log_scope.h"
#include "sidecar/session/table.h"

namespace dkv {
namespace {

void add_savings(Savings& savings, SessionFacts const& facts) {
    ++savings.sessions;
    savings.prompt_tokens += facts.prompt_tokens;
    savings.bytes_full += facts.bytes_full;
    savings.bytes_dropped += facts.bytes_full - facts.bytes_kept;
    savings.bytes_returned += facts.bytes_returned;
    savings.bytes_pool += facts.bytes_pool;
    savings.bytes_block_table += facts.bytes_block_table;
    savings.bytes_peak = std::max(savings.bytes_peak, facts.bytes_peak);
    savings.busy_ns += facts.busy_ns;
    savings.wait_ns += facts.wait_ns;
}

Result<RowRounding> rounding_of(OpenRequest const& request) {
    if (request.row_multiple == 0) return RowRounding{};
    if (request.row_offset < request.row_multiple)
        return RowRounding{.multiple = request.row_multiple, .offset = request.row_offset};
    return Error{ErrorCode::InvalidArgument,
                 fmt::format("row_offset is {}, not below row_multiple {}", request.row_offset,
                             request.row_multiple)};
}

double mean(std::vector<float> const& values) {
    return values.empty() ? 0.0
                          : std::accumulate(values.begin(), values.end(), 0.0) /
                                static_cast<double>(values.size());
}

std::string given_back(AdoptedBytes const& bytes) {
    auto text = fmt::format("{:.1f} MB given back", static_cast<double>(bytes.returned) * 1e-6);
    if (bytes.pool > 0)
        text += fmt::format(", {:.1f} MB of blocks to the engine's pool",
                            static_cast<double>(bytes.pool) * 1e-6);
    return text;
}

std::string kept_text(SessionFacts const& facts) {
    auto const rows = std::accumulate(facts.lengths.begin(), facts.lengths.end(), std::uint64_t{0});
    auto text = fmt::format(
        "{} tokens by {}: {} of {} rows, {:.1f} of {:.1f} MB", facts.prompt_tokens,
        facts.policy.name, rows, std::uint64_t{facts.prompt_tokens} * facts.layers * facts.kv_heads,
        static_cast<double>(facts.bytes_kept) * 1e-6, static_cast<double>(facts.bytes_full) * 1e-6);
    if (!facts.mass_kept.empty())
        text += fmt::format(", {:.1f} % of the attention", 100 * mean(facts.mass_kept));
    return text + fmt::format(", {:.1f} ms", static_cast<double>(facts.busy_ns) * 1e-6);
}

}  // namespace

Result<Session*> Table::find(Instance& instance, std::uint64_t session) {
    auto const found = instance.sessions.find(session);
    if (found == instance.sessions.end())
        return Error{ErrorCode::NotFound, "engine " + id_name(instance.hello.instance) +
                                              " has no open session " + id_name(session)};
    return &found->second;
}

std::uint32_t Table::sessions_open() const noexcept {
    std::size_t count = 0;
    for (auto const& [id, instance] : instances_)
        count += instance.sessions.size();
    return static_cast<std::uint32_t>(count);
}

std::uint32_t Table::sessions_in_work() const noexcept {
    std::uint32_t count = 0;
    for (auto const& [id, instance] : instances_)
        for (auto const& [number, session] : instance.sessions)
            count += session.is_in_work() ? 1 : 0;
    return count;
}

Result<void> Table::check_not_draining() const {
    if (!draining_) return {};
    return Error{ErrorCode::Unavailable,
                 "the sidecar is draining: it ends soon and takes no new session"};
}

Result<OpenedSession> Table::open_session(Caller const& caller,
                                          std::uint64_t instance,
                                          OpenRequest const& request) {
    auto opened = try_open(caller, instance, request);
    // An engine that has to say hello first asks again.
    if (!opened && opened.error().code != ErrorCode::UnknownInstance)
        metrics_.fail_open(name_of(opened.error().code));
    return opened;
}

Result<OpenedSession> Table::try_open(Caller const& caller,
                                      std::uint64_t instance,
                                      OpenRequest const& request) {
    Instance& engine = *DKV_TRY(find(caller, instance));
    DKV_TRY(check_not_draining());
    DKV_TRY(backends_.check(engine.hello.device));
    if (request.session == 0)
        return Error{ErrorCode::InvalidArgument, "session 0 is none: choose another number"};
    if (engine.sessions.contains(request.session) ||
        history_.has_session(instance, request.session))
        return Error{ErrorCode::AlreadyExists,
                     "session " + id_name(request.session) + " exists already"};
    if (request.prompt_tokens == 0) return Error{ErrorCode::InvalidArgument, "prompt_tokens is 0"};
    if (request.prompt_tokens > config_.limits.tokens_max)
        return Error{ErrorCode::LimitExceeded,
                     "the prompt has " + std::to_string(request.prompt_tokens) +
                         " tokens; the limit is " + std::to_string(config_.limits.tokens_max)};
    auto const rounding = DKV_TRY(rounding_of(request));
    auto chosen = DKV_TRY(choose(engine, request.wish));
    chosen.params = DKV_TRY(sized(chosen.params, engine.hello.geometry, request.prompt_tokens));
    if (request.rope_interleaved) chosen.params.profile = interleaved(chosen.params.profile);
    if (request.uniform && chosen.params.keep_mass)
        return Error{
            ErrorCode::InvalidArgument,
            "keep_mass gives each layer a number of its own, and this engine keeps as many "
            "in all: give a capacity, a ratio or bytes"};
    if (sessions_open() >= config_.limits.sessions_max)
        return Error{ErrorCode::LimitExceeded, std::to_string(config_.limits.sessions_max) +
                                                   " sessions are open, which is the limit"};

    Session& session =
        engine.sessions
            .try_emplace(
                request.session,
                Session::Spec{.instance = instance,
                              .generation = engine.hello.generation,
                              .session = request.session,
                              .job = {.geometry = engine.hello.geometry,
                                      .prompt_tokens = request.prompt_tokens,
                                      .params = chosen.params,
                                      .progressive = request.progressive,
                                      .rounding = rounding,
                                      .uniform = request.uniform},
                              .opened_at = caller.now,
                              .device = engine.hello.device,
                              .place = engine.backend.place,
                              .events = engine.events,
                              .event_timeout = std::chrono::milliseconds(config_.event_timeout_ms)})
            .first->second;
    ++engine.sessions_total;
    tell(NoticeKind::SessionOpened, session,
         fmt::format("{} tokens, {}{}", request.prompt_tokens, in_words(chosen.params),
                     session.needs().compress ? "" : ": kept whole"),
         caller.now);
    update_gauges();
    return OpenedSession{chosen.params, session.needs()};
}

Result<void> Table::bind_buffers(Caller const& caller,
                                 std::uint64_t instance,
                                 std::uint64_t session,
                                 std::uint64_t staging,
                                 std::uint64_t destination) {
    Instance& engine = *DKV_TRY(find(caller, instance));
    Session& found = *DKV_TRY(find(engine, session));
    return found.bind(staging, destination, engine.regions, *engine.strand, reports_, metrics_);
}

Result<void> Table::layer_ready(Caller const& caller,
                                std::uint64_t instance,
                                std::uint64_t session,
                                LayerRequest const& request) {
    Instance& engine = *DKV_TRY(find(caller, instance));
    Session& found = *DKV_TRY(find(engine, session));
    return found.layer_ready(request, engine.regions, *engine.strand,
                             config_.limits.jobs_queued_max);
}

Result<void> Table::adopted(Caller const& caller,
                            std::uint64_t instance,
                            std::uint64_t session,
                            AdoptedBytes const& bytes) {
    Instance& engine = *DKV_TRY(find(caller, instance));
    Session& found = *DKV_TRY(find(engine, session));
    if (!DKV_TRY(found.adopt(bytes))) return {};
    auto const facts = found.facts(caller.now);
    add_savings(engine.savings, facts);
    add_savings(savings_, facts);
    metrics_.session(found.policy(), "adopted");
    metrics_.bytes_dropped(facts.bytes_full - facts.bytes_kept);
    metrics_.bytes_returned(bytes.returned);
    metrics_.bytes_pool(bytes.pool);
    metrics_.bytes_peak(savings_.bytes_peak);
    tell(NoticeKind::SessionAdopted, found, given_back(bytes), caller.now);
    update_gauges();
    return {};
}

Result<void> Table::close_session(Caller const& caller,
                                  std::uint64_t instance,
                                  std::uint64_t session,
                                  std::string const& reason) {
    Instance& engine = *DKV_TRY(find(caller, instance));
    // Closed already, or never opened: an engine closes what it asked for and was refused, too.
    if (!engine.sessions.contains(session)) return {};
    Session& found = *DKV_TRY(find(engine, session));
    bool const is_whole = !found.needs().compress;
    if (!reason.empty()) {
        fail_session(engine, found,
                     {ErrorCode::Unavailable, "given up by the engine: " +
                                                  printable(reason, config_.limits.text_bytes_max)},
                     caller.now);
    } else if (is_whole) {
        auto facts = found.facts(caller.now);
        facts.bytes_kept = facts.bytes_full;
        add_savings(engine.savings, facts);
        add_savings(savings_, facts);
        metrics_.session(found.policy(), "whole");
    }
    tell(NoticeKind::SessionClosed, found, found.error().empty() ? "closed" : found.error(),
         caller.now);
    end_session(engine, session, caller.now);
    update_gauges();
    return {};
}

void Table::end_session(Instance& instance, std::uint64_t session, Millis now) {
    auto const found = instance.sessions.find(session);
    found->second.close(*instance.strand);
    auto facts = found->second.facts(now);
    facts.spans = found->second.spans();
    if (!facts.error.empty()) facts.state = SessionState::Failed;
    history_.add_session(std::move(facts), now);
    instance.sessions.erase(found);
}

void Table::fail_session(Instance& instance, Session& session, Error const& why, Millis now) {
    Error const error{why.code, printable(why.message, kErrorTextBytesMax)};
    // A session that is committed or failed already is not failed once more.
    if (!session.fail(error.message)) return;
    ++instance.sessions_failed;
    ++instance.savings.sessions_failed;
    ++savings_.sessions_failed;
    metrics_.session(session.policy(), "failed");
    metrics_.fail_open(name_of(error.code));
    count_error(instance.hello.instance, error);
    auto const facts = session.facts(now);
    LogScope const scope(instance.hello.instance, facts.session);
    log_.say(spdlog::level::warn, fmt::format("not compressed: {}", name_of(error.code)), now,
             fmt::format("not compressed: {}", error.message));
    listener_.session_failed(instance.peer, facts.session, error);
    tell(NoticeKind::SessionFailed, session, error.message, now);
}

void Table::finish_work(Millis now) {
    for (auto const id : deaths_.dead())
        drop_instance(id, "process ended", now);
    for (auto& report : reports_.take())
        apply(report, now);
}

void Table::apply(WorkReport& report, Millis now) {
    if (auto const* const lost = std::get_if<DeviceLost>(&report.what))
        return apply(*lost, report.instance, now);
    look_after_device(report);
    if (auto* const opened = std::get_if<RegionOpened>(&report.what)) return apply(*opened, report);
    if (auto const* const done = std::get_if<RequestDone>(&report.what))
        return listener_.done(done->asker, done->result);
    auto const engine = instances_.find(report.instance);
    if (engine == instances_.end()) return;
    Instance& instance = engine->second;
    auto const found = instance.sessions.find(report.session);
    if (found == instance.sessions.end() || found->second.generation() != report.generation) return;
    Session& session = found->second;
    if (auto const* const error = std::get_if<Error>(&report.what))
        return fail_session(instance, session, *error, now);
    if (!session.apply(report)) return;

    if (auto const* const progress = std::get_if<LayerProgress>(&report.what)) {
        listener_.layer_progress(instance.peer, report.session, *progress);
        tell(NoticeKind::Layer, session, fmt::format("layer {}", progress->layer), now);
    } else if (auto const* const plan = std::get_if<WorkPlanned>(&report.what)) {
        listener_.planned(instance.peer, report.session, plan->lengths);
    } else {
        tell_commit(instance, session, report, now);
    }
}

void Table::tell_commit(Instance& instance,
                        Session& session,
                        WorkReport const& report,
                        Millis now) {
    metrics_.session(session.policy(), "committed");
    auto const& outcome = std::get<WorkCommitted>(report.what).outcome;
    if (!outcome.mass_kept.empty()) metrics_.mass_kept(mean(outcome.mass_kept));
    listener_.committed(instance.peer, report.session, outcome, report.spent);
    auto const text = kept_text(session.facts(now));
    LogScope const scope(report.instance, report.session);
    spdlog::info("{}", text);
    tell(NoticeKind::SessionCommitted, session, text, now);
}

void Table::tell(NoticeKind kind, Session const& session, std::string text, Millis now) {
    auto facts = session.facts(now);
    listener_.notice(
        {kind, facts.instance, facts.session, std::move(text), std::make_optional(facts)});
}

Result<std::vector<SessionFacts>> Table::sessions(SessionQuery query, Millis now) const {
    auto const [instance, number, spans] = query;
    if (instance != 0 && !instances_.contains(instance) &&
        history_.find_instance(instance) == nullptr)
        return Error{ErrorCode::NotFound, "no engine " + id_name(instance) + " is known"};
    std::vector<SessionFacts> all;
    for (auto const& [id, engine] : instances_)
        for (auto const& [own, session] : engine.sessions) {
            if ((instance != 0 && instance != id) || (number != 0 && number != own)) continue;
            all.push_back(session.facts(now));
            if (spans) all.back().spans = session.spans();
        }
    for (auto& past : history_.sessions(instance, now)) {
        if (number != 0 && number != past.session) continue;
        if (!spans) past.spans.clear();
        all.push_back(std::move(past));
    }
    return all;
}

}  // namespace dkv
