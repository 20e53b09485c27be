#include "protocol/base/endpoint.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <unistd.h>

#include <sys/stat.h>

#include "protocol/base/peer.h"

namespace dkv {
namespace {

constexpr std::string_view kIpc = "ipc://";
constexpr std::size_t kSocketPathMax = 107;  // sizeof(sockaddr_un::sun_path) - 1

}  // namespace

std::string default_endpoint() {
    if (char const* const set = std::getenv("DKV_ENDPOINT"); set != nullptr && *set != '\0')
        return set;
    if (char const* const run = std::getenv("XDG_RUNTIME_DIR"); run != nullptr && *run != '\0')
        return std::string(kIpc) + run + "/dkv/dkvd.sock";
    return std::string(kIpc) + "/tmp/dkv-" + std::to_string(::getuid()) + "/dkvd.sock";
}

Result<void> check_endpoint(std::string const& endpoint) {
    auto const wrong = [&](std::string const& why) {
        return Error{ErrorCode::InvalidArgument, "endpoint '" + endpoint + "' " + why};
    };
    if (endpoint.starts_with(kIpc)) {
        auto const path = ipc_path(endpoint);
        if (path.empty()) return wrong("names no path");
        if (path.size() > kSocketPathMax)
            return wrong("has a path of " + std::to_string(path.size()) +
                         " bytes; a Unix socket takes " + std::to_string(kSocketPathMax));
        return {};
    }
    if (endpoint.starts_with("inproc://") && endpoint.size() > 9) return {};
    if (endpoint.starts_with("tcp://") && endpoint.rfind(':') > 6) return {};
    return wrong("is neither ipc://PATH, tcp://HOST:PORT nor inproc://NAME");
}

Result<void> check_socket_place(std::string const& endpoint) {
    auto const path = ipc_path(endpoint);
    if (path.empty() || path.front() == '@') return {};
    auto const slash = path.rfind('/');
    auto const folder = slash == std::string::npos
                            ? std::string(".")
                            : path.substr(0, std::max<std::size_t>(slash, 1));
    auto const denied = [](std::string const& what, std::string const& why) {
        return Error{ErrorCode::PermissionDenied, what + " " + why};
    };
    struct stat info {};
    // Also of a link itself: another user's would lead to a place of their choice.
    for (auto const look : {&::lstat, &::stat}) {
        if (look(folder.c_str(), &info) != 0) return {};
        if (!is_trusted(info.st_uid))
            return denied("folder '" + folder + "'",
                          "belongs to user " + std::to_string(info.st_uid) +
                              ": a sidecar of this user listens in a folder of its own");
    }
    bool const sticky = (info.st_mode & S_ISVTX) != 0;
    if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0 && !sticky)
        return denied("folder '" + folder + "'",
                      "can be written to by others, who could put a socket of theirs there");
    if (::lstat(path.c_str(), &info) == 0 && !is_trusted(info.st_uid))
        return denied("socket '" + path + "'", "belongs to user " + std::to_string(info.st_uid) +
                                                   ", not to this user or root");
    return {};
}

std::string ipc_path(std::string const& endpoint) {
    return endpoint.starts_with(kIpc) ? endpoint.substr(kIpc.size()) : std::string();
}

}  // namespace dkv
