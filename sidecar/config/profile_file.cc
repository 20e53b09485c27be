#include "sidecar/config/profile_file.h"

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <set>
#include <vector>

#include "protocol/base/bf16.h"

namespace dkv {
namespace {

using Json = nlohmann::ordered_json;

constexpr char const* kFormat = "dkv-profile";
constexpr int kVersion = 1;
constexpr int kSurrogateVersion = 1;
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

/// Two bytes of every weight, the lower one first, as four characters.
Result<std::vector<float>> weights_of_hex(std::filesystem::path const& path,
                                          std::vector<std::string> const& layers) {
    std::vector<float> weights;
    for (std::string const& hex : layers)
        for (std::size_t i = 0; i < hex.size(); i += 4) {
            std::string const digits = hex.substr(i + 2, 2) + hex.substr(i, 2);
            std::uint16_t bits = 0;
            auto const end = digits.data() + digits.size();
            if (digits.size() != 4 || std::from_chars(digits.data(), end, bits, 16).ptr != end)
                return corrupt(path, "has surrogate weights that are not hexadecimal bf16");
            weights.push_back(f32_from_bf16(bits));
        }
    return weights;
}

Result<std::shared_ptr<Surrogate const>> surrogate_from(std::filesystem::path const& path,
                                                        Json const& json,
                                                        Json const& geometry) {
    if (json.value("version", Json()) != kSurrogateVersion)
        return Error{ErrorCode::Unsupported, path.string() + " has a surrogate of version " +
                                                 json.value("version", Json()).dump() +
                                                 "; this build reads version 1"};
    auto surrogate = std::make_shared<Surrogate>();
    surrogate->kv_heads = geometry.at("kv_heads").get<std::uint32_t>();
    surrogate->head_dim = geometry.at("head_dim").get<std::uint32_t>();
    if (json.at("features").get<std::uint64_t>() != surrogate->features())
        return corrupt(path, "has a surrogate of " + json.at("features").dump() +
                                 " features, and its geometry takes " +
                                 std::to_string(surrogate->features()));
    Json const& rope = json.at("rope");
    surrogate->frequencies = rope.at("frequencies").get<std::vector<float>>();
    surrogate->interleaved = rope.at("interleaved").get<bool>();
    surrogate->weights =
        DKV_TRY(weights_of_hex(path, json.at("weights").get<std::vector<std::string>>()));
    return std::shared_ptr<Surrogate const>(std::move(surrogate));
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
    if (json.contains("surrogate") && !json.at("surrogate").is_null()) {
        file.surrogate = json.at("surrogate");
        file.surrogate.erase("weights");
        profile.surrogate = DKV_TRY(surrogate_from(path, json.at("surrogate"), geometry));
    }
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
