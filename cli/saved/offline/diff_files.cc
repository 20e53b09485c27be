#include "cli/saved/offline/diff_files.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include <fmt/format.h>

#include "kernels/backend.h"

namespace dkv::offline {
namespace {

Result<void> check_same_prompt(CacheFacts const& a,
                               CacheFacts const& b,
                               std::array<std::string, 2> const& names) {
    auto const differ = [&](char const* what, auto const& of_a, auto const& of_b) -> Result<void> {
        if (of_a == of_b) return {};
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("{} and {} are not of one prompt: {} {}, {}", names[0], names[1],
                                 what, of_a, of_b)};
    };
    DKV_TRY(differ("layers", a.geometry.layers, b.geometry.layers));
    DKV_TRY(differ("KV heads", a.geometry.kv_heads, b.geometry.kv_heads));
    DKV_TRY(differ("head_dim", a.geometry.head_dim, b.geometry.head_dim));
    return differ("tokens", a.prompt_tokens, b.prompt_tokens);
}

Result<std::vector<std::vector<std::vector<std::int32_t>>>> kept_in(SavedCache const& file) {
    auto const& facts = file.facts();
    std::vector<std::vector<std::vector<std::int32_t>>> kept;
    std::vector<std::int32_t> every(facts.prompt_tokens);
    std::iota(every.begin(), every.end(), 0);
    for (std::uint32_t index = 0; index < facts.geometry.layers; ++index) {
        auto const layer = DKV_TRY(file.layer(index));
        auto& heads = kept.emplace_back();
        for (std::uint32_t head = 0; head < facts.geometry.kv_heads; ++head) {
            auto const positions = layer.positions_of(head);
            if (facts.compacted)
                heads.emplace_back(positions.begin(), positions.end());
            else
                heads.push_back(every);
        }
    }
    return kept;
}

/// The window that a policy kept, where the file says so.
std::uint32_t window_of(CacheFacts const& facts, std::uint32_t otherwise) {
    auto const found = facts.provenance.find("window");
    if (found == facts.provenance.end()) return otherwise;
    std::uint32_t window = 0;
    auto const& text = found->second;
    auto const at = std::from_chars(text.data(), text.data() + text.size(), window);
    bool const good = at.ec == std::errc() && at.ptr == text.data() + text.size() && window > 0;
    return good ? std::min(window, otherwise) : otherwise;
}

bool has_attention(CacheFacts const& facts) {
    return !facts.compacted && facts.query_rows > 0 && facts.query_rows < facts.prompt_tokens;
}

}  // namespace

Result<Diff> compare_files(Backend& backend,
                           SavedCache const& a,
                           SavedCache const& b,
                           std::array<std::string, 2> const& names) {
    for (auto const* const side : {&a, &b})
        if (side->facts().kept_of > 0)
            return Error{ErrorCode::Unsupported,
                         names[side == &a ? 0 : 1] +
                             ": mlx-lm's files of a compacted cache do not say which tokens they "
                             "have: compare the file that it was made of"};
    DKV_TRY(check_same_prompt(a.facts(), b.facts(), names));
    bool const known = has_attention(a.facts()) || has_attention(b.facts());
    auto const& whole = has_attention(a.facts()) || !known ? a : b;
    // A window as long as the prompt has nothing before it to attend to: no mass is worked out.
    auto window = whole.facts().prompt_tokens;
    if (known) window = window_of(a.facts(), window_of(b.facts(), whole.facts().query_rows));

    std::array<Side, 2> sides{Side{names[0], {}, {}}, Side{names[1], {}, {}}};
    sides[0].kept = DKV_TRY(kept_in(a));
    sides[1].kept = DKV_TRY(kept_in(b));
    for (auto& side : sides)
        side.params.window = window;
    auto diff = DKV_TRY(compare(backend, whole, sides[0], sides[1]));
    diff.capacity = 0;
    diff.window = known ? window : 0;
    if (diff.model.empty()) diff.model = (&whole == &a ? b : a).facts().model;
    for (std::uint32_t layer = 0; layer < diff.layers.size(); ++layer) {
        diff.layers[layer].sides[0].bytes = a.facts().layer_bytes(layer);
        diff.layers[layer].sides[1].bytes = b.facts().layer_bytes(layer);
    }
    diff.total.sides[0].bytes = a.facts().rows_bytes();
    diff.total.sides[1].bytes = b.facts().rows_bytes();
    return diff;
}

}  // namespace dkv::offline
