// One request to an HTTP server on this machine or near it.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "protocol/base/result.h"

namespace dkv::llama {

struct ServerUrl {
    std::string text;  ///< As given: for messages.
    std::string host;
    int port = 0;
    std::string prefix;  ///< "" or "/v1", before every path.
};

/// "http://127.0.0.1:8080", "http://host:8080/prefix"; without a scheme it is http.
///
/// Errors: InvalidArgument; Unsupported for https.
Result<ServerUrl> parse_url(std::string const& text);

struct HttpReply {
    int status = 0;
    std::string body;
};

struct HttpRequest {
    char const* method = "GET";
    std::string path;  ///< "/slots/0?action=save"
    std::string body;  ///< JSON; empty: none.
    std::string api_key;
    std::chrono::milliseconds timeout{};  ///< Longest silence of the server.
};

/// Any status is a reply.
///
/// Errors: Unavailable when nothing listens there; DeadlineExceeded; Unavailable, too, for an
/// answer that breaks off or is longer than 64 MiB.
Result<HttpReply> ask(ServerUrl const& url, HttpRequest const& request);

}  // namespace dkv::llama
