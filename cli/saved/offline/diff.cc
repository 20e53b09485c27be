#include "cli/saved/offline/diff.h"

#include <algorithm>

#include "kernels/backend.h"

namespace dkv::offline {
namespace {

/// Which positions a query head has, and how many entries repeat one.
struct HeadSet {
    std::vector<bool> has;
    std::uint64_t duplicates = 0;
};

HeadSet head_set(std::vector<std::int32_t> const& list, std::uint32_t tokens) {
    HeadSet set{std::vector<bool>(tokens, false), 0};
    for (std::int32_t const position : list) {
        auto const at = static_cast<std::size_t>(position);
        set.duplicates += set.has[at] ? 1 : 0;
        set.has[at] = true;
    }
    return set;
}

/// How much the window attends to each prefix token. [q_heads, prefix], or nothing.
Result<std::vector<float>> window_attention(Backend& backend,
                                            SavedCache const& file,
                                            std::uint32_t layer,
                                            std::uint32_t window) {
    if (file.facts().query_rows < window || file.facts().prompt_tokens <= window)
        return std::vector<float>();
    std::vector<float> scores(std::size_t{file.geometry().q_heads} *
                              (file.facts().prompt_tokens - window));
    auto const buffer = DKV_TRY(backend.allocate(scores.size() * sizeof(float)));
    std::span<float> const target(reinterpret_cast<float*>(buffer->bytes().data()), scores.size());
    auto const saved = DKV_TRY(file.layer(layer));
    DKV_TRY(backend.score({.queries = last_queries(saved, window),
                           .keys = saved.keys,
                           .scores = target,
                           .mass = {},
                           .reduce = GroupReduce::None,
                           .scale = file.facts().scale,
                           .softcap = file.facts().softcap,
                           .sink_logits = saved.sink_logits}));
    DKV_TRY(backend.download(std::as_bytes(target), std::as_writable_bytes(std::span(scores))));
    return scores;
}

class LayerComparison {
public:
    LayerComparison(SavedCache const& file, std::uint32_t window, std::vector<float> attention)
        : file_(file), window_(window), attention_(std::move(attention)) {}

    LayerDiff compare(std::vector<std::vector<std::int32_t>> const& a,
                      std::vector<std::vector<std::int32_t>> const& b) {
        std::array<std::vector<HeadSet>, 2> const sets{stored(a, 0), stored(b, 1)};
        std::uint32_t const q_heads = file_.geometry().q_heads;
        for (std::uint32_t query_head = 0; query_head < q_heads; ++query_head)
            compare_heads(query_head, sets[0][query_head * a.size() / q_heads].has,
                          sets[1][query_head * b.size() / q_heads].has);
        for (auto& side : diff_.sides)
            if (side.mass) *side.mass /= q_heads;
        return diff_;
    }

private:
    std::vector<HeadSet> stored(std::vector<std::vector<std::int32_t>> const& lists,
                                std::size_t index) {
        Stored& side = diff_.sides[index];
        std::vector<HeadSet> sets;
        for (auto const& list : lists) {
            side.entries += list.size();
            side.duplicates +=
                sets.emplace_back(head_set(list, file_.facts().prompt_tokens)).duplicates;
        }
        side.bytes = side.entries * 2 * file_.geometry().row_bytes();
        side.tokens_per_head =
            static_cast<double>(side.entries) / static_cast<double>(lists.size());
        if (!attention_.empty()) side.mass = 0;
        return sets;
    }

    void compare_heads(std::uint32_t query_head,
                       std::vector<bool> const& a,
                       std::vector<bool> const& b) {
        for (std::uint32_t token = 0; token < file_.facts().prompt_tokens; ++token) {
            diff_.shared += a[token] && b[token] ? 1 : 0;
            diff_.sides[0].only_here += a[token] && !b[token] ? 1 : 0;
            diff_.sides[1].only_here += b[token] && !a[token] ? 1 : 0;
        }
        add_mass(diff_.sides[0].mass, query_head, a);
        add_mass(diff_.sides[1].mass, query_head, b);
    }

    /// What the prefix tokens that are gone leave of 1.
    void add_mass(std::optional<double>& mass,
                  std::uint32_t query_head,
                  std::vector<bool> const& has) const {
        if (!mass) return;
        std::uint32_t const prefix = file_.facts().prompt_tokens - window_;
        if (std::find(has.begin() + prefix, has.end(), false) != has.end()) {
            mass.reset();
            return;
        }
        double gone = 0;
        for (std::uint32_t token = 0; token < prefix; ++token)
            if (!has[token]) gone += double{attention_[std::size_t{query_head} * prefix + token]};
        *mass += 1 - gone;
    }

    SavedCache const& file_;
    std::uint32_t const window_;
    std::vector<float> const attention_;
    LayerDiff diff_;
};

void add_to_total(LayerDiff& total, LayerDiff const& layer, double layers) {
    total.shared += layer.shared;
    for (std::size_t i = 0; i < 2; ++i) {
        Stored& sum = total.sides[i];
        Stored const& one = layer.sides[i];
        sum.entries += one.entries;
        sum.duplicates += one.duplicates;
        sum.only_here += one.only_here;
        sum.bytes += one.bytes;
        sum.tokens_per_head += one.tokens_per_head / layers;
        if (sum.mass && one.mass)
            *sum.mass += *one.mass / layers;
        else
            sum.mass.reset();
    }
}

}  // namespace

Result<Diff> compare(Backend& backend, SavedCache const& file, Side const& a, Side const& b) {
    Diff diff{.names = {a.name, b.name},
              .heads = {static_cast<std::uint32_t>(a.kept.front().size()),
                        static_cast<std::uint32_t>(b.kept.front().size())},
              .geometry = file.geometry(),
              .model = file.facts().model,
              .prompt_tokens = file.facts().prompt_tokens,
              .capacity = a.params.capacity,
              .window = a.params.window,
              .layers = {},
              .total = {}};
    for (auto& side : diff.total.sides)
        side.mass = 0;
    for (std::uint32_t layer = 0; layer < diff.geometry.layers; ++layer) {
        auto attention = DKV_TRY(window_attention(backend, file, layer, diff.window));
        LayerComparison comparison(file, diff.window, std::move(attention));
        diff.layers.push_back(comparison.compare(a.kept[layer], b.kept[layer]));
        add_to_total(diff.total, diff.layers.back(), diff.geometry.layers);
    }
    return diff;
}

}  // namespace dkv::offline
