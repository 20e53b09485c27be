#include "cli/saved/offline/profiles.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>

#include "sidecar/config/profile_file.h"
#include "sidecar/policy/policy.h"

namespace dkv::offline {
namespace {

namespace fs = std::filesystem;

constexpr char const* kFingerprint = "model_weights";  // As dkv.hf.save() writes it.

std::string variable(char const* name) {
    char const* const value = std::getenv(name);
    return value == nullptr ? "" : value;
}

fs::path cache_root() {
    if (auto const given = variable("DKV_CACHE"); !given.empty()) return given;
    return fs::path(variable("HOME")) / ".cache" / "dkv";
}

std::vector<fs::path> files_in(fs::path const& folder) {
    std::vector<fs::path> files;
    std::error_code ignored;
    for (auto const& entry : fs::directory_iterator(folder, ignored))
        if (entry.path().extension() == ".json") files.push_back(entry.path());
    std::ranges::sort(files);
    return files;
}

/// A folder of caches asks for the same profile again and again. Null: not a profile.
std::shared_ptr<ProfileFile const> read_once(fs::path const& path) {
    struct Known {
        fs::file_time_type written;
        std::shared_ptr<ProfileFile const> file;
    };
    static std::mutex mutex;
    static std::map<fs::path, Known> files;
    std::error_code error;
    auto const written = fs::last_write_time(path, error);
    std::scoped_lock const lock(mutex);
    auto const known = files.find(path);
    if (!error && known != files.end() && known->second.written == written)
        return known->second.file;
    auto file = read_profile_file(path);
    auto shared = file ? std::make_shared<ProfileFile const>(std::move(file.value())) : nullptr;
    files.insert_or_assign(path, Known{written, shared});
    return shared;
}

/// Files that are no profiles, or of another version, are passed over.
std::shared_ptr<Profile> find_profile(std::string const& weights) {
    for (fs::path const& path : profile_files()) {
        auto const file = read_once(path);
        if (!file || file->model.value("weights", "") != weights) continue;
        auto profile = std::make_shared<Profile>(file->profile);
        profile->name = path.stem().string();
        return profile;
    }
    return nullptr;
}

}  // namespace

std::vector<fs::path> profile_folders() {
    std::vector<fs::path> folders;
    std::istringstream given(variable("DKV_PROFILES"));
    for (std::string folder; std::getline(given, folder, ':');)
        if (!folder.empty()) folders.emplace_back(folder);
    folders.push_back(cache_root() / "profiles");
    std::error_code ignored;
    fs::path const prefix = fs::read_symlink("/proc/self/exe", ignored).parent_path().parent_path();
    folders.push_back(prefix / "share" / "dkv" / "profiles");
    folders.push_back(prefix / "profiles");  // A wheel's.
    return folders;
}

std::vector<fs::path> profile_files() {
    std::vector<fs::path> files;
    for (fs::path const& folder : profile_folders())
        std::ranges::move(files_in(folder), std::back_inserter(files));
    return files;
}

std::string weights_of(CacheFacts const& facts) {
    auto const weights = facts.provenance.find(kFingerprint);
    return weights == facts.provenance.end() ? "" : weights->second;
}

std::shared_ptr<Profile> own_profile(CacheFacts const& facts) {
    auto const weights = weights_of(facts);
    return weights.empty() ? nullptr : find_profile(weights);
}

PolicyRequest with_own_profile(PolicyRequest request, CacheFacts const& facts) {
    if (!request.profile && takes_own_profile(request.name)) request.profile = own_profile(facts);
    return request;
}

Result<PolicyParams> params_for(PolicyRequest const& request, CacheFacts const& facts) {
    return sized_for(DKV_TRY(resolve(with_own_profile(request, facts), facts.model)), facts);
}

Result<std::shared_ptr<Surrogate const>> in_order_of(CacheFacts const& facts,
                                                     Profile const& profile) {
    if (!facts.rope.order_known)
        return Error{ErrorCode::Unsupported,
                     "the profile's surrogate needs to know which dims of a key turn together, "
                     "which the file does not say: say --rope-theta THETA, and --rope-interleaved "
                     "where adjacent ones do; or --for this-question"};
    if (facts.stored && facts.stored->rotation_unknown)
        return Error{
            ErrorCode::Unsupported,
            "the profile's surrogate needs rows as the model has them, and llama.cpp files "
            "before GGSQ 4 do not say whether quantised rows are rotated: save the cache "
            "with a newer llama.cpp, or take knorm or keydiff"};
    if (profile.surrogate->interleaved == facts.rope.interleaved) return profile.surrogate;
    return std::make_shared<Surrogate const>(reordered(*profile.surrogate, facts.rope.interleaved));
}

Result<PolicyParams> sized_for(PolicyParams const& params, CacheFacts const& facts) {
    PolicyParams result = DKV_TRY(sized(params, facts.geometry, facts.prompt_tokens));
    if (!foresees(result)) return result;
    auto profile = std::make_shared<Profile>(*result.profile);
    profile->surrogate = DKV_TRY(in_order_of(facts, *profile));
    result.profile = std::move(profile);
    return result;
}

}  // namespace dkv::offline
