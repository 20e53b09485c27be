// One session's compression, as its engine's worker thread sees it.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <variant>
#include <vector>

#include "protocol/device/events.h"
#include "sidecar/memory/rows.h"
#include "sidecar/metrics/metrics.h"
#include "sidecar/pipeline/backend_array.h"
#include "sidecar/pipeline/job.h"
#include "sidecar/session/facts.h"

namespace dkv {

/// Rows that the worker reads, and what keeps them mapped.
struct LeasedRows {
    char const* name;
    RowsView view;
    RegionLease lease;
};

/// What happens when an engine has written a layer.
struct LayerSignal {
    std::int32_t event = -1;                   ///< Of its pool; -1: none.
    RegionLease timeline;                      ///< nullptr: none.
    std::byte const* timeline_word = nullptr;  ///< In there.
    std::uint64_t timeline_value = 0;
};

/// Of an engine, for its worker's thread alone.
struct EngineEvents {
    std::shared_ptr<cuda::OpenedEvents const> opened;
};

struct LayerWork {
    std::uint32_t layer = 0;
    LayerSignal signal;
    LayerSource source;
    std::vector<LeasedRows> leased;  ///< What the source's views lie in.
    std::vector<float> sink_logits;  ///< [q_heads], the source's; empty: none.
    std::shared_ptr<std::vector<std::int32_t> const>
        block_ids;                                           ///< The views'; nullptr: not paged.
    std::shared_ptr<BackendArray<std::int32_t>> device_ids;  ///< The same on their device.
};

struct WorkPlanned {
    std::vector<std::uint32_t> lengths;  ///< [layers, kv_heads]
};
struct WorkCommitted {
    JobOutcome outcome;
};

/// Not of a session: an answer that had to wait.
struct RegionOpened {
    Asker asker;
    Result<RegionLease> region;
};
struct RequestDone {
    Asker asker;
    Result<void> result;
};

/// Of everybody on that device.
struct DeviceLost {
    std::string device;
    Error why;
};

/// What a worker tells the loop's thread.
struct WorkReport {
    std::uint64_t instance = 0;
    std::uint32_t generation = 0;
    std::uint64_t session = 0;
    SpentTime spent;
    std::vector<Span> spans = {};  ///< Since the session's last report.
    std::variant<LayerProgress,
                 WorkPlanned,
                 WorkCommitted,
                 Error,
                 RegionOpened,
                 RequestDone,
                 DeviceLost>
        what;
};

/// Where workers leave their reports for the loop's thread.
class WorkReports {
public:
    /// `wake` makes the loop call take(); any thread may call it.
    explicit WorkReports(std::function<void()> wake) : wake_(std::move(wake)) {}
    void post(WorkReport report);
    std::vector<WorkReport> take();

private:
    std::function<void()> wake_;
    std::mutex mutex_;
    std::vector<WorkReport> reports_;
};

/// Made by the loop's thread, run and destroyed by the worker's; cancel() is for both.
class SessionWork {
public:
    struct Spec {
        std::uint64_t instance = 0;
        std::uint32_t generation = 0;
        std::uint64_t session = 0;
        JobSpec job;
        RegionLease staging;  ///< nullptr: nothing is staged.
        RegionLease destination;
        Place place = Place::Host;
        std::shared_ptr<EngineEvents const> events;
        std::chrono::milliseconds event_timeout{0};
    };
    SessionWork(Spec spec, WorkReports& reports, Metrics& metrics)
        : spec_(std::move(spec)), reports_(reports), metrics_(metrics) {}
    ~SessionWork();
    SessionWork(SessionWork const&) = delete;
    SessionWork& operator=(SessionWork const&) = delete;

    /// The calls in the queue do nothing from now on; the one under way ends after the tiles that
    /// it is at (on a device: after its current step).
    void cancel() noexcept { cancelled_ = true; }

    void open(Backend& backend);
    /// The first layer also finds the memory for all of them; the last also packs every layer and
    /// reports the outcome.
    void layer(LayerWork work);

private:
    Result<void> find_memory();
    Result<void> take_layer(LayerWork& work);
    Result<void> upload_block_ids(LayerWork& work);
    Result<void> await(LayerWork const& work);
    Result<void> await(LayerSignal const& signal);
    Result<void> check_written(LayerWork const& work) const;
    Result<void> check_whole(LayerWork const& work) const;
    Result<void> check_buffers() const;
    Result<void> pack_all();
    void drop_sources();
    void settle() noexcept;
    void report(decltype(WorkReport::what) what);
    void fail(Error error);
    template <class Step>
    auto timed(Step const& step);
    void record(Span span);
    void record_job();

    Spec spec_;
    WorkReports& reports_;
    Metrics& metrics_;
    std::atomic<bool> cancelled_ = false;
    Backend* backend_ = nullptr;
    std::unique_ptr<Job> job_;
    std::vector<LayerWork> kept_sources_;  ///< Layers that pack() still reads.
    std::vector<bool> packed_;             ///< [layers] reported as committed already.
    SpentTime spent_;
    std::vector<Span> spans_;  ///< That no report has taken yet.
};

}  // namespace dkv
