#include "protocol/sdk/convert.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string_view>

#include <fmt/format.h>

#include "protocol/policy/parameters.h"

namespace dkv::sdk {
namespace {

constexpr std::size_t kProfileWeightsMax = std::size_t{1} << 20U;
constexpr std::uint64_t kSurrogateWeightsMax = std::uint64_t{1} << 24U;
constexpr std::uint64_t kHeadsMax = 1024;
constexpr std::uint64_t kHeadDimMax = 4096;

// One for each type that a field of dkv_policy has; nothing where it has its default.

Result<void> take(char const*, std::uint32_t given, flatbuffers::Optional<std::uint32_t>& field) {
    if (given != DKV_DEFAULT) field = given;
    return {};
}

/// NaN is not negative: it travels, and the sidecar refuses it by name.
Result<void> take(char const*, double given, flatbuffers::Optional<double>& field) {
    if (!(given < 0)) field = given;
    return {};
}

Result<void> take(char const*, std::uint64_t given, flatbuffers::Optional<std::uint64_t>& field) {
    if (given != 0) field = given;
    return {};
}

Result<void> take(char const*, std::int32_t given, flatbuffers::Optional<bool>& field) {
    if (given >= 0) field = given != 0;
    return {};
}

template <class Word>
Result<void> take(char const* name, char const* given, flatbuffers::Optional<Word>& field) {
    if (given == nullptr) return {};
    auto const words = parameter(name).words;
    auto const found = std::ranges::find(words, std::string_view(given));
    if (found == words.end())
        return invalid(fmt::format("{} is '{}', none of {}", name, given, fmt::join(words, ", ")));
    field = static_cast<Word>(found - words.begin());
    return {};
}

std::uint64_t element_bytes_of(dkv_rows const& rows) noexcept {
    return rows.dtype == DKV_F32 ? 4 : 2;
}

/// One past the last byte of the rows, or nothing when that overflows.
std::optional<std::uint64_t> end_of(dkv_rows const& rows) {
    std::uint64_t end = 1;
    std::pair<std::uint64_t, std::uint64_t> const steps[] = {{rows.heads, rows.head_stride},
                                                             {rows.tokens, rows.token_stride},
                                                             {rows.head_dim, rows.dim_stride}};
    for (auto const& [count, stride] : steps) {
        std::uint64_t span = 0;
        if (__builtin_mul_overflow(count - 1, stride, &span)) return std::nullopt;
        if (__builtin_add_overflow(end, span, &end)) return std::nullopt;
    }
    if (__builtin_mul_overflow(end, element_bytes_of(rows), &end)) return std::nullopt;
    if (__builtin_add_overflow(end, rows.offset, &end)) return std::nullopt;
    return end;
}

}  // namespace

dkv_status status_of(ErrorCode code) noexcept {
    return static_cast<dkv_status>(code);
}

Result<Geometry> geometry_of(dkv_geometry const& geometry) {
    auto const number = static_cast<unsigned>(geometry.dtype);
    auto const dtype =
        dtype_from_wire(number > 3 ? std::uint8_t{0} : static_cast<std::uint8_t>(number));
    if (!dtype) return invalid("dtype is " + std::to_string(number) + ", not in 1 … 3");
    Geometry const result{.layers = geometry.layers,
                          .q_heads = geometry.q_heads,
                          .kv_heads = geometry.kv_heads,
                          .head_dim = geometry.head_dim,
                          .dtype = *dtype};
    DKV_TRY(check(result));
    return result;
}

wire::GeometryT wire_of(Geometry const& geometry) {
    wire::GeometryT result;
    result.layers = geometry.layers;
    result.q_heads = geometry.q_heads;
    result.kv_heads = geometry.kv_heads;
    result.head_dim = geometry.head_dim;
    result.dtype = static_cast<wire::Dtype>(geometry.dtype);
    return result;
}

namespace {

Result<std::unique_ptr<wire::SurrogateT>> wire_of(dkv_surrogate const& surrogate,
                                                  std::uint32_t layers) {
    if (surrogate.struct_bytes < sizeof surrogate)
        return invalid(fmt::format("policy->profile->surrogate->struct_bytes is {}, not {}",
                                   surrogate.struct_bytes, sizeof surrogate));
    std::uint64_t const heads = surrogate.kv_heads;
    std::uint64_t const dims = surrogate.head_dim;
    if (heads == 0 || dims == 0 || heads > kHeadsMax || dims > kHeadDimMax ||
        surrogate.weights == nullptr || surrogate.pairs > dims / 2 ||
        (surrogate.pairs != 0 && surrogate.frequencies == nullptr))
        return invalid(fmt::format(
            "the profile's surrogate has {} KV heads of {} dimensions and "
            "{} pairs{}",
            heads, dims, surrogate.pairs, surrogate.weights == nullptr ? ", and no weights" : ""));
    std::uint64_t const count = layers * heads * (2 * heads * dims + 2 * heads + 1);
    if (count > kSurrogateWeightsMax)
        return invalid(fmt::format("the profile's surrogate has {} weights, more than {}", count,
                                   kSurrogateWeightsMax));
    auto result = std::make_unique<wire::SurrogateT>();
    result->kv_heads = surrogate.kv_heads;
    result->head_dim = surrogate.head_dim;
    result->weights.assign(surrogate.weights, surrogate.weights + count);
    result->frequencies.assign(surrogate.frequencies, surrogate.frequencies + surrogate.pairs);
    result->interleaved = surrogate.interleaved != 0;
    return result;
}

Result<std::unique_ptr<wire::ProfileT>> wire_of(dkv_profile const& profile) {
    // Programs built before profiles had surrogates end there.
    if (profile.struct_bytes < offsetof(dkv_profile, surrogate))
        return invalid("policy->profile->struct_bytes is " + std::to_string(profile.struct_bytes) +
                       ", not " + std::to_string(sizeof profile));
    std::size_t const count = std::size_t{profile.layers} * profile.heads;
    if (profile.weights == nullptr || count == 0 || count > kProfileWeightsMax)
        return invalid("the profile has " + std::to_string(profile.layers) + " layers of " +
                       std::to_string(profile.heads) + " heads" +
                       (profile.weights == nullptr ? " and no weights" : ""));
    auto result = std::make_unique<wire::ProfileT>();
    result->name = profile.name != nullptr ? profile.name : "";
    result->layers = profile.layers;
    result->heads = profile.heads;
    result->weights.assign(profile.weights, profile.weights + count);
    result->alpha = profile.alpha;
    result->floor = profile.floor;
    result->kernel = profile.kernel;
    if (profile.struct_bytes >= sizeof profile && profile.surrogate != nullptr)
        result->surrogate = DKV_TRY(wire_of(*profile.surrogate, profile.layers));
    return result;
}

}  // namespace

Result<wire::PolicyT> wire_of(dkv_policy const& policy) {
    wire::PolicyT result;
    if (policy.name != nullptr) result.name = policy.name;
    Result<void> taken;
    each_value(
        [&taken](char const* parameter, auto const& given, auto& field) {
            if (taken) taken = take(parameter, given, field);
        },
        policy, result);
    DKV_TRY(std::move(taken));
    if (policy.preset != nullptr) result.preset = policy.preset;
    if (policy.profile != nullptr) result.profile = DKV_TRY(wire_of(*policy.profile));
    return result;
}

std::string describe(dkv_rows const& rows) {
    auto const number = static_cast<unsigned>(rows.dtype);
    auto const dtype =
        dtype_from_wire(number > 3 ? std::uint8_t{0} : static_cast<std::uint8_t>(number));
    return "[" + std::to_string(rows.heads) + ", " + std::to_string(rows.tokens) + ", " +
           std::to_string(rows.head_dim) + "] " +
           (dtype ? std::string(name_of(*dtype)) : "of dtype " + std::to_string(number));
}

Result<void> check_rows(char const* what,
                        dkv_rows const& rows,
                        dkv_rows const& wanted,
                        std::uint64_t arena_bytes) {
    if (rows.heads != wanted.heads || rows.tokens != wanted.tokens ||
        rows.head_dim != wanted.head_dim || rows.dtype != wanted.dtype)
        return invalid(std::string(what) + " are " + describe(rows) + ", not " + describe(wanted));
    if (rows.offset % element_bytes_of(rows) != 0)
        return invalid(std::string(what) + " begin at byte " + std::to_string(rows.offset) +
                       ", inside an element");
    auto const end = end_of(rows);
    if (!end || *end > arena_bytes)
        return invalid(std::string(what) + " end at byte " +
                       (end ? std::to_string(*end) : "2^64 or beyond") + " of an arena of " +
                       std::to_string(arena_bytes));
    return {};
}

Result<void> check_blocks(char const* what,
                          dkv_rows const& rows,
                          dkv_blocks const& blocks,
                          std::uint32_t prompt_tokens,
                          std::uint64_t arena_bytes) {
    std::span<std::uint32_t const> const ids(blocks.ids, blocks.ids == nullptr ? 0 : blocks.count);
    if (rows.tokens == 0 || ids.size() != (prompt_tokens - 1) / rows.tokens + 1)
        return invalid(fmt::format("{} of {} tokens do not lie in {} blocks of {}", what,
                                   prompt_tokens, ids.size(), rows.tokens));
    std::uint32_t const last = *std::ranges::max_element(ids);
    std::uint64_t far = 0;
    auto const end = end_of(rows);
    bool const wide = !end || __builtin_mul_overflow(last, blocks.stride, &far) ||
                      __builtin_mul_overflow(far, element_bytes_of(rows), &far) ||
                      __builtin_add_overflow(far, *end, &far);
    if (wide || far > arena_bytes)
        return invalid(fmt::format("{} have block {}, which ends at byte {} of an arena of {}",
                                   what, last, wide ? "2^64 or beyond" : std::to_string(far),
                                   arena_bytes));
    return {};
}

dkv_rows in_block(dkv_rows rows, dkv_blocks const& blocks, std::uint32_t prompt_tokens) noexcept {
    rows.offset += *blocks.ids * blocks.stride * element_bytes_of(rows);
    rows.tokens = prompt_tokens;
    return rows;
}

wire::BlocksT wire_of(dkv_blocks const& blocks) {
    wire::BlocksT result;
    result.ids.assign(blocks.ids, blocks.ids + blocks.count);
    result.stride = blocks.stride;
    return result;
}

wire::RowsT wire_of(dkv_rows const& rows, std::uint64_t region) {
    wire::RowsT result;
    result.region = region;
    result.offset = rows.offset;
    result.dtype = static_cast<wire::Dtype>(rows.dtype);
    result.heads = rows.heads;
    result.tokens = rows.tokens;
    result.head_dim = rows.head_dim;
    result.head_stride = rows.head_stride;
    result.token_stride = rows.token_stride;
    result.dim_stride = rows.dim_stride;
    return result;
}

}  // namespace dkv::sdk
