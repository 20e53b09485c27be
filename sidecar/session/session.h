// One prompt of one engine, as the loop's thread sees it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sidecar/memory/region_table.h"
#include "sidecar/session/facts.h"
#include "sidecar/session/strand.h"
#include "sidecar/session/work.h"

namespace dkv {

/// A layer as the engine describes it.
struct LayerRequest {
    std::uint32_t layer = 0;
    RowsAt keys;
    RowsAt values;
    std::optional<RowsAt> queries;
    std::optional<RowsAt> scores;
    float scale = 0;
    float softcap = 0;
    std::vector<float> sink_logits;  ///< [q_heads]; empty: none.
    std::optional<BlocksAt> blocks;  ///< Of keys and values, which then are those of block 0.
    std::int32_t event = -1;         ///< Of the engine's pool; -1: none.
    std::uint64_t timeline_region = 0;
    std::uint64_t timeline_offset = 0;
    std::uint64_t timeline_value = 0;  ///< 0: none.
};

/// What the engine saw the system take back. Bytes.
struct AdoptedBytes {
    std::uint64_t returned = 0;
    std::uint64_t peak = 0;
    std::uint64_t final_ = 0;
    std::uint64_t pool = 0;  ///< Of blocks that went back to the engine's own pool instead.
};

class Session {
public:
    struct Spec {
        std::uint64_t instance = 0;
        std::uint32_t generation = 0;
        std::uint64_t session = 0;
        JobSpec job;
        Millis opened_at = 0;
        std::string device = "cpu";  ///< Where the engine's cache is, for messages.
        Place place = Place::Host;
        std::shared_ptr<EngineEvents const> events = {};
        std::chrono::milliseconds event_timeout{0};
    };
    explicit Session(Spec spec);

    std::uint32_t generation() const noexcept { return spec_.generation; }
    SessionState state() const noexcept { return state_; }
    /// Its cache is being made, or waits for the engine to adopt it.
    bool is_in_work() const noexcept {
        return needs_.compress && state_ <= SessionState::Committed;
    }
    std::string const& policy() const noexcept { return spec_.job.params.name; }
    JobNeeds const& needs() const noexcept { return needs_; }
    std::string const& error() const noexcept { return error_; }
    SessionFacts facts(Millis now) const;
    std::vector<Span> const& spans() const noexcept { return spans_; }

    /// Gives the worker the buffers. The same buffers again: nothing happens.
    /// Errors: BadState; NotFound for a region; InvalidArgument when one is read-only or too small.
    Result<void> bind(std::uint64_t staging,
                      std::uint64_t destination,
                      RegionTable const& regions,
                      Strand& strand,
                      WorkReports& reports,
                      Metrics& metrics);

    /// Checks the layer and gives it to the worker. A layer that came already: nothing happens.
    /// Errors: BadState out of order; InvalidArgument, naming the rows; NotFound for a region;
    /// LimitExceeded when `queued_max` layers wait for the worker.
    Result<void> layer_ready(LayerRequest const& request,
                             RegionTable const& regions,
                             Strand& strand,
                             std::size_t queued_max);

    /// Takes what the worker says. False: it comes too late and says nothing any more.
    bool apply(WorkReport const& report);

    /// True: adopted now; false: it was before.
    /// Errors: BadState unless the destination is complete.
    Result<bool> adopt(AdoptedBytes const& bytes);

    /// The session will not be compressed. Nothing happens where it is over already.
    bool fail(std::string error);

    /// Stops the worker's part; its memory goes in the worker's thread.
    void close(Strand& strand);

private:
    Result<RegionLease> writable(char const* name,
                                 std::uint64_t region,
                                 std::uint64_t bytes,
                                 RegionTable const& regions) const;
    Result<void> check_place(char const* name, MappedRegion const& region) const;
    Result<LayerSignal> signal_of(LayerRequest const& request, RegionTable const& regions) const;
    Result<RowsView> lease(char const* name,
                           RowsAt const& at,
                           BlocksAt const* blocks,
                           RegionTable const& regions,
                           LayerWork& work) const;
    Result<LayerWork> check_layer(LayerRequest const& request, RegionTable const& regions) const;
    Result<void> check_turn(std::uint32_t layer) const;
    Error bad_state(char const* what) const;
    bool step(SessionEvent event) noexcept;

    Spec spec_;
    JobNeeds needs_;
    SessionState state_ = SessionState::Open;
    std::shared_ptr<SessionWork> work_;
    std::uint64_t staging_ = 0;
    std::uint64_t destination_ = 0;
    std::uint32_t layers_taken_ = 0;  ///< By layer_ready().
    std::uint32_t layers_done_ = 0;   ///< By the worker.
    std::vector<std::uint32_t> lengths_;
    JobOutcome outcome_;
    AdoptedBytes adopted_;
    SpentTime spent_;
    std::vector<Span> spans_;
    std::string error_;
};

}  // namespace dkv
