// A running llama-server, as its HTTP API shows it: its slots, and what it does with their files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "cli/llama/http.h"

namespace dkv::llama {

/// Of GET /props.
struct ServerFacts {
    std::filesystem::path model_path;  ///< Empty: the server does not say.
    std::uint32_t slots = 0;
    std::string build;
};

/// Of GET /slots.
struct SlotState {
    bool busy = false;
    std::int64_t task = -1;  ///< Which request used it last; -1: none yet.
};

/// Of POST /slots/N?action=save and restore.
struct SlotFile {
    std::uint64_t tokens = 0;
    std::uint64_t bytes = 0;
    double ms = 0;
};

/// Of a completion's timings.
struct Prefill {
    std::uint64_t computed = 0;  ///< prompt_n: tokens of the prompt that were computed.
    std::uint64_t cached = 0;    ///< cache_n: tokens that the slot had.
};

/// Every error begins with the server's address.
class Server {
public:
    /// `key`: of a server with --api-key; empty: none.
    ///
    /// Errors: Unavailable, also while it loads its model; PermissionDenied; Unsupported for a
    /// server that is not a llama-server.
    static Result<Server> connect(ServerUrl url, std::string key, std::chrono::milliseconds wait);

    ServerFacts const& facts() const noexcept { return facts_; }

    /// Nothing where the server was started with --no-slots.
    /// Errors: NotFound for a slot that the server does not have: its own API counts around.
    Result<std::optional<SlotState>> slot(std::uint32_t id) const;

    /// Errors: Unsupported without --slot-save-path; what the server says.
    Result<SlotFile> save(std::uint32_t id, std::string const& name) const;
    /// Errors: likewise. The server has emptied the slot when it refuses a file.
    Result<SlotFile> restore(std::uint32_t id, std::string const& name) const;

    /// A prompt of these tokens in that slot, with one token generated. The slot has all of them
    /// afterwards.
    Result<Prefill> prefill(std::uint32_t id, std::span<std::int32_t const> tokens) const;

private:
    Server(ServerUrl url, std::string key, std::chrono::milliseconds wait)
        : url_(std::move(url)), key_(std::move(key)), wait_(wait) {}

    ServerUrl url_;
    std::string key_;
    std::chrono::milliseconds wait_;  // For what takes no time.
    ServerFacts facts_;
};

}  // namespace dkv::llama
