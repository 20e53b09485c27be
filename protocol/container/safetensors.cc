#include "protocol/container/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include <fmt/format.h>

namespace dkv {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kHeaderMax = 100'000'000;  // The format's own limit.
constexpr std::size_t kDepthMax = 4;               // { name: { "shape": [ … ] } }
constexpr std::size_t kRankMax = 8;
constexpr char const* kMetadata = "__metadata__";

std::uint64_t little_endian(std::span<std::byte const> bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = kLengthBytes; i-- > 0;)
        value = value << 8U | std::to_integer<std::uint64_t>(bytes[i]);
    return value;
}

Result<Json> parse_header(std::string_view text) {
    if (text.empty() || text.front() != '{') return corrupt("the header does not begin with {");
    std::vector<std::set<std::string>> names;  // Of each object that is open.
    std::string problem;
    auto const watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
        if (static_cast<std::size_t>(depth) > kDepthMax) problem = "the header is nested too deep";
        if (event == Json::parse_event_t::object_start) names.emplace_back();
        if (event == Json::parse_event_t::object_end) names.pop_back();
        if (event == Json::parse_event_t::key &&
            !names.back().insert(parsed.get<std::string>()).second)
            problem = "the header has " + shown(parsed.get<std::string>()) + " twice";
        return problem.empty();  // Else what follows is skipped.
    };
    Json header = Json::parse(text, watch, /*allow_exceptions=*/false);
    if (!problem.empty()) return corrupt(problem);
    if (header.is_discarded() || !header.is_object()) return corrupt("the header is not JSON");
    return header;
}

/// A list of whole numbers.
Result<std::vector<std::uint64_t>> counts(std::string const& where, Json const& json) {
    std::vector<std::uint64_t> list;
    if (!json.is_array()) return corrupt(where + " is not a list");
    if (json.size() > kRankMax)
        return corrupt(
            fmt::format("{} has {} entries, more than {}", where, json.size(), kRankMax));
    for (Json const& entry : json) {
        if (!entry.is_number_unsigned())
            return corrupt(where + " contains a value that is not a count");
        list.push_back(entry.get<std::uint64_t>());
    }
    return list;
}

Result<FileTensor> read_tensor(std::string const& name,
                               Json const& json,
                               std::span<std::byte const> data) {
    std::string const where = "tensor " + shown(name);
    for (char const* field : {"dtype", "shape", "data_offsets"})
        if (!json.is_object() || !json.contains(field))
            return corrupt(fmt::format("{} has no {}", where, field));
    if (!json["dtype"].is_string()) return corrupt(where + ": dtype is not a string");
    FileTensor tensor{.dtype = json["dtype"].get<std::string>(), .shape = {}, .bytes = {}};
    auto const element = element_bytes(tensor.dtype);
    if (!element) return corrupt(where + ": dtype " + shown(tensor.dtype) + " is unknown");
    tensor.shape = DKV_TRY(counts(where + ": shape", json["shape"]));
    auto const offsets = DKV_TRY(counts(where + ": data_offsets", json["data_offsets"]));
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data.size())
        return corrupt(
            fmt::format("{}: data_offsets [{}] do not lie in {} bytes of data: the file "
                        "may be cut short",
                        where, fmt::join(offsets, ", "), data.size()));
    std::uint64_t bytes = *element;
    bool overflow = false;
    for (std::uint64_t const extent : tensor.shape)
        overflow = __builtin_mul_overflow(bytes, extent, &bytes) || overflow;
    if (overflow || bytes != offsets[1] - offsets[0])
        return corrupt(fmt::format("{}: {} [{}] does not take {} bytes", where, tensor.dtype,
                                   fmt::join(tensor.shape, ", "), offsets[1] - offsets[0]));
    tensor.bytes = data.subspan(offsets[0], bytes);
    return tensor;
}

Result<void> read_metadata(Json const& json, TensorTable& table) {
    if (!json.is_object()) return corrupt("__metadata__ is not an object");
    for (auto const& [key, value] : json.items()) {
        if (!value.is_string()) return corrupt("__metadata__: " + shown(key) + " is not a string");
        table.metadata.emplace(key, value.get<std::string>());
    }
    return {};
}

/// Every byte of the data belongs to one tensor.
Result<void> check_coverage(TensorTable const& table, std::span<std::byte const> data) {
    using Place = std::pair<std::uint64_t, std::pair<std::uint64_t, std::string_view>>;
    std::vector<Place> places;
    for (auto const& [name, tensor] : table.tensors) {
        if (tensor.bytes.empty()) continue;
        auto const begin = static_cast<std::uint64_t>(tensor.bytes.data() - data.data());
        places.push_back({begin, {begin + tensor.bytes.size(), name}});
    }
    std::ranges::sort(places);
    std::uint64_t end = 0;
    for (auto const& [begin, rest] : places) {
        if (begin < end)
            return corrupt("tensor " + shown(rest.second) + " overlaps the one before it");
        if (begin > end)
            return corrupt(fmt::format("{} bytes before tensor {} belong to none", begin - end,
                                       shown(rest.second)));
        end = rest.first;
    }
    if (end == data.size()) return {};
    return corrupt(fmt::format("the last {} bytes belong to no tensor", data.size() - end));
}

}  // namespace

std::optional<std::uint64_t> element_bytes(std::string_view dtype) noexcept {
    static constexpr std::pair<std::string_view, std::uint64_t> kBytes[] = {
        {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
        {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
        {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
    for (auto const& [name, bytes] : kBytes)
        if (name == dtype) return bytes;
    return std::nullopt;
}

std::string shown(std::string_view text) {
    constexpr std::size_t kMost = 60;
    auto most = std::min(text.size(), kMost);
    // Not within a character of several bytes.
    while (most > 0 && most < text.size() &&
           (static_cast<unsigned char>(text[most]) & 0xc0U) == 0x80)
        --most;
    std::string line = "\"";
    for (char const c : text.substr(0, most))
        line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    return line + (text.size() > most ? "…\"" : "\"");
}

Result<TensorTable> parse_safetensors(std::span<std::byte const> file) {
    if (file.empty())
        return corrupt("the file is empty: it may be one that was not written to its end");
    if (file.size() < kLengthBytes)
        return corrupt(
            fmt::format("the file has {} bytes, fewer than a safetensors file's first {}",
                        file.size(), kLengthBytes));
    std::uint64_t const length = little_endian(file);
    if (length > kHeaderMax || length > file.size() - kLengthBytes)
        return corrupt(
            fmt::format("not safetensors, or cut short: its header would have {} bytes, "
                        "and the file has {}",
                        length, file.size()));
    auto const data = file.subspan(kLengthBytes + length);
    TensorTable table;
    table.header = {reinterpret_cast<char const*>(file.data()) + kLengthBytes,
                    static_cast<std::size_t>(length)};
    Json const header = DKV_TRY(parse_header(table.header));
    for (auto const& [name, json] : header.items()) {
        if (name == kMetadata)
            DKV_TRY(read_metadata(json, table));
        else
            table.tensors.emplace(name, DKV_TRY(read_tensor(name, json, data)));
    }
    DKV_TRY(check_coverage(table, data));
    return table;
}

}  // namespace dkv
