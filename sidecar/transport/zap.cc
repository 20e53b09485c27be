#include "sidecar/transport/zap.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "sidecar/transport/transport.h"

namespace dkv {
namespace {

constexpr std::size_t kKeyBytes = 32;
constexpr std::size_t kKeyChars = 40;

/// Version, request, domain, address, identity, mechanism, credentials.
enum Frame : std::size_t { kZapVersion, kRequest, kDomain, kAddress, kIdentity, kMechanism, kKey };

Result<std::string> admit(ClientKeys const& clients, std::vector<std::string> const& frames) {
    if (frames.size() != kKey + 1 || frames[kDomain] != kZapDomain ||
        frames[kMechanism] != "CURVE" || frames[kKey].size() != kKeyBytes)
        return Error{ErrorCode::PermissionDenied, "it did not use CURVE"};
    std::string key(kKeyChars + 1, '\0');
    zmq_z85_encode(key.data(), reinterpret_cast<std::uint8_t const*>(frames[kKey].data()),
                   kKeyBytes);
    key.resize(kKeyChars);
    return clients.name_of(key);
}

}  // namespace

Zap::Zap(zmq::context_t& context, ClientKeys clients)
    : socket_(context, zmq::socket_type::rep), clients_(std::move(clients)) {
    socket_.set(zmq::sockopt::linger, 0);
    socket_.bind("inproc://zeromq.zap.01");
}

void Zap::answer_all() {
    zmq::message_t frame;
    while (socket_.recv(frame, zmq::recv_flags::dontwait)) {
        std::vector<std::string> frames{frame.to_string()};
        while (frame.more()) {
            static_cast<void>(socket_.recv(frame));
            frames.push_back(frame.to_string());
        }
        frames.resize(std::max<std::size_t>(frames.size(), kRequest + 1));
        auto const name = admit(clients_, frames);
        if (name)
            log_.say(
                spdlog::level::info, "a controller connects", steady_ms(),
                fmt::format("controller '{}' connects from {}", name.value(), frames[kAddress]));
        else
            log_.say(spdlog::level::warn, "a controller is not let in", steady_ms(),
                     fmt::format("a controller at {} is not let in: {}",
                                 frames.size() > kAddress ? frames[kAddress] : "?",
                                 name.error().message));
        // The reason stays here: who is not let in learns that it is not.
        std::string const user = name ? name.value() : "";
        for (std::string_view const part :
             {std::string_view(frames[kZapVersion]), std::string_view(frames[kRequest]),
              name ? std::string_view("200") : std::string_view("400"),
              name ? std::string_view() : std::string_view("not let in"), std::string_view(user)})
            socket_.send(zmq::buffer(part), zmq::send_flags::sndmore);
        socket_.send(zmq::message_t(), zmq::send_flags::none);
    }
}

}  // namespace dkv
