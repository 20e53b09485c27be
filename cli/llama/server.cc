#include "cli/llama/server.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include <fmt/format.h>

namespace dkv::llama {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;

constexpr milliseconds kWorkMax = std::chrono::minutes(10);  // Gigabytes to and from a disk.
constexpr std::size_t kShownMax = 200;

/// What the server says of its refusal; else the beginning of the answer.
std::string message_of(HttpReply const& reply) {
    auto const json = Json::parse(reply.body, nullptr, false);
    if (json.is_object() && json.contains("error") && json["error"].is_object() &&
        json["error"].contains("message") && json["error"]["message"].is_string())
        return json["error"]["message"].get<std::string>();
    return reply.body.substr(0, kShownMax);
}

Error refusal(ServerUrl const& url, HttpRequest const& request, HttpReply const& reply) {
    auto const said = message_of(reply);
    if (reply.status == 401 || reply.status == 403)
        return {ErrorCode::PermissionDenied,
                url.text + ": the server wants its API key: put it into LLAMA_API_KEY"};
    if (reply.status == 503)
        return {ErrorCode::Unavailable, fmt::format("{}: not ready: {}", url.text, said)};
    if (reply.status == 501 && request.path.starts_with("/slots/"))
        return {ErrorCode::Unsupported,
                url.text + ": the server does not save slots: start it with --slot-save-path"};
    return {reply.status == 404 ? ErrorCode::Unsupported : ErrorCode::BadState,
            fmt::format("{}: {} {} was refused: {} {}", url.text, request.method, request.path,
                        reply.status, said)};
}

/// The answer to a request that succeeded.
Result<Json> answer(ServerUrl const& url, HttpRequest const& request) {
    auto const reply = DKV_TRY(ask(url, request));
    if (reply.status != 200) return refusal(url, request, reply);
    auto json = Json::parse(reply.body, nullptr, false);
    if (json.is_discarded())
        return Error{ErrorCode::Unsupported,
                     fmt::format("{}: the answer to {} is not JSON; is this a llama-server?",
                                 url.text, request.path)};
    return json;
}

/// A count that a llama-server's answer has.
Result<std::uint64_t> count(Json const& json, char const* key, ServerUrl const& url) {
    if (!json.is_object() || !json.contains(key) || !json[key].is_number_unsigned())
        return Error{ErrorCode::Unsupported,
                     fmt::format("{}: the answer has no {}: this llama-server is not supported",
                                 url.text, key)};
    return json[key].get<std::uint64_t>();
}

Result<SlotFile> slot_file(
    Json const& json, char const* tokens, char const* bytes, char const* ms, ServerUrl const& url) {
    SlotFile file{.tokens = DKV_TRY(count(json, tokens, url)), .bytes = 0, .ms = 0};
    file.bytes = DKV_TRY(count(json, bytes, url));
    auto const timings = json.find("timings");
    if (timings != json.end() && timings->is_object() && timings->contains(ms) &&
        (*timings)[ms].is_number())
        file.ms = (*timings)[ms].get<double>();
    return file;
}

HttpRequest action(char const* what, std::uint32_t id, std::string const& name) {
    return {.method = "POST",
            .path = fmt::format("/slots/{}?action={}", id, what),
            .body = Json{{"filename", name}}.dump(-1, ' ', false, Json::error_handler_t::replace),
            .api_key = {},
            .timeout = kWorkMax};
}

}  // namespace

Result<Server> Server::connect(ServerUrl url, std::string key, milliseconds wait) {
    Server server(std::move(url), std::move(key), wait);
    auto const props = DKV_TRY(answer(
        server.url_,
        {.method = "GET", .path = "/props", .body = {}, .api_key = server.key_, .timeout = wait}));
    server.facts_.slots =
        static_cast<std::uint32_t>(DKV_TRY(count(props, "total_slots", server.url_)));
    auto const text = [&](char const* key_of) {
        return props.contains(key_of) && props[key_of].is_string()
                   ? props[key_of].get<std::string>()
                   : std::string();
    };
    server.facts_.model_path = text("model_path");
    server.facts_.build = text("build_info");
    return server;
}

Result<std::optional<SlotState>> Server::slot(std::uint32_t id) const {
    if (id >= facts_.slots)
        return Error{ErrorCode::NotFound, fmt::format("{}: no slot {}: the server has {}, from 0",
                                                      url_.text, id, facts_.slots)};
    HttpRequest const request{
        .method = "GET", .path = "/slots", .body = {}, .api_key = key_, .timeout = wait_};
    auto const reply = DKV_TRY(ask(url_, request));
    if (reply.status == 501) return std::optional<SlotState>();
    if (reply.status != 200) return refusal(url_, request, reply);
    auto const json = Json::parse(reply.body, nullptr, false);
    for (auto const& one : json.is_array() ? json : Json::array())
        if (one.is_object() && one.contains("id") && one["id"] == id) {
            SlotState state{.busy = one.contains("is_processing") && one["is_processing"] == true};
            if (one.contains("id_task") && one["id_task"].is_number_integer())
                state.task = one["id_task"].get<std::int64_t>();
            return std::optional(state);
        }
    return Error{ErrorCode::Unsupported,
                 fmt::format("{}: GET /slots does not name slot {}", url_.text, id)};
}

Result<SlotFile> Server::save(std::uint32_t id, std::string const& name) const {
    auto request = action("save", id, name);
    request.api_key = key_;
    return slot_file(DKV_TRY(answer(url_, request)), "n_saved", "n_written", "save_ms", url_);
}

Result<SlotFile> Server::restore(std::uint32_t id, std::string const& name) const {
    auto request = action("restore", id, name);
    request.api_key = key_;
    return slot_file(DKV_TRY(answer(url_, request)), "n_restored", "n_read", "restore_ms", url_);
}

Result<Prefill> Server::prefill(std::uint32_t id, std::span<std::int32_t const> tokens) const {
    Json const body{{"prompt", tokens}, {"n_predict", 1},   {"cache_prompt", true},
                    {"id_slot", id},    {"temperature", 0}, {"stream", false}};
    auto const json = DKV_TRY(answer(url_, {.method = "POST",
                                            .path = "/completion",
                                            .body = body.dump(),
                                            .api_key = key_,
                                            .timeout = kWorkMax}));
    auto const timings = json.is_object() ? json.find("timings") : json.end();
    if (timings == json.end())
        return Error{ErrorCode::Unsupported,
                     url_.text +
                         ": a completion's answer has no timings: this llama-server is "
                         "not supported"};
    Prefill prefill{.computed = DKV_TRY(count(*timings, "prompt_n", url_)), .cached = 0};
    prefill.cached = DKV_TRY(count(*timings, "cache_n", url_));
    return prefill;
}

}  // namespace dkv::llama
