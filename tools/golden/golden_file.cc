#include "tools/golden/golden_file.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include <fmt/format.h>

namespace dkv::golden {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kScoresMax = std::uint64_t{1} << 28;

/// One case as it stands in the file; knows its name, for messages.
class CaseReader {
public:
    CaseReader(Json const& json, std::string name) : json_(json), name_(std::move(name)) {}

    Error wrong(std::string_view field, std::string_view what) const {
        return Error{ErrorCode::CorruptData, fmt::format("case {}: {} {}", name_, field, what)};
    }

    /// The field, or nothing when it is absent or null.
    Json const* find(char const* field) const {
        auto const found = json_.find(field);
        return found == json_.end() || found->is_null() ? nullptr : &*found;
    }

    Result<Json const*> require(char const* field) const {
        Json const* value = find(field);
        if (value == nullptr) return wrong(field, "is missing");
        return value;
    }

    Result<std::uint32_t> count(char const* field) const {
        Json const* value = DKV_TRY(require(field));
        if (!value->is_number_unsigned() ||
            value->get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int32_t>::max()})
            return wrong(field, fmt::format("is {}, not a count below 2^31", value->dump()));
        return value->get<std::uint32_t>();
    }

    Result<double> number(char const* field) const {
        Json const* value = DKV_TRY(require(field));
        if (!value->is_number()) return wrong(field, fmt::format("is {}", value->dump()));
        return value->get<double>();
    }

    /// Negative seeds count modulo 2^64, as in the generator.
    Result<std::uint64_t> seed() const {
        Json const* value = DKV_TRY(require("seed"));
        if (!value->is_number_integer())
            return wrong("seed", fmt::format("is {}, not a whole number", value->dump()));
        return value->get<std::uint64_t>();
    }

    Result<std::int64_t> integer(char const* field, Json const& value) const {
        bool const fits =
            value.is_number_integer() &&
            (!value.is_number_unsigned() ||
             value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()});
        if (!fits) return wrong(field, fmt::format("holds {}, not a whole number", value.dump()));
        return value.get<std::int64_t>();
    }

    Result<std::vector<std::int64_t>> integers(char const* field, Json const& value) const {
        if (!value.is_array()) return wrong(field, "is not a list of whole numbers");
        std::vector<std::int64_t> list;
        for (Json const& entry : value)
            list.push_back(DKV_TRY(integer(field, entry)));
        return list;
    }

    /// A text that is one of `choices`.
    template <class Choice, std::size_t count>
    Result<Choice> choice(char const* field,
                          std::pair<std::string_view, Choice> const (&choices)[count]) const {
        Json const* value = DKV_TRY(require(field));
        if (value->is_string())
            for (auto const& [name, choice] : choices)
                if (value->get_ref<std::string const&>() == name) return choice;
        return wrong(field, fmt::format("is {}, which is unknown here", value->dump()));
    }

private:
    Json const& json_;
    std::string name_;
};

constexpr std::pair<std::string_view, Shape> kShapes[] = {{"flat", Shape::Flat},
                                                          {"skew", Shape::Skew}};
constexpr std::pair<std::string_view, Pool> kPools[] = {
    {"avg", Pool::Avg}, {"avgpool", Pool::Avg}, {"max", Pool::Max}, {"maxpool", Pool::Max}};

Result<void> read_inputs(CaseReader const& reader, GoldenCase& golden) {
    golden.layers = DKV_TRY(reader.count("L"));
    golden.heads = DKV_TRY(reader.count("H"));
    golden.prefix = DKV_TRY(reader.count("N"));
    golden.base = DKV_TRY(reader.count("base"));
    golden.window = DKV_TRY(reader.count("ws"));
    golden.kernel = DKV_TRY(reader.count("kernel"));
    golden.r_max = DKV_TRY(reader.number("radio_max"));
    golden.update_interval = DKV_TRY(reader.count("m"));
    golden.seed = DKV_TRY(reader.seed());
    golden.shape = DKV_TRY(reader.choice("shape", kShapes));
    for (char const* field : {"pooling", "pool"})
        if (reader.find(field) != nullptr) golden.pool = DKV_TRY(reader.choice(field, kPools));

    double const scores = double(golden.layers) * golden.heads * golden.prefix;
    if (scores > static_cast<double>(kScoresMax))
        return Error{ErrorCode::LimitExceeded,
                     fmt::format("case {}: L * H * N is {}; the limit is {}", golden.name, scores,
                                 kScoresMax)};
    return {};
}

Result<void> read_outcomes(CaseReader const& reader, GoldenCase& golden) {
    if (Json const* error = reader.find("error")) {
        if (!error->is_string()) return reader.wrong("error", "is neither a text nor null");
        golden.error = error->get<std::string>();
    }
    auto const wanted = [&](char const* field) -> Result<Json const*> {
        return golden.error ? Result<Json const*>(reader.find(field)) : reader.require(field);
    };
    golden.stage_limit = DKV_TRY(reader.integer("B", *DKV_TRY(reader.require("B"))));

    Json const* updates = DKV_TRY(reader.require("budgets_per_update"));
    if (!updates->is_array()) return reader.wrong("budgets_per_update", "is not a list of lists");
    for (Json const& update : *updates)
        golden.budgets_per_update.push_back(DKV_TRY(reader.integers("budgets_per_update", update)));

    if (Json const* list = DKV_TRY(wanted("stored_len_per_layer")))
        golden.stored_lengths = DKV_TRY(reader.integers("stored_len_per_layer", *list));
    if (Json const* list = DKV_TRY(wanted("kept_head0_layer0_first16")))
        golden.first_kept = DKV_TRY(reader.integers("kept_head0_layer0_first16", *list));
    if (Json const* value = DKV_TRY(wanted("kept_ids_crc32_all_layers_heads")))
        golden.kept_crc32 = DKV_TRY(reader.integer("kept_ids_crc32_all_layers_heads", *value));
    if (Json const* value = DKV_TRY(wanted("duplicate_entries")))
        golden.duplicate_entries = DKV_TRY(reader.integer("duplicate_entries", *value));
    return {};
}

Result<GoldenCase> read_case(Json const& json, std::size_t index) {
    if (!json.is_object())
        return Error{ErrorCode::CorruptData, fmt::format("case {} is not an object", index)};
    GoldenCase golden;
    auto const name = json.find("name");
    golden.name = name != json.end() && name->is_string() ? name->get<std::string>()
                                                          : fmt::format("{}", index);
    CaseReader const reader(json, golden.name);
    DKV_TRY(read_inputs(reader, golden));
    DKV_TRY(read_outcomes(reader, golden));
    return golden;
}

}  // namespace

Result<std::vector<GoldenCase>> parse_golden(std::string_view text) {
    Json const json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) return Error{ErrorCode::CorruptData, "not JSON"};
    auto const cases = json.is_object() ? json.find("cases") : json.end();
    if (cases == json.end() || !cases->is_array() || cases->empty())
        return Error{ErrorCode::CorruptData, "no list \"cases\" with at least one case"};

    std::vector<GoldenCase> golden;
    for (std::size_t index = 0; index < cases->size(); ++index)
        golden.push_back(DKV_TRY(read_case((*cases)[index], index)));
    return golden;
}

Result<std::vector<GoldenCase>> read_golden(std::filesystem::path const& path) {
    std::ifstream file(path, std::ios::binary);
    std::string const text{std::istreambuf_iterator<char>(file), {}};
    if (!file.is_open() || file.bad())
        return Error{ErrorCode::Io,
                     fmt::format("cannot read {}: {}", path.string(), std::strerror(errno))};
    return parse_golden(text);
}

}  // namespace dkv::golden
