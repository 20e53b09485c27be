#include "sidecar/session/work.h"

#include <utility>

#include "protocol/base/without_throwing.h"

namespace dkv {
namespace {

void drop_layer(LayerWork const& work) noexcept {
    for (LeasedRows const& rows : work.leased)
        drop(rows.view, *rows.lease);
}

std::span<std::byte> bytes_in(RegionLease const& lease) noexcept {
    return lease == nullptr ? std::span<std::byte>() : lease->bytes();
}

}  // namespace

void WorkReports::post(WorkReport report) {
    {
        std::lock_guard const lock(mutex_);
        reports_.push_back(std::move(report));
    }
    wake_();
}

std::vector<WorkReport> WorkReports::take() {
    std::lock_guard const lock(mutex_);
    return std::exchange(reports_, {});
}

template <class Step>
auto SessionWork::timed(Step const& step) {
    auto const begin = steady_ns();
    auto result = step();
    spent_.busy += steady_ns() - begin;
    return result;
}

void SessionWork::record(Span span) {
    metrics_.stage(span.stage, span.duration_ns);
    spans_.push_back(span);
}

void SessionWork::record_job() {
    for (auto const& span : job_->take_spans())
        record(span);
}

void SessionWork::open(Backend& backend) {
    backend_ = &backend;
}

void SessionWork::layer(LayerWork work) {
    if (cancelled_ || backend_ == nullptr) return;
    backend_->cancel_by(&cancelled_);
    auto const done = without_throwing([&] { return take_layer(work); });
    backend_->cancel_by(nullptr);
    if (!done) fail(done.error());
}

/// Not before there are rows: a prompt's length alone is a claim.
Result<void> SessionWork::find_memory() {
    if (job_ != nullptr) return {};
    auto const begin = steady_ns();
    job_ = DKV_TRY(timed([&] {
        return Job::open(*backend_, spec_.job, bytes_in(spec_.staging),
                         bytes_in(spec_.destination));
    }));
    record(span_since(begin, Stage::Open, -1));
    packed_.assign(spec_.job.geometry.layers, false);
    return {};
}

/// Kernels on a device look blocks up there; what looks at `leased` does so here.
Result<void> SessionWork::upload_block_ids(LayerWork& work) {
    if (work.block_ids == nullptr || spec_.place != Place::Device) return {};
    auto ids = DKV_TRY(BackendArray<std::int32_t>::create(*backend_, work.block_ids->size()));
    DKV_TRY(backend_->upload(std::as_bytes(std::span(*work.block_ids)),
                             std::as_writable_bytes(ids.elements())));
    work.device_ids = std::make_shared<BackendArray<std::int32_t>>(std::move(ids));
    work.source.keys.blocks = work.source.values.blocks = work.device_ids->elements().data();
    return {};
}

Result<void> SessionWork::check_written(LayerWork const& work) const {
    for (LeasedRows const& rows : work.leased)
        DKV_TRY(dkv::check_written(rows.name, rows.view, *rows.lease));
    return {};
}

Result<void> SessionWork::check_whole(LayerWork const& work) const {
    for (LeasedRows const& rows : work.leased)
        DKV_TRY(rows.lease->check_whole());
    return check_buffers();
}

Result<void> SessionWork::check_buffers() const {
    for (auto const* const lease : {&spec_.staging, &spec_.destination})
        if (*lease != nullptr) DKV_TRY((*lease)->check_whole());
    return {};
}

Result<void> SessionWork::await(LayerWork const& work) {
    if (work.signal.event < 0 && work.signal.timeline == nullptr) return {};
    auto const begin = steady_ns();
    auto const waited = await(work.signal);
    auto const span = span_since(begin, Stage::Wait, static_cast<std::int32_t>(work.layer));
    spent_.waiting += span.duration_ns;
    record(span);
    if (waited) return {};
    return Error{waited.error().code,
                 "layer " + std::to_string(work.layer) + ": " + waited.error().message};
}

Result<void> SessionWork::await(LayerSignal const& signal) {
    auto const is_cancelled = [](void* context) {
        return static_cast<std::atomic<bool>*>(context)->load();
    };
    if (signal.timeline != nullptr)
        return cuda::wait_timeline(signal.timeline_word, signal.timeline_value, spec_.event_timeout,
                                   is_cancelled, &cancelled_);
    auto const& events = spec_.events->opened;
    if (events == nullptr)
        return Error{ErrorCode::BadState, "event " + std::to_string(signal.event) +
                                              " is named, and this engine has registered none"};
    return events->wait(static_cast<std::uint32_t>(signal.event), spec_.event_timeout, is_cancelled,
                        &cancelled_);
}

Result<void> SessionWork::take_layer(LayerWork& work) {
    // On the host, before anything is queued: what waits on the device for a peer that died never
    // ends.
    DKV_TRY(await(work));
    DKV_TRY(check_whole(work));
    DKV_TRY(check_written(work));
    DKV_TRY(find_memory());
    DKV_TRY(upload_block_ids(work));
    work.source.sink_logits = work.sink_logits;
    auto progress = DKV_TRY(timed([&] { return job_->layer_ready(work.layer, work.source); }));
    record_job();
    DKV_TRY(check_whole(work));  // Cut meanwhile, rows read as zeros.
    // The engine's share of these pages must be all of them before it is told to drop the rows.
    bool const is_kept = !progress.empty() && progress.front().stage == LayerStage::Scored;
    if (is_kept)
        kept_sources_.push_back(std::move(work));
    else
        drop_layer(work);
    for (auto& one : progress) {
        if (one.stage == LayerStage::Committed) packed_[one.layer] = true;
        report(std::move(one));
    }
    if (job_->layers_done() == spec_.job.geometry.layers) return pack_all();
    return {};
}

Result<void> SessionWork::pack_all() {
    report(WorkPlanned{job_->lengths()});
    for (std::uint32_t layer = 0; layer < spec_.job.geometry.layers; ++layer) {
        if (cancelled_) return {};
        LayerWork const* const source =
            layer < kept_sources_.size() ? &kept_sources_[layer] : nullptr;
        if (source != nullptr) DKV_TRY(check_whole(*source));
        auto progress = DKV_TRY(timed([&] { return job_->pack(layer); }));
        record_job();
        // Where a page was missing meanwhile, rows were read as zeros, or are lost.
        if (source != nullptr) DKV_TRY(check_whole(*source));
        DKV_TRY(check_buffers());
        if (!packed_[layer]) report(std::move(progress));
    }
    auto const begin = steady_ns();
    auto outcome = DKV_TRY(job_->outcome());
    drop_sources();
    record(span_since(begin, Stage::Commit, -1));
    report(WorkCommitted{std::move(outcome)});
    return {};
}

SessionWork::~SessionWork() {
    settle();
}

/// Nothing that is queued on a device uses the engine's memory after this.
void SessionWork::settle() noexcept {
    if (backend_ == nullptr || spec_.place != Place::Device) return;
    static_cast<void>(backend_->synchronize());
}

void SessionWork::drop_sources() {
    settle();
    for (auto const& source : kept_sources_)
        drop_layer(source);
    kept_sources_.clear();
    job_.reset();
    if (spec_.staging != nullptr) spec_.staging->drop_all();
    if (spec_.destination != nullptr) spec_.destination->drop_all();
    spec_.staging.reset();
    spec_.destination.reset();
}

void SessionWork::report(decltype(WorkReport::what) what) {
    if (cancelled_) return;
    reports_.post({.instance = spec_.instance,
                   .generation = spec_.generation,
                   .session = spec_.session,
                   .spent = spent_,
                   .spans = std::exchange(spans_, {}),
                   .what = std::move(what)});
}

void SessionWork::fail(Error error) {
    drop_sources();
    report(std::move(error));
    cancelled_ = true;
}

}  // namespace dkv
