// One session's compression, as its engine's worker thread sees it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <variant>
#include <vector>

#include "sidecar/memory/rows.h"
#include "sidecar/metrics/metrics.h"
#include "sidecar/pipeline/job.h"

namespace dkv {

/// Rows that the worker reads, and what keeps them mapped.
struct LeasedRows {
    RowsView view;
    RegionLease lease;
};

struct LayerWork {
    std::uint32_t layer = 0;
    LeasedRows keys;
    LeasedRows values;
    LeasedRows queries;  ///< view.data nullptr: none.
    LeasedRows scores;   ///< Likewise.
    float scale = 0;
    float softcap = 0;
};

struct WorkPlanned {
    std::vector<std::uint32_t> lengths;  ///< [layers, kv_heads]
};
struct WorkCommitted {
    JobOutcome outcome;
};

/// What a worker tells the loop's thread.
struct WorkReport {
    std::uint64_t instance = 0;
    std::uint32_t generation = 0;
    std::uint64_t session = 0;
    std::uint64_t busy_ns = 0;  ///< Of this session, so far.
    std::variant<LayerProgress, WorkPlanned, WorkCommitted, Error> what;
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
    };
    SessionWork(Spec spec, WorkReports& reports, Metrics& metrics)
        : spec_(std::move(spec)), reports_(reports), metrics_(metrics) {}

    /// The calls in the queue do nothing from now on; the one under way ends after its current
    /// step.
    void cancel() noexcept { cancelled_ = true; }

    void open(Backend& backend);
    /// The last layer also packs every layer and reports the outcome.
    void layer(LayerWork work);

private:
    Result<void> take_layer(LayerWork& work);
    Result<void> check_sizes(LayerWork const& work) const;
    Result<void> pack_all();
    void drop_sources();
    void report(decltype(WorkReport::what) what);
    void fail(Error error);
    template <class Step>
    auto timed(char const* name, Step const& step);

    Spec spec_;
    WorkReports& reports_;
    Metrics& metrics_;
    std::atomic<bool> cancelled_ = false;
    std::unique_ptr<Job> job_;
    std::vector<LayerWork> kept_sources_;  ///< Layers that pack() still reads.
    std::vector<bool> packed_;             ///< [layers] reported as committed already.
    std::uint64_t busy_ns_ = 0;
};

}  // namespace dkv
