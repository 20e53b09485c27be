#include "protocol/sdk/layers.h"

#include <algorithm>
#include <span>
#include <utility>

#include "protocol/sdk/convert.h"

namespace dkv::sdk {
namespace {

std::string layer_name(std::uint32_t layer) {
    return "layer " + std::to_string(layer);
}

}  // namespace

Layers::Layers(LayersSpec spec)
    : spec_(std::move(spec)),
      layout_{.geometry = spec_.geometry, .rows_max = spec_.stage_rows},
      layers_(spec_.geometry.layers) {}

Result<void> Layers::apply(wire::LayerProgressT const& progress) {
    if (progress.layer >= reported_)
        return corrupt_answer("speaks of layer " + std::to_string(progress.layer) + "; " +
                              std::to_string(reported_) + " were reported");
    switch (progress.stage) {
        case wire::LayerStage::Scored: return {};
        case wire::LayerStage::Staged: return stage(progress);
        case wire::LayerStage::Trimmed: return trim(progress);
        case wire::LayerStage::Committed: return pack(progress);
    }
    return corrupt_answer("put layer " + std::to_string(progress.layer) + " in stage " +
                          std::to_string(static_cast<int>(progress.stage)) +
                          ", which there is not");
}

Result<void> Layers::stage(wire::LayerProgressT const& progress) {
    auto& layer = layers_[progress.layer];
    if (!spec_.progressive || layer.form != DKV_LAYER_FULL) return {};
    if (!spec_.staging)
        return corrupt_answer("staged " + layer_name(progress.layer) +
                              " where nothing is to be staged");
    DKV_TRY(check_lengths(progress, spec_.geometry.kv_heads,
                          std::min(spec_.stage_rows, spec_.prompt_tokens)));

    layer.form = DKV_LAYER_STAGED;
    layer.lengths = progress.lengths;
    layer.keys_offset = layout_.keys_offset(progress.layer, 0);
    layer.values_offset = layout_.values_offset(progress.layer, 0);
    for (std::uint32_t head = 0; head < spec_.geometry.kv_heads; ++head)
        layer.head_offset.push_back(head * layout_.segment_bytes());
    queue_release(progress.layer);
    return {};
}

Result<void> Layers::trim(wire::LayerProgressT const& progress) {
    auto& layer = layers_[progress.layer];
    if (layer.form != DKV_LAYER_STAGED) return {};
    DKV_TRY(check_lengths(progress, spec_.geometry.kv_heads, spec_.stage_rows));
    for (std::size_t head = 0; head < progress.lengths.size(); ++head)
        if (progress.lengths[head] > layer.lengths[head])
            return corrupt_answer("trimmed " + layer_name(progress.layer) + " from " +
                                  std::to_string(layer.lengths[head]) + " rows up to " +
                                  std::to_string(progress.lengths[head]));

    layer.lengths = progress.lengths;
    for (std::uint32_t head = 0; head < spec_.geometry.kv_heads; ++head) {
        std::uint64_t const kept = layer.lengths[head] * spec_.geometry.row_bytes();
        std::uint64_t const cut = layout_.segment_bytes() - kept;
        punch(layout_.keys_offset(progress.layer, head) + kept, cut);
        punch(layout_.values_offset(progress.layer, head) + kept, cut);
    }
    events_.push_back({DKV_EVENT_TRIMMED, progress.layer});
    return {};
}

Result<void> Layers::pack(wire::LayerProgressT const& progress) {
    auto& layer = layers_[progress.layer];
    if (layer.form == DKV_LAYER_PACKED) return {};
    DKV_TRY(check_lengths(progress, spec_.geometry.kv_heads, spec_.prompt_tokens));
    // Compared before the layout is computed, which adds to it; the lengths are small by now.
    std::uint64_t const room = spec_.destination ? spec_.destination->bytes() : 0;
    auto const begin = std::min(progress.destination_offset, room);
    auto const packed = packed_layer(spec_.geometry, progress.lengths, begin);
    if (begin != progress.destination_offset || packed.end_offset > room)
        return corrupt_answer("packed " + layer_name(progress.layer) + " at byte " +
                              std::to_string(progress.destination_offset) +
                              ", beyond a destination of " + std::to_string(room));
    DKV_TRY(check_place(progress, packed));
    auto positions = DKV_TRY(read_positions(progress.layer, packed));

    bool const was_staged = layer.form == DKV_LAYER_STAGED;
    layer.form = DKV_LAYER_PACKED;
    layer.lengths = progress.lengths;
    layer.keys_offset = packed.keys_offset;
    layer.values_offset = packed.values_offset;
    layer.end_offset = packed.end_offset;
    layer.positions = std::move(positions);
    layer.head_offset.clear();
    for (std::uint32_t head = 0; head < spec_.geometry.kv_heads; ++head)
        layer.head_offset.push_back(packed.head_rows[head] * spec_.geometry.row_bytes());
    if (was_staged) punch(progress.layer * layout_.slot_bytes(), layout_.slot_bytes());
    events_.push_back({DKV_EVENT_PACKED, progress.layer});
    if (spec_.progressive) queue_release(progress.layer);
    return {};
}

/// Layers lie apart. One that overlaps another has lost rows, or the other has.
Result<void> Layers::check_place(wire::LayerProgressT const& progress,
                                 PackedLayer const& packed) const {
    for (std::uint32_t index = 0; index < layers_.size(); ++index) {
        auto const& other = layers_[index];
        if (other.form == DKV_LAYER_PACKED && packed.keys_offset < other.end_offset &&
            other.keys_offset < packed.end_offset)
            return corrupt_answer("packed " + layer_name(progress.layer) + " at byte " +
                                  std::to_string(progress.destination_offset) + ", over " +
                                  layer_name(index));
    }
    return {};
}

/// To this process's own memory: a device's cannot be read here, and a region that is shared could
/// change after it was checked.
Result<std::vector<std::int32_t>> Layers::read_positions(std::uint32_t layer,
                                                         PackedLayer const& packed) const {
    std::vector<std::int32_t> positions(packed.head_rows.back());
    DKV_TRY(spec_.destination->read(packed.positions_offset,
                                    std::as_writable_bytes(std::span(positions))));
    auto const all = std::span<std::int32_t const>(positions);
    for (std::uint32_t head = 0; head < spec_.geometry.kv_heads; ++head) {
        auto const begin = packed.head_rows[head];
        DKV_TRY(check_positions(all.subspan(begin, packed.head_rows[head + 1] - begin),
                                spec_.prompt_tokens,
                                "head " + std::to_string(head) + " of " + layer_name(layer)));
    }
    return positions;
}

Result<void> Layers::apply(wire::CommittedT const& committed) {
    if (committed_) return {};
    auto const kv_heads = spec_.geometry.kv_heads;
    if (committed.lengths.size() != layers_.size() * kv_heads)
        return corrupt_answer("committed " + std::to_string(committed.lengths.size()) +
                              " lengths for " + std::to_string(layers_.size() * kv_heads) +
                              " heads");
    for (std::uint32_t index = 0; index < layers_.size(); ++index) {
        auto const lengths =
            std::span(committed.lengths).subspan(std::size_t{index} * kv_heads, kv_heads);
        auto const& layer = layers_[index];
        if (layer.form != DKV_LAYER_PACKED)
            return corrupt_answer("committed without packing " + layer_name(index));
        if (!std::equal(lengths.begin(), lengths.end(), layer.lengths.begin()))
            return corrupt_answer("committed other lengths than it packed in " + layer_name(index));
    }
    DKV_TRY(check_totals(committed, spec_.geometry, spec_.prompt_tokens, spec_.opened_at));

    committed_ = true;
    for (std::size_t index = 0; index < committed.mass_kept.size(); ++index)
        layers_[index].mass_kept = committed.mass_kept[index];
    events_.push_back({DKV_EVENT_COMMITTED, 0});
    for (std::uint32_t index = 0; index < layers_.size(); ++index)
        queue_release(index);
    return {};
}

void Layers::abandon() {
    if (committed_) return;
    for (auto& layer : layers_)
        if (!layer.released) layer = Layer{};
    std::erase_if(events_, [&](LayerEvent const& event) {
        return layers_[event.layer].form == DKV_LAYER_FULL;
    });
    events_.push_back({DKV_EVENT_FAILED, 0});
}

void Layers::queue_release(std::uint32_t layer) {
    if (std::exchange(layers_[layer].release_queued, true)) return;
    events_.push_back({DKV_EVENT_RELEASE, layer});
}

LayerEvent Layers::pop() {
    if (events_.empty()) return {};
    auto const event = events_.front();
    events_.pop_front();
    if (event.kind == DKV_EVENT_RELEASE) layers_[event.layer].released = true;
    return event;
}

void Layers::punch(std::uint64_t offset, std::uint64_t bytes) const {
    static_cast<void>(spec_.staging->release(offset, bytes));
}

Result<dkv_layer_view> Layers::view(std::uint32_t index) const {
    if (index >= layers_.size())
        return Error{ErrorCode::InvalidArgument,
                     layer_name(index) + " of a model of " + std::to_string(layers_.size())};
    auto const& layer = layers_[index];
    dkv_layer_view view{};
    view.struct_bytes = sizeof view;
    view.mass_kept = layer.mass_kept;
    // Without progressive release the engine keeps its rows until all is done, so they stand.
    view.form = spec_.progressive || committed_ ? layer.form : DKV_LAYER_FULL;
    if (view.form == DKV_LAYER_FULL) return view;

    bool const packed = view.form == DKV_LAYER_PACKED;
    std::byte const* const base = (packed ? spec_.destination : spec_.staging)->base();
    view.keys = base + layer.keys_offset;
    view.values = base + layer.values_offset;
    view.lengths = layer.lengths.data();
    view.head_offset = layer.head_offset.data();
    if (packed) view.positions = layer.positions.data();
    return view;
}

}  // namespace dkv::sdk
