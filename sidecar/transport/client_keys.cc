#include "sidecar/transport/client_keys.h"

#include <optional>
#include <vector>

#include "protocol/keys/key_files.h"

namespace dkv {
namespace {

Result<std::vector<std::filesystem::path>> files_of(std::filesystem::path const& folder) {
    DKV_TRY(keys::check_folder(folder));
    std::vector<std::filesystem::path> files;
    std::error_code failed;
    std::filesystem::directory_iterator all(folder, failed);
    for (; !failed && all != std::filesystem::directory_iterator(); all.increment(failed)) {
        if (all->path().extension() != ".key") continue;
        if (files.size() == ClientKeys::kKeysMax)
            return Error{ErrorCode::LimitExceeded,
                         "folder '" + folder.string() + "' has more than " +
                             std::to_string(ClientKeys::kKeysMax) + " keys, which is the limit"};
        files.push_back(all->path());
    }
    if (failed)
        return Error{ErrorCode::Io,
                     "cannot read folder '" + folder.string() + "': " + failed.message()};
    return files;
}

}  // namespace

Result<ClientKeys> ClientKeys::open(std::filesystem::path folder) {
    auto const to_do = ": copy the dkv.key of each controller there, as NAME.key (dkv keys)";
    auto const files = files_of(folder);
    if (!files && files.error().code == ErrorCode::NotFound)
        return Error{ErrorCode::NotFound, "no controller is let in: there is no folder '" +
                                              folder.string() + "'" + to_do};
    if (!files) return files.error();
    for (auto const& file : files.value())
        DKV_TRY(keys::read_public_key(file));
    if (files.value().empty())
        return Error{ErrorCode::NotFound,
                     "no controller is let in, no key is in '" + folder.string() + "'" + to_do};
    return ClientKeys(std::move(folder));
}

Result<std::string> ClientKeys::name_of(std::string const& key) const {
    std::optional<Error> unreadable;
    for (auto const& file : DKV_TRY(files_of(folder_))) {
        auto const known = keys::read_public_key(file);
        if (known && known.value() == key) return file.stem().string();
        if (!known && !unreadable) unreadable = known.error();
    }
    if (unreadable) return *unreadable;
    return Error{ErrorCode::PermissionDenied,
                 "key " + key + " is not in '" + folder_.string() + "'"};
}

}  // namespace dkv
