#include "cli/saved/formats/layer_count.h"

#include <vector>

#include <fmt/format.h>

#include "cli/saved/formats/words.h"

namespace dkv {

std::optional<std::uint64_t> plain_number(std::string_view text) {
    bool const padded = text.size() > 1 && text.front() == '0';
    return padded ? std::nullopt : number_of<std::uint64_t>(text);
}

std::string missing_numbers(std::set<std::uint64_t> const& found) {
    constexpr std::size_t kShown = 3;
    if (found.empty()) return "";
    std::uint64_t const missing = *found.rbegin() - (found.size() - 1);
    std::vector<std::uint64_t> first;
    for (std::uint64_t n = 0; first.size() < std::min<std::uint64_t>(kShown, missing); ++n)
        if (!found.contains(n)) first.push_back(n);
    std::string const more =
        missing > kShown ? fmt::format(" and {} more", missing - kShown) : std::string();
    return fmt::format("{}{}", fmt::join(first, ", "), more);
}

Result<std::uint32_t> count_layers(std::set<std::uint64_t> const& found) {
    if (found.empty()) return corrupt("no layer was found");
    std::uint64_t const last = *found.rbegin();
    if (last >= kLayersMax)
        return corrupt(
            fmt::format("layer {} is more than the {} that a model may have", last, kLayersMax));
    if (auto const missing = missing_numbers(found); !missing.empty())
        return corrupt(fmt::format(
            "{} missing: the last one is {}",
            found.size() == last ? "layer " + missing + " is" : "layers " + missing + " are",
            last));
    return static_cast<std::uint32_t>(found.size());
}

Result<std::uint32_t> count_layers(
    TensorTable const& table, std::optional<std::uint64_t> (*layer_of)(std::string_view name)) {
    std::set<std::uint64_t> found;
    for (auto const& [name, tensor] : table.tensors)
        if (auto const layer = layer_of(name)) found.insert(*layer);
    return count_layers(found);
}

}  // namespace dkv
