#include "protocol/base/endpoint.h"

#include <cstdlib>
#include <string_view>
#include <unistd.h>

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

std::string ipc_path(std::string const& endpoint) {
    return endpoint.starts_with(kIpc) ? endpoint.substr(kIpc.size()) : std::string();
}

}  // namespace dkv
