// One prompt's session with the sidecar: what each layer and KV head keeps, at one count for all.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "protocol/sdk/llama/eval_watch.h"
#include "protocol/sdk/llama/state_rows.h"

namespace dkv::llama {

struct ArenaDeleter {
    void operator()(dkv_arena* arena) const noexcept { dkv_arena_destroy(arena); }
};
using Arena = std::unique_ptr<dkv_arena, ArenaDeleter>;

struct SessionDeleter {
    void operator()(dkv_session* session) const noexcept { dkv_session_close(session, nullptr); }
};
using Session = std::unique_ptr<dkv_session, SessionDeleter>;

/// The Error of a dkv.h function that failed.
Error error_of(dkv_status status);
/// Errors: what `status` says.
Result<void> checked(dkv_status status);

/// Where a prompt's state and its queries are.
struct Source {
    dkv_arena* arena;  ///< The state, then room for each layer's queries.
    std::uint64_t queries_offset;
    StateRows const& rows;
    EvalWatch const& watch;
    std::span<std::uint32_t const> layers;  ///< The state's, as the model numbers them.
    bool rope_interleaved;                  ///< Dims (2i, 2i + 1) of a key turn together.
};

struct Wish {
    dkv_policy const* policy;  ///< nullptr: the sidecar's choice.
    std::uint32_t timeout_ms;
};

struct Plan {
    Session session;  ///< Empty: the prompt is kept whole.
    std::string policy;
    std::uint32_t cells = 0;              ///< Rows in each layer and KV head.
    std::vector<std::int32_t> positions;  ///< [layers, kv_heads, cells]
};

/// The bytes of all layers' queries.
std::uint64_t queries_bytes(Geometry const& geometry, std::uint32_t rows) noexcept;

/// session_id: written once the session is open, also where the plan then fails.
/// Errors: those of dkv_session_open and dkv_session_finish; Unsupported: more query rows than are
/// remembered, or a sidecar that does not know `uniform`; BadState: more than were decoded.
Result<Plan> make_plan(dkv_engine* engine,
                       Source const& source,
                       Wish const& wish,
                       std::uint64_t& session_id);

}  // namespace dkv::llama
