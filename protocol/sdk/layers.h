// What has become of a session's layers: where each one's rows are now, and what the engine has
// still to hear of it. Applies the sidecar's words after checking them; sends nothing.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "protocol/base/kv_layout.h"
#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"
#include "protocol/sdk/arena.h"
#include "protocol/sdk/clock.h"
#include "protocol/sdk/dkv.h"

namespace dkv::sdk {

struct LayersSpec {
    Geometry geometry;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t stage_rows = 0;
    bool progressive = true;
    Deadline opened_at{};                // Of the session.
    std::shared_ptr<Arena> staging;      // Null when stage_rows is 0.
    std::shared_ptr<Arena> destination;  // Null when the prompt is kept whole.
};

struct LayerEvent {
    dkv_event_kind kind = DKV_EVENT_NONE;
    std::uint32_t layer = 0;
};

/// Progressive: RELEASE follows a layer's first Staged, or its PACKED when it was never staged.
/// Else every RELEASE follows COMMITTED. Once per layer, when its full rows are needed no more.
class Layers {
public:
    explicit Layers(LayersSpec spec);

    /// The next layer was handed to the sidecar.
    void report() noexcept { ++reported_; }
    std::uint32_t reported() const noexcept { return reported_; }

    /// Late and repeated messages do nothing. Errors: CorruptData, when a sidecar speaks of layers,
    /// lengths, places or positions that cannot be; nothing was changed then.
    Result<void> apply(wire::LayerProgressT const& progress);
    Result<void> apply(wire::CommittedT const& committed);

    /// No more comes from the sidecar. A layer whose RELEASE the engine has not got is full again.
    void abandon();

    bool is_committed() const noexcept { return committed_; }
    /// The next event; None when there is none. A RELEASE that is given here cannot be taken back.
    LayerEvent pop();
    bool has_event() const noexcept { return !events_.empty(); }

    /// Errors: InvalidArgument for a layer that the model does not have.
    Result<dkv_layer_view> view(std::uint32_t index) const;

private:
    struct Layer {
        dkv_layer_form form = DKV_LAYER_FULL;
        bool release_queued = false;
        bool released = false;
        float mass_kept = -1;
        std::vector<std::uint32_t> lengths;
        std::vector<std::uint64_t> head_offset;
        std::uint64_t keys_offset = 0;
        std::uint64_t values_offset = 0;
        std::uint64_t end_offset = 0;  // In the destination.
        std::vector<std::int32_t> positions;
    };

    Result<void> check_place(wire::LayerProgressT const& progress, PackedLayer const& packed) const;
    Result<std::vector<std::int32_t>> read_positions(std::uint32_t layer,
                                                     PackedLayer const& packed) const;
    Result<void> stage(wire::LayerProgressT const& progress);
    Result<void> trim(wire::LayerProgressT const& progress);
    Result<void> pack(wire::LayerProgressT const& progress);
    void queue_release(std::uint32_t layer);
    /// The system may refuse; then the pages stay, which costs memory and nothing else.
    void punch(std::uint64_t offset, std::uint64_t bytes) const;

    LayersSpec const spec_;
    StagingLayout const layout_;
    std::vector<Layer> layers_;
    std::deque<LayerEvent> events_;
    std::uint32_t reported_ = 0;
    bool committed_ = false;
};

}  // namespace dkv::sdk
