// What a parameter of a policy is, and the table of all of them (parameters.inc).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "protocol/base/score_options.h"

namespace dkv {

struct Profile;

/// What a policy can do; a parameter concerns the policies with its trait.
enum class Trait : std::uint8_t {
    Sized,       ///< Keeps a part of the cache: every policy but fullkv.
    Attention,   ///< Ranks tokens by attention: needs queries, has a mass.
    Pooled,      ///< Smooths its scores along tokens.
    Staged,      ///< Holds more of a layer until later layers are seen.
    Profiled,    ///< Takes a profile: budgets are then known before the first layer.
    Sinks,       ///< Treats the first tokens apart.
    Pyramid,     ///< Gives early layers more than late ones.
    EveryQuery,  ///< Needs the queries of the whole prompt.
    Purposed,    ///< Can keep what this prompt asks for, or what later ones may.
    Given,       ///< Ranks by scores that come with the cache.
};

class Traits {
public:
    template <class... All>
    constexpr explicit Traits(All... all) noexcept : bits_((0U | ... | bit(all))) {}
    constexpr bool has(Trait trait) const noexcept { return (bits_ & bit(trait)) != 0; }

private:
    static constexpr unsigned bit(Trait trait) noexcept {
        return 1U << static_cast<unsigned>(trait);
    }
    unsigned bits_;
};

enum class ParameterKind : std::uint8_t { Count, Number, Bytes, Switch, Word, Text, Profile };

/// The values that a parameter may have, whatever the others are.
struct Range {
    double least = 0;
    double most = std::numeric_limits<double>::infinity();
    bool without_least = false;
    bool odd = false;

    static constexpr Range any() noexcept { return {}; }
    static constexpr Range between(double least, double most) noexcept {
        return {.least = least, .most = most};
    }
    static constexpr Range at_least(double least) noexcept { return {.least = least}; }
    static constexpr Range share() noexcept {
        return {.least = 0, .most = 1, .without_least = true};
    }
    static constexpr Range odd_up_to(double most) noexcept {
        return {.least = 1, .most = most, .odd = true};
    }

    /// False for NaN and the infinities.
    bool holds(double value) const noexcept;
};

struct Parameter {
    std::string_view name;  ///< As JSON, the wire and dkv.h spell it: "r_max".
    ParameterKind kind;
    Trait trait;
    Range range;
    std::span<std::string_view const> words;  ///< Of a Word: what it may be.
    std::string_view limit;                   ///< What bounds it besides its range.
    std::string_view brief;
    std::string_view what;
    std::string_view source;

    /// A word by its number; "unknown" for one of a later version.
    std::string_view word(std::size_t number) const noexcept {
        return number < words.size() ? words[number] : "unknown";
    }
    /// "--r-max"; purpose's is "--for", which no name in C++ or Python can be.
    std::string flag() const;
    /// "1 … 1024, at most capacity"; "mean, max or sum".
    std::string allowed() const;
    /// What a message says was expected: "in 1 … 1024", "an odd number in 1 … 63".
    std::string expected() const;
};

template <class T>
constexpr ParameterKind kind_of() noexcept {
    if constexpr (std::is_enum_v<T>)
        return ParameterKind::Word;
    else if constexpr (std::is_same_v<T, bool>)
        return ParameterKind::Switch;
    else if constexpr (std::is_same_v<T, std::uint32_t>)
        return ParameterKind::Count;
    else if constexpr (std::is_same_v<T, std::uint64_t>)
        return ParameterKind::Bytes;
    else if constexpr (std::is_same_v<T, double>)
        return ParameterKind::Number;
    else if constexpr (std::is_same_v<T, Profile>)
        return ParameterKind::Profile;
    else
        return ParameterKind::Text;
}

/// Every parameter, in the order in which it is shown.
std::span<Parameter const> parameters() noexcept;

/// One of them; the name is one of the table's.
Parameter const& parameter(std::string_view name) noexcept;

// Each of these visits fields of the same name, of any structs that have them: PolicyRequest,
// PolicyParams, wire::PolicyT, dkv_policy. The visitor is called with the parameter's name first.

template <class Visit, class... Policies>
void each_size(Visit const& visit, Policies&&... of) {
#define DKV_SIZE(name, ...) visit(#name, of.name...);
#include "protocol/policy/parameters.inc"
}

template <class Visit, class... Policies>
void each_number(Visit const& visit, Policies&&... of) {
#define DKV_NUMBER(name, ...) visit(#name, of.name...);
#include "protocol/policy/parameters.inc"
}

template <class Visit, class... Policies>
void each_of_profile(Visit const& visit, Policies&&... of) {
#define DKV_OF_PROFILE(name, ...) visit(#name, of.name...);
#include "protocol/policy/parameters.inc"
}

/// All that are a single value: sizes, numbers, and what goes in place of a profile's own.
template <class Visit, class... Policies>
void each_value(Visit const& visit, Policies&&... of) {
#define DKV_SIZE(name, ...) visit(#name, of.name...);
#define DKV_NUMBER(name, ...) visit(#name, of.name...);
#define DKV_OF_PROFILE(name, ...) visit(#name, of.name...);
#include "protocol/policy/parameters.inc"
}

/// All of them, in the table's order.
template <class Visit, class... Policies>
void each_field(Visit const& visit, Policies&&... of) {
#define DKV_SIZE(name, ...) visit(#name, of.name...);
#define DKV_NUMBER(name, ...) visit(#name, of.name...);
#define DKV_OF_PROFILE(name, ...) visit(#name, of.name...);
#define DKV_NAMED(name, ...) visit(#name, of.name...);
#include "protocol/policy/parameters.inc"
}

}  // namespace dkv
