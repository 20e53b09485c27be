// CURVE keys in files: the pair that a process proves itself with, and the public keys of others.
// The files are those of ZeroMQ's own tools (czmq's zcert, pyzmq's zmq.auth): NAME.key has the
// public key, NAME.key_secret both.
#pragma once

#include <filesystem>
#include <string>

#include "protocol/base/result.h"

namespace dkv::keys {

/// Text as ZeroMQ writes keys (Z85): 40 characters for 32 bytes.
struct KeyPair {
    std::string public_key;
    std::string secret_key;
};

inline constexpr char const* kPublicFile = "dkv.key";
inline constexpr char const* kSecretFile = "dkv.key_secret";

/// $XDG_CONFIG_HOME/dkv, else ~/.config/dkv. Errors: NotFound when neither variable says.
Result<std::filesystem::path> folder();

/// Errors: Unsupported when this machine's libzmq was built without CURVE.
Result<void> require_curve();

/// Errors: Unsupported, as above.
Result<KeyPair> make_pair();

/// Makes dkv.key_secret (mode 0600) and dkv.key in `folder`, and `folder` (mode 0700) where it is
/// missing. Errors: AlreadyExists, naming the file, when one of them is there; Io.
Result<void> write_pair(std::filesystem::path const& folder, KeyPair const& pair);

/// Errors, each naming the file: NotFound; PermissionDenied when it belongs to another user or
/// others can read it; InvalidArgument when it has no pair, or halves of two pairs.
Result<KeyPair> read_pair(std::filesystem::path const& file);

/// Errors, each naming the file: NotFound; PermissionDenied when it belongs to another user or
/// others can write to it; InvalidArgument when it has no public key, or has a secret one.
Result<std::string> read_public_key(std::filesystem::path const& file);

/// Of a folder of public keys. Errors: NotFound; PermissionDenied when it belongs to another user
/// or others can write to it; InvalidArgument when it is a file.
Result<void> check_folder(std::filesystem::path const& folder);

}  // namespace dkv::keys
