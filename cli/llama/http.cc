#include "cli/llama/http.h"

#include <algorithm>
#include <charconv>
#include <civetweb.h>
#include <memory>

#include <fmt/format.h>

namespace dkv::llama {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kBodyBytesMax = std::size_t{64} << 20;

struct Closed {
    void operator()(mg_connection* connection) const { mg_close_connection(connection); }
};
using Connection = std::unique_ptr<mg_connection, Closed>;

Error wrong_url(std::string const& text) {
    return {ErrorCode::InvalidArgument,
            "'" + text + "' is not a server's address, for example http://127.0.0.1:8080"};
}

std::string head_of(ServerUrl const& url, HttpRequest const& request) {
    auto head = fmt::format("{} {}{} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n",
                            request.method, url.prefix, request.path, url.host, url.port);
    if (!request.api_key.empty()) head += "Authorization: Bearer " + request.api_key + "\r\n";
    if (!request.body.empty()) head += "Content-Type: application/json\r\n";
    return head + fmt::format("Content-Length: {}\r\n\r\n", request.body.size());
}

Result<void> send(mg_connection* connection, std::string_view bytes, ServerUrl const& url) {
    while (!bytes.empty()) {
        int const sent = mg_write(connection, bytes.data(), bytes.size());
        if (sent <= 0)
            return Error{ErrorCode::Unavailable,
                         url.text + ": the connection broke while the request was sent"};
        bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
    return {};
}

Result<std::string> read_body(mg_connection* connection, ServerUrl const& url) {
    std::string body;
    auto const expected = mg_get_response_info(connection)->content_length;
    char piece[16 << 10];
    for (;;) {
        int const got = mg_read(connection, piece, sizeof piece);
        if (got <= 0) break;
        body.append(piece, static_cast<std::size_t>(got));
        if (body.size() > kBodyBytesMax)
            return Error{ErrorCode::Unavailable, url.text + ": the answer is longer than 64 MiB"};
    }
    if (expected >= 0 && body.size() != static_cast<std::size_t>(expected))
        return Error{ErrorCode::Unavailable,
                     fmt::format("{}: the answer breaks off after {} of {} bytes", url.text,
                                 body.size(), expected)};
    return body;
}

}  // namespace

Result<ServerUrl> parse_url(std::string const& text) {
    std::string_view rest = text;
    if (rest.starts_with("https://"))
        return Error{ErrorCode::Unsupported,
                     text + ": https is not supported: give the server's own http address"};
    if (rest.starts_with("http://")) rest.remove_prefix(7);
    ServerUrl url{.text = text, .host = {}, .port = 80, .prefix = {}};
    auto const slash = std::min(rest.find('/'), rest.size());
    url.prefix = rest.substr(slash);
    while (url.prefix.ends_with('/'))
        url.prefix.pop_back();
    rest = rest.substr(0, slash);
    if (auto const colon = rest.rfind(':'); colon != rest.npos) {
        auto const digits = rest.substr(colon + 1);
        auto const* const end = digits.data() + digits.size();
        auto const read = std::from_chars(digits.data(), end, url.port);
        if (read.ec != std::errc() || read.ptr != end || url.port < 1 || url.port > 65'535)
            return wrong_url(text);
        rest = rest.substr(0, colon);
    }
    url.host = rest;
    bool const odd = text.find_first_of(" \t\r\n?#@") != text.npos;
    if (url.host.empty() || odd || text.find("://", 7) != text.npos) return wrong_url(text);
    return url;
}

Result<HttpReply> ask(ServerUrl const& url, HttpRequest const& request) {
    char problem[256] = "";
    Connection const connection(
        mg_connect_client(url.host.c_str(), url.port, 0, problem, sizeof problem));
    if (connection == nullptr)
        return Error{ErrorCode::Unavailable,
                     fmt::format("{}: no server answers there: {}", url.text, problem)};
    DKV_TRY(send(connection.get(), head_of(url, request) + request.body, url));
    auto const begin = Clock::now();
    int const timeout_ms = static_cast<int>(request.timeout.count());
    if (mg_get_response(connection.get(), problem, sizeof problem, timeout_ms) < 0) {
        if (Clock::now() - begin >= request.timeout)
            return Error{ErrorCode::DeadlineExceeded,
                         fmt::format("{}: no answer to {} {} within {} ms", url.text,
                                     request.method, request.path, timeout_ms)};
        return Error{ErrorCode::Unavailable,
                     fmt::format("{}: no HTTP answer to {} {}: {}", url.text, request.method,
                                 request.path, problem)};
    }
    HttpReply reply{.status = mg_get_response_info(connection.get())->status_code, .body = {}};
    reply.body = DKV_TRY(read_body(connection.get(), url));
    return reply;
}

}  // namespace dkv::llama
