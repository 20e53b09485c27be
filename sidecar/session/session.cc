#include "sidecar/session/session.h"

#include <algorithm>

#include "sidecar/pipeline/layer_source.h"

namespace dkv {
namespace {

/// Of a model with very many layers the first ones are remembered.
constexpr std::size_t kSpansMax = 4096;

Error wrong(std::string message) {
    return {ErrorCode::InvalidArgument, std::move(message)};
}

}  // namespace

Session::Session(Spec spec) : spec_(std::move(spec)), needs_(needs_of(spec_.job)) {
    auto const& geometry = spec_.job.geometry;
    lengths_.assign(std::size_t{geometry.layers} * geometry.kv_heads, 0);
}

SessionFacts Session::facts(Millis now) const {
    auto const& geometry = spec_.job.geometry;
    return {.instance = spec_.instance,
            .session = spec_.session,
            .state = state_,
            .policy = spec_.job.params,
            .prompt_tokens = spec_.job.prompt_tokens,
            .layers_done = layers_done_,
            .layers = geometry.layers,
            .kv_heads = geometry.kv_heads,
            .lengths = lengths_,
            .mass_kept = outcome_.mass_kept,
            .bytes_full = geometry.cache_bytes(spec_.job.prompt_tokens),
            .bytes_kept = outcome_.bytes_kept,
            .bytes_block_table = outcome_.bytes_block_table,
            .bytes_returned = adopted_.returned,
            .bytes_peak = adopted_.peak,
            .bytes_final = adopted_.final_,
            .bytes_pool = adopted_.pool,
            .busy_ns = spent_.busy,
            .wait_ns = spent_.waiting,
            .age_ms = now - spec_.opened_at,
            .error = error_};
}

bool Session::step(SessionEvent event) noexcept {
    auto const after = next(state_, event);
    if (after) state_ = *after;
    return after.has_value();
}

Error Session::bad_state(char const* what) const {
    auto message =
        "session " + id_name(spec_.session) + " is " + std::string(name_of(state_)) + ": " + what;
    if (!error_.empty()) message += " (" + error_ + ")";
    return {ErrorCode::BadState, std::move(message)};
}

Result<RegionLease> Session::writable(char const* name,
                                      std::uint64_t region,
                                      std::uint64_t bytes,
                                      RegionTable const& regions) const {
    if (bytes == 0 && region == 0) return RegionLease();
    auto lease = DKV_TRY(regions.find(region));
    DKV_TRY(check_place((std::string(name) + " region").c_str(), *lease));
    if (!lease->writable())
        return wrong(std::string(name) + " region " + std::to_string(region) + " is read-only");
    if (lease->bytes().size() < bytes)
        return wrong(std::string(name) + " region " + std::to_string(region) + " has " +
                     std::to_string(lease->bytes().size()) + " bytes, not " +
                     std::to_string(bytes));
    return lease;
}

Result<void> Session::bind(std::uint64_t staging,
                           std::uint64_t destination,
                           RegionTable const& regions,
                           Strand& strand,
                           WorkReports& reports,
                           Metrics& metrics) {
    if (!needs_.compress) return bad_state("its prompt is kept whole and needs no buffers");
    if (work_ != nullptr && staging == staging_ && destination == destination_) return {};
    if (!next(state_, SessionEvent::Bind)) return bad_state("it has its buffers");
    auto staging_lease = DKV_TRY(writable("staging", staging, needs_.staging_bytes, regions));
    auto destination_lease =
        DKV_TRY(writable("destination", destination, needs_.destination_bytes, regions));
    if (staging_lease != nullptr && staging_lease == destination_lease)
        return wrong("staging and destination are the same region " + std::to_string(staging));

    step(SessionEvent::Bind);
    staging_ = staging;
    destination_ = destination;
    work_ =
        std::make_shared<SessionWork>(SessionWork::Spec{.instance = spec_.instance,
                                                        .generation = spec_.generation,
                                                        .session = spec_.session,
                                                        .job = spec_.job,
                                                        .staging = std::move(staging_lease),
                                                        .destination = std::move(destination_lease),
                                                        .place = spec_.place,
                                                        .events = spec_.events,
                                                        .event_timeout = spec_.event_timeout},
                                      reports, metrics);
    strand.post([work = work_](Backend& backend) { work->open(backend); });
    return {};
}

Result<void> Session::layer_ready(LayerRequest const& request,
                                  RegionTable const& regions,
                                  Strand& strand,
                                  std::size_t queued_max) {
    if (work_ != nullptr && request.layer < layers_taken_) return {};
    if (!next(state_, SessionEvent::Layer))
        return bad_state(state_ == SessionState::Open ? "it has no buffers for layers yet"
                                                      : "it takes no more layers");
    DKV_TRY(check_turn(request.layer));
    if (strand.queued() >= queued_max)
        return Error{ErrorCode::LimitExceeded, "this engine has " + std::to_string(queued_max) +
                                                   " layers waiting, which is the limit"};
    auto layer = DKV_TRY(check_layer(request, regions));

    step(SessionEvent::Layer);
    ++layers_taken_;
    strand.post([work = work_, taken = std::move(layer)](Backend&) { work->layer(taken); });
    return {};
}

Result<void> Session::check_turn(std::uint32_t layer) const {
    if (layer >= spec_.job.geometry.layers)
        return wrong("layer " + std::to_string(layer) + " is past the model's last, " +
                     std::to_string(spec_.job.geometry.layers - 1));
    if (layer == layers_taken_) return {};
    auto const before = layers_taken_ == 0
                            ? std::string("comes first")
                            : "comes after layer " + std::to_string(layers_taken_ - 1);
    return Error{ErrorCode::BadState, "layer " + std::to_string(layer) + " " + before + "; layer " +
                                          std::to_string(layers_taken_) + " is next"};
}

/// One backend works on all of them: a row elsewhere would be a fault in the middle of a kernel.
Result<void> Session::check_place(char const* name, MappedRegion const& region) const {
    if (region.place() == spec_.place) return {};
    bool const is_host = region.place() == Place::Host;
    return wrong(std::string(name) + (is_host ? ": host memory" : ": device memory") +
                 ", and this engine's cache is on " +
                 (spec_.place == Place::Host ? "the cpu" : spec_.device));
}

Result<LayerSignal> Session::signal_of(LayerRequest const& request,
                                       RegionTable const& regions) const {
    LayerSignal signal;
    if (request.event < 0 && request.timeline_value == 0) return signal;
    if (spec_.place == Place::Host)
        return wrong("an engine on the cpu has neither events nor timelines");
    if (request.event >= 0 && request.timeline_value != 0)
        return wrong("a layer has event " + std::to_string(request.event) +
                     " or a timeline, not both");
    signal.event = request.event;
    if (request.timeline_value == 0) return signal;
    signal.timeline = DKV_TRY(regions.find(request.timeline_region));
    DKV_TRY(check_place("timeline", *signal.timeline));
    auto const bytes = signal.timeline->bytes();
    constexpr std::uint64_t kWord = sizeof(std::uint64_t);
    if (request.timeline_offset % kWord != 0 || bytes.size() < kWord ||
        request.timeline_offset > bytes.size() - kWord)
        return wrong("timeline at byte " + std::to_string(request.timeline_offset) +
                     " is no 64-bit word of a region of " + std::to_string(bytes.size()) +
                     " bytes");
    signal.timeline_word = bytes.data() + request.timeline_offset;
    signal.timeline_value = request.timeline_value;
    return signal;
}

Result<RowsView> Session::lease(char const* name,
                                RowsAt const& at,
                                BlocksAt const* blocks,
                                RegionTable const& regions,
                                LayerWork& work) const {
    auto region = DKV_TRY(regions.find(at.region));
    DKV_TRY(check_place(name, *region));
    auto view = DKV_TRY(rows(name, at, *region));
    if (blocks != nullptr)
        view = DKV_TRY(paged(name, view, *blocks, spec_.job.prompt_tokens, *region));
    work.leased.push_back({name, view, std::move(region)});
    return view;
}

Result<LayerWork> Session::check_layer(LayerRequest const& request,
                                       RegionTable const& regions) const {
    LayerWork work;
    work.layer = request.layer;
    work.signal = DKV_TRY(signal_of(request, regions));
    LayerSource& source = work.source;
    source.scale = request.scale;
    source.softcap = request.softcap;
    BlocksAt const* const blocks = request.blocks ? &*request.blocks : nullptr;
    if (blocks != nullptr) work.block_ids = blocks->ids;
    source.keys = DKV_TRY(lease("keys", request.keys, blocks, regions, work));
    source.values = DKV_TRY(lease("values", request.values, blocks, regions, work));
    if (request.queries)
        source.queries = DKV_TRY(lease("queries", *request.queries, nullptr, regions, work));
    if (request.scores)
        source.scores = DKV_TRY(lease("scores", *request.scores, nullptr, regions, work));
    work.sink_logits = request.sink_logits;
    source.sink_logits = work.sink_logits;
    DKV_TRY(check(source, spec_.job));
    return work;
}

bool Session::apply(WorkReport const& report) {
    auto const room = kSpansMax - std::min(kSpansMax, spans_.size());
    auto const taken = std::min(room, report.spans.size());
    spans_.insert(spans_.end(), report.spans.begin(),
                  report.spans.begin() + static_cast<std::ptrdiff_t>(taken));
    spent_.busy = std::max(spent_.busy, report.spent.busy);
    spent_.waiting = std::max(spent_.waiting, report.spent.waiting);
    auto const heads = spec_.job.geometry.kv_heads;
    if (auto const* const progress = std::get_if<LayerProgress>(&report.what)) {
        if (state_ != SessionState::Prefill && state_ != SessionState::Planned) return false;
        DKV_ASSERT(progress->lengths.size() == heads);
        std::copy(
            progress->lengths.begin(), progress->lengths.end(),
            lengths_.begin() + static_cast<std::ptrdiff_t>(std::size_t{progress->layer} * heads));
        layers_done_ = std::max(layers_done_, progress->layer + 1);
        return true;
    }
    if (auto const* const plan = std::get_if<WorkPlanned>(&report.what)) {
        if (!step(SessionEvent::Plan)) return false;
        lengths_ = plan->lengths;
        return true;
    }
    if (auto const* const done = std::get_if<WorkCommitted>(&report.what)) {
        if (!step(SessionEvent::Commit)) return false;
        outcome_ = done->outcome;
        lengths_ = done->outcome.lengths;
        return true;
    }
    return fail(std::get<Error>(report.what).message);
}

Result<bool> Session::adopt(AdoptedBytes const& bytes) {
    if (state_ == SessionState::Adopted) return false;
    if (!step(SessionEvent::Adopt)) return bad_state("there is nothing to adopt");
    adopted_ = bytes;
    return true;
}

bool Session::fail(std::string error) {
    if (!step(SessionEvent::Fail)) return false;
    error_ = std::move(error);
    if (work_ != nullptr) work_->cancel();
    return true;
}

void Session::close(Strand& strand) {
    step(SessionEvent::Close);
    if (work_ == nullptr) return;
    work_->cancel();
    strand.post([work = std::move(work_)](Backend&) {});
}

}  // namespace dkv
