#include "cli/saved/formats/layer_files.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "cli/saved/formats/layer_count.h"
#include "cli/saved/formats/words.h"

namespace dkv {
namespace {

constexpr std::string_view kDigits = "0123456789";

/// "model.layers.12.attn": the words "model.layers.#.attn", the numbers 12.
struct LayerName {
    std::string words;
    std::vector<std::uint64_t> numbers;
};

LayerName parts_of(std::string_view name) {
    LayerName parts;
    while (!name.empty()) {
        auto const begin = std::min(name.find_first_of(kDigits), name.size());
        auto const end = std::min(name.find_first_not_of(kDigits, begin), name.size());
        auto const number = number_of<std::uint64_t>(name.substr(begin, end - begin));
        parts.words += name.substr(0, number ? begin : end);
        if (number) {
            parts.words += '#';
            parts.numbers.push_back(*number);
        }
        name.remove_prefix(end);
    }
    return parts;
}

/// Which of the numbers is the layer's: the one that differs; of a single file, the only one.
Result<std::optional<std::size_t>> layer_place(std::span<LayerName const> names) {
    LayerName const& first = names.front();
    if (names.size() == 1)
        return first.numbers.size() == 1 ? std::optional<std::size_t>(0) : std::nullopt;
    std::optional<std::size_t> place;
    for (std::size_t at = 0; at < first.numbers.size(); ++at) {
        bool const same = std::ranges::all_of(
            names, [&](LayerName const& name) { return name.numbers[at] == first.numbers[at]; });
        if (same) continue;
        if (place) return corrupt("the names differ in several numbers: which is the layer's?");
        place = at;
    }
    return place;
}

}  // namespace

Result<void> check_layer_files(std::filesystem::path const& folder,
                               std::span<std::filesystem::path const> files) {
    auto const name_at = [&](std::size_t at) { return files[at].filename().string(); };
    std::vector<LayerName> names;
    for (std::size_t at = 0; at < files.size(); ++at) {
        names.push_back(parts_of(name_at(at)));
        if (names.back().words != names.front().words)
            return located(folder, corrupt(fmt::format("{} is not named like {}: is it a layer of "
                                                       "the same model?",
                                                       name_at(at), name_at(0))));
    }
    auto const place = layer_place(names);
    if (!place) return located(folder, place.error());
    if (!place.value() && names.size() == 1) return {};
    std::map<std::uint64_t, std::size_t> layers;
    std::set<std::uint64_t> found;
    for (std::size_t at = 0; at < names.size(); ++at) {
        std::uint64_t const layer = place.value() ? names[at].numbers[*place.value()] : 0;
        auto const [first, is_new] = layers.emplace(layer, at);
        if (!is_new)
            return located(folder, corrupt(fmt::format("layer {} is there twice: {} and {}", layer,
                                                       name_at(first->second), name_at(at))));
        found.insert(layer);
    }
    auto const counted = count_layers(found);
    return counted ? Result<void>() : located(folder, counted.error());
}

}  // namespace dkv
