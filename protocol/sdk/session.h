// One prompt's compression as the engine sees it. Belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"
#include "protocol/sdk/dkv.h"
#include "protocol/sdk/engine.h"
#include "protocol/sdk/layers.h"

namespace dkv::sdk {

/// What an abandoned or finished session leaves to be said.
struct SessionTotals {
    std::uint64_t bytes_full = 0;
    std::uint64_t bytes_kept = 0;
    std::uint64_t bytes_block_table = 0;
    std::uint64_t busy_ns = 0;
};

/// A layer's rows with their arenas resolved.
struct LayerRows {
    dkv_layer_ready ready{};
    std::shared_ptr<Arena> keys;
    std::shared_ptr<Arena> values;
    std::shared_ptr<Arena> queries;  // Null: none.
    std::shared_ptr<Arena> scores;   // Null: none.
};

/// A queue of the engine's device behind which a layer's rows are written.
struct Stream {
    void* handle = nullptr;  // cudaStream_t; null is the default stream.
};

class Session {
public:
    /// Everything within the engine's deadline. Errors: Connection::call's, and the sidecar's.
    static Result<std::unique_ptr<Session>> open(std::shared_ptr<Engine> const& engine,
                                                 dkv_session_options const& options);
    ~Session();
    Session(Session const&) = delete;
    Session& operator=(Session const&) = delete;

    Engine const& engine() const noexcept { return *engine_; }
    std::uint64_t id() const noexcept { return id_; }
    bool is_compressing() const noexcept { return opened_.compress; }
    bool is_committed() const noexcept { return layers_->is_committed(); }
    std::uint32_t window() const noexcept { return opened_.window; }
    wire::PolicyT const& policy() const noexcept { return *opened_.policy; }

    /// Without a stream the rows are written by now.
    Result<void> layer_ready(LayerRows const& rows, std::optional<Stream> stream = {});
    LayerEvent poll(milliseconds timeout);
    /// Errors: why the session was abandoned, DeadlineExceeded being one of the reasons; BadState
    /// while layers are missing, and then it goes on.
    Result<SessionTotals> finish(milliseconds timeout);
    Result<dkv_layer_view> layer(std::uint32_t layer) const { return layers_->view(layer); }
    Result<std::shared_ptr<Arena>> take_arena(dkv_layer_form form);
    Result<void> adopted(std::uint64_t returned, std::uint64_t peak, std::uint64_t left);
    void returned_to_pool(std::uint64_t bytes) noexcept { bytes_pool_ = bytes; }
    /// None when the session was not abandoned. Looks at what came meanwhile.
    std::optional<Error> const& failure();
    void close(std::string const& reason);

private:
    Session(std::shared_ptr<Engine> engine,
            dkv_session_options const& options,
            Attachment attachment);
    static Result<std::unique_ptr<Session>> attempt(std::shared_ptr<Engine> const& engine,
                                                    dkv_session_options const& options,
                                                    Deadline deadline);
    Result<void> start(dkv_policy const* wish, Deadline deadline);
    Result<void> lend_buffers(Deadline deadline);
    Result<void> check_place(std::uint32_t layer, Arena const& arena) const;
    std::span<float const> sink_logits(dkv_layer_ready const& ready) const;
    Result<void> check(LayerRows const& rows) const;
    Result<void> put_fence(Stream stream, wire::LayerReadyT& message);
    /// Applies what has come; abandons the session when that was bad.
    void look();
    Result<void> apply(wire::BodyUnion const& message);
    void abandon(Error why);
    bool is_over() const noexcept { return failure_ || layers_->is_committed(); }

    std::shared_ptr<Engine> const engine_;
    Attachment const attachment_;
    std::uint64_t const id_;
    std::uint32_t const prompt_tokens_;
    bool const progressive_;
    std::uint32_t const row_multiple_;
    std::uint32_t const row_offset_;
    bool const uniform_;
    bool const rope_interleaved_;
    std::shared_ptr<Inbox> const inbox_;
    wire::SessionOpenedT opened_;
    std::uint64_t bytes_pool_ = 0;  ///< Told with the rest by adopted().
    std::shared_ptr<Arena> staging_;
    std::shared_ptr<Arena> destination_;
    bool staging_taken_ = false;
    bool destination_taken_ = false;
    std::optional<Layers> layers_;
    SessionTotals totals_;
    std::optional<Error> failure_;
    bool closed_ = false;
};

}  // namespace dkv::sdk
