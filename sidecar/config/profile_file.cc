#include "sidecar/config/profile_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

namespace dkv {
namespace {

using Json = nlohmann::json;

constexpr char const* kFormat = "dkv-profile";
constexpr int kVersion = 1;
constexpr std::uintmax_t kBytesMax = 16U << 20U;

Error corrupt(std::filesystem::path const& path, std::string const& why) {
    return Error{ErrorCode::CorruptData, path.string() + " " + why};
}

Result<Json> read_json(std::filesystem::path const& path) {
    std::error_code failure;
    auto const bytes = std::filesystem::file_size(path, failure);
    if (!failure && bytes > kBytesMax)
        return corrupt(path, "has " + std::to_string(bytes) + " bytes, too many for a profile");
    std::ifstream file(path);
    if (failure || !file)
        return Error{ErrorCode::Io, path.string() + " cannot be read: " +
                                        (failure ? failure.message() : std::strerror(errno))};
    Json json = Json::parse(file, nullptr, false);
    if (json.is_discarded()) return corrupt(path, "is not JSON");
    if (!json.is_object() || json.value("format", Json()) != kFormat)
        return corrupt(path, "is not a dkv-profile file");
    if (json.value("version", Json()) != kVersion)
        return Error{ErrorCode::Unsupported, path.string() + " has version " +
                                                 json.value("version", Json()).dump() +
                                                 "; this build reads version 1"};
    return json;
}

}  // namespace

Result<Profile> read_profile(std::filesystem::path const& path) {
    Json const json = DKV_TRY(read_json(path));
    Profile profile;
    try {
        profile.name = json.at("model").at("name").get<std::string>();
        profile.alpha = json.at("alpha").get<double>();
        profile.floor = json.at("floor").get<double>();
        auto const rows = json.at("weights").get<std::vector<std::vector<double>>>();
        profile.layers = static_cast<std::uint32_t>(rows.size());
        profile.heads = rows.empty() ? 0 : static_cast<std::uint32_t>(rows.front().size());
        for (auto const& row : rows) {
            if (row.size() != profile.heads) return corrupt(path, "has layers of unlike widths");
            profile.weights.insert(profile.weights.end(), row.begin(), row.end());
        }
    } catch (Json::exception const& error) {  // The library's way of naming a wrong field.
        return corrupt(path, std::string("is malformed: ") + error.what());
    }
    DKV_TRY(check(profile));
    return profile;
}

}  // namespace dkv
