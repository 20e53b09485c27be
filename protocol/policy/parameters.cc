#include "protocol/policy/parameters.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "protocol/base/assert.h"

namespace dkv {
namespace {

template <class T>
constexpr std::span<std::string_view const> words_of() noexcept {
    if constexpr (std::is_enum_v<T>)
        return kWordsOf<T>;
    else
        return {};
}

#define DKV_ROW(name, type, initial, trait, range, limit, brief, what, source)      \
    Parameter{#name, kind_of<type>(), Trait::trait, Range::range, words_of<type>(), \
              limit, brief,           what,         source},

constexpr std::array kParameters{
#define DKV_SIZE DKV_ROW
#define DKV_NUMBER DKV_ROW
#define DKV_OF_PROFILE DKV_ROW
#define DKV_NAMED DKV_ROW
#include "protocol/policy/parameters.inc"
};

/// "max or avg", "mean, max or sum"
std::string alternatives(std::span<std::string_view const> words) {
    return fmt::format("{} or {}", fmt::join(words.first(words.size() - 1), ", "), words.back());
}

std::string bounds(Range const& range) {
    if (range.without_least)
        return fmt::format("above {:g}, at most {:g}", range.least, range.most);
    if (std::isfinite(range.most))
        return fmt::format("{}{:g} … {:g}", range.odd ? "odd, " : "", range.least, range.most);
    return range.least > 0 ? fmt::format("at least {:g}", range.least) : std::string();
}

}  // namespace

bool Range::holds(double value) const noexcept {
    if (!std::isfinite(value) || value < least || value > most) return false;
    return !(without_least && value == least) && !(odd && std::fmod(value, 2) == 0);
}

std::string Parameter::flag() const {
    if (name == "purpose") return "--for";
    std::string text = fmt::format("--{}", name);
    std::ranges::replace(text, '_', '-');
    return text;
}

std::string Parameter::allowed() const {
    std::string text = bounds(range);
    if (kind == ParameterKind::Word) text = alternatives(words);
    if (kind == ParameterKind::Switch) text = "on or off";
    return text.empty() || limit.empty() ? text + std::string(limit)
                                         : fmt::format("{}, {}", text, limit);
}

std::string Parameter::expected() const {
    if (kind == ParameterKind::Word) return alternatives(words);
    if (range.odd) return fmt::format("an odd number in {:g} … {:g}", range.least, range.most);
    if (range.without_least)
        return fmt::format("above {:g} and at most {:g}", range.least, range.most);
    if (std::isfinite(range.most)) return fmt::format("in {:g} … {:g}", range.least, range.most);
    return fmt::format("{}at least {:g}", kind == ParameterKind::Number ? "a number of " : "",
                       range.least);
}

std::span<Parameter const> parameters() noexcept {
    return kParameters;
}

Parameter const& parameter(std::string_view name) noexcept {
    auto const* const found = std::ranges::find(kParameters, name, &Parameter::name);
    DKV_ASSERT(found != kParameters.end());
    return *found;
}

}  // namespace dkv
