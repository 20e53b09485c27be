#include "sidecar/config/profile_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <vector>

namespace dkv {
namespace {

using Json = nlohmann::ordered_json;

constexpr char const* kFormat = "dkv-profile";
constexpr int kVersion = 1;
constexpr std::uintmax_t kBytesMax = 16U << 20U;

Error corrupt(std::filesystem::path const& path, std::string const& why) {
    return Error{ErrorCode::CorruptData, path.string() + " " + why};
}

/// Refuses a name that comes twice in one object: two readers could take different ones.
class UniqueNames {
public:
    bool operator()(int /*depth*/, Json::parse_event_t event, Json const& parsed) {
        if (event == Json::parse_event_t::object_start) open_.emplace_back();
        if (event == Json::parse_event_t::object_end) open_.pop_back();
        if (event == Json::parse_event_t::key &&
            !open_.back().insert(parsed.get<std::string>()).second)
            twice = parsed.get<std::string>();
        return true;
    }
    std::string twice;

private:
    std::vector<std::set<std::string>> open_;
};

Result<Json> read_json(std::filesystem::path const& path) {
    std::error_code failure;
    auto const bytes = std::filesystem::file_size(path, failure);
    if (!failure && bytes > kBytesMax)
        return corrupt(path, "has " + std::to_string(bytes) + " bytes, too many for a profile");
    errno = 0;
    std::ifstream file(path);
    if (failure || !file)
        return Error{ErrorCode::Io, path.string() + " cannot be read: " +
                                        (failure ? failure.message() : std::strerror(errno))};
    UniqueNames names;
    Json json = Json::parse(file, std::ref(names), false);
    if (json.is_discarded()) return corrupt(path, "is not JSON");
    if (!json.is_object() || json.value("format", Json()) != kFormat)
        return corrupt(path, "is not a dkv-profile file");
    if (json.value("version", Json()) != kVersion)
        return Error{ErrorCode::Unsupported, path.string() + " has version " +
                                                 json.value("version", Json()).dump() +
                                                 "; this build reads version 1"};
    if (!names.twice.empty()) return corrupt(path, "has \"" + names.twice + "\" twice");
    return json;
}

/// Throws what the library throws of a field that is missing or of another type.
Result<ProfileFile> from_json(std::filesystem::path const& path, Json const& json) {
    ProfileFile file;
    file.model = json.at("model");
    file.recipe = json.value("recipe", Json::object());
    file.figures = json.value("figures", Json::object());
    file.granularity = json.at("granularity").get<std::string>();
    auto const& geometry = file.model.at("geometry");
    file.kv_heads = geometry.at("kv_heads").get<std::uint32_t>();
    auto const layers = geometry.at("compressed").get<std::vector<std::uint32_t>>().size();

    Profile& profile = file.profile;
    profile.name = file.model.at("name").get<std::string>();
    profile.alpha = json.at("alpha").get<double>();
    profile.floor = json.at("floor").get<double>();
    profile.kernel = json.value("kernel", profile.kernel);
    auto const rows = json.at("weights").get<std::vector<std::vector<double>>>();
    if (file.granularity != "head" && file.granularity != "layer")
        return corrupt(path, "has granularity " + file.granularity + ", not layer or head");
    std::size_t const heads = file.granularity == "head" ? file.kv_heads : 1;
    if (rows.size() != layers)
        return corrupt(path, "has weights of " + std::to_string(rows.size()) +
                                 " layers, and its geometry has " + std::to_string(layers));
    for (auto const& row : rows) {
        if (row.size() != heads)
            return corrupt(path, "has a layer of " + std::to_string(row.size()) +
                                     " weights, not of " + std::to_string(heads));
        profile.weights.insert(profile.weights.end(), row.begin(), row.end());
    }
    profile.layers = static_cast<std::uint32_t>(layers);
    profile.heads = static_cast<std::uint32_t>(heads);
    return file;
}

}  // namespace

Result<ProfileFile> read_profile_file(std::filesystem::path const& path) {
    Json const json = DKV_TRY(read_json(path));
    try {
        auto file = DKV_TRY(from_json(path, json));
        DKV_TRY(check(file.profile));
        return file;
    } catch (Json::exception const& error) {  // The library's way of naming a wrong field.
        return corrupt(path, std::string("is malformed: ") + error.what());
    }
}

Result<Profile> read_profile(std::filesystem::path const& path) {
    return DKV_TRY(read_profile_file(path)).profile;
}

}  // namespace dkv
