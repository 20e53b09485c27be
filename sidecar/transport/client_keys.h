// The controllers that a sidecar lets in over TCP: a folder of public keys, NAME.key each.
#pragma once

#include <filesystem>
#include <string>

#include "protocol/base/result.h"

namespace dkv {

class ClientKeys {
public:
    static constexpr std::size_t kKeysMax = 1024;

    /// Reads every key once, so that a folder that cannot work is refused at the start.
    ///
    /// Errors, each naming the file or the folder and what to do: NotFound when the folder is
    /// missing or no key in it; what read_public_key() and check_folder() say; LimitExceeded.
    static Result<ClientKeys> open(std::filesystem::path folder);

    /// The file name, without .key, of this key (Z85). Reads the folder as it is now: a key that
    /// was added is known, one that was removed is not.
    ///
    /// Errors: PermissionDenied when no file has the key; where a file could not be read, why.
    Result<std::string> name_of(std::string const& key) const;

private:
    explicit ClientKeys(std::filesystem::path folder) : folder_(std::move(folder)) {}

    std::filesystem::path folder_;
};

}  // namespace dkv
