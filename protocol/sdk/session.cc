#include "protocol/sdk/session.h"

#include <algorithm>
#include <utility>

#include "protocol/base/sink_logits.h"
#include "protocol/sdk/convert.h"

namespace dkv::sdk {
namespace {

// Far beyond any model, and small enough that no size computed from it overflows.
constexpr std::uint32_t kPromptTokensMax = 1U << 26U;

}  // namespace

Result<std::unique_ptr<Session>> Session::open(std::shared_ptr<Engine> const& engine,
                                               dkv_session_options const& options) {
    if (options.prompt_tokens == 0 || options.prompt_tokens > kPromptTokensMax)
        return Error{ErrorCode::InvalidArgument,
                     "prompt_tokens is " + std::to_string(options.prompt_tokens) + ", not in 1 … " +
                         std::to_string(kPromptTokensMax)};
    auto const deadline = engine->deadline();
    auto session = attempt(engine, options, deadline);
    // A sidecar may have forgotten this engine, and only the first request finds that out.
    if (!session && session.error().code == ErrorCode::UnknownInstance)
        session = attempt(engine, options, deadline);
    if (session)
        engine->count_opened();
    else
        engine->count_failed(session.error());
    return session;
}

Result<std::unique_ptr<Session>> Session::attempt(std::shared_ptr<Engine> const& engine,
                                                  dkv_session_options const& options,
                                                  Deadline deadline) {
    auto attachment = DKV_TRY(engine->connection().attach(deadline));
    std::unique_ptr<Session> session(new Session(engine, options, std::move(attachment)));
    if (auto started = session->start(options.policy, deadline); !started) {
        session->close(started.error().message);
        return std::move(started).error();
    }
    return session;
}

Session::Session(std::shared_ptr<Engine> engine,
                 dkv_session_options const& options,
                 Attachment attachment)
    : engine_(std::move(engine)),
      attachment_(std::move(attachment)),
      id_(random_id()),
      prompt_tokens_(options.prompt_tokens),
      progressive_(options.progressive != 0),
      row_multiple_(options.row_multiple),
      row_offset_(options.row_offset),
      uniform_(options.uniform != 0),
      rope_interleaved_(options.rope_interleaved != 0),
      inbox_(std::make_shared<Inbox>(session_words_max(engine_->options().geometry))) {}

Session::~Session() {
    close({});
}

Result<void> Session::start(dkv_policy const* wish, Deadline deadline) {
    auto& connection = engine_->connection();
    wire::OpenSessionT message;
    message.instance = engine_->instance();
    message.session = id_;
    message.prompt_tokens = prompt_tokens_;
    message.progressive = progressive_;
    message.row_multiple = row_multiple_;
    message.row_offset = row_offset_;
    message.uniform = uniform_;
    message.rope_interleaved = rope_interleaved_;
    if (wish != nullptr) message.policy = std::make_unique<wire::PolicyT>(DKV_TRY(wire_of(*wish)));
    connection.open_inbox(id_, attachment_.epoch, inbox_);
    opened_ = DKV_TRY(expect<wire::SessionOpenedT>(
        connection.call(attachment_.epoch, body_of(std::move(message)), deadline)));
    DKV_TRY(check_opened(opened_, engine_->options().geometry, prompt_tokens_));
    if (opened_.compress) DKV_TRY(lend_buffers(deadline));
    layers_.emplace(LayersSpec{.geometry = engine_->options().geometry,
                               .prompt_tokens = prompt_tokens_,
                               .stage_rows = opened_.stage_rows,
                               .progressive = progressive_,
                               .opened_at = Clock::now(),
                               .staging = staging_,
                               .destination = destination_});
    return {};
}

Result<void> Session::lend_buffers(Deadline deadline) {
    wire::BindBuffersT message;
    message.instance = engine_->instance();
    message.session = id_;
    if (opened_.staging_bytes > 0) {
        staging_ = DKV_TRY(engine_->make_arena(opened_.staging_bytes));
        message.staging_region =
            DKV_TRY(engine_->region_of(staging_, true, attachment_.epoch, deadline));
    }
    // Whole pages, as the system gives them anyway: any element size divides that.
    constexpr std::uint64_t kPageBytes = 4096;
    auto const pages = (opened_.destination_bytes + kPageBytes - 1) / kPageBytes;
    destination_ = DKV_TRY(engine_->make_arena(pages * kPageBytes));
    message.destination_region =
        DKV_TRY(engine_->region_of(destination_, true, attachment_.epoch, deadline));
    DKV_TRY(expect<wire::DoneT>(
        engine_->connection().call(attachment_.epoch, body_of(message), deadline)));
    return {};
}

Result<void> Session::check_place(std::uint32_t layer, Arena const& arena) const {
    auto const& device = engine_->options().device;
    auto const text = "layer " + std::to_string(layer) + " has rows in an arena ";
    if (arena.device() != device)
        return Error{ErrorCode::InvalidArgument, text + "on " + std::string(arena.device()) +
                                                     ", and this engine is on " + device};
    if (!arena.is_there()) return Error{ErrorCode::InvalidArgument, text + "that was released"};
    return {};
}

std::span<float const> Session::sink_logits(dkv_layer_ready const& ready) const {
    if (ready.sink_logits == nullptr) return {};
    return {ready.sink_logits, engine_->options().geometry.q_heads};
}

Result<void> Session::check(LayerRows const& rows) const {
    auto const& ready = rows.ready;
    auto const invalid = [&](std::string const& what) {
        return Error{ErrorCode::InvalidArgument, "layer " + std::to_string(ready.layer) + what};
    };
    if (!opened_.compress)
        return Error{ErrorCode::BadState, "this prompt is kept whole: no layer is wanted"};
    if (ready.layer != layers_->reported())
        return Error{ErrorCode::BadState, "layer " + std::to_string(ready.layer) +
                                              " was reported, layer " +
                                              std::to_string(layers_->reported()) + " is next"};
    auto const& geometry = engine_->options().geometry;
    if (ready.layer >= geometry.layers)
        return invalid(" of a model of " + std::to_string(geometry.layers));
    if (ready.queries != nullptr && ready.scores != nullptr)
        return invalid(" has both queries and scores");
    if (ready.queries == nullptr && ready.scores == nullptr && opened_.window > 0)
        return invalid(" has neither queries nor scores");
    if (!(ready.scale >= 0) || !(ready.softcap >= 0))
        return invalid(" has a negative scale or softcap");
    if (auto const checked = check_sink_logits(sink_logits(ready), geometry.q_heads); !checked)
        return invalid(": " + checked.error().message);

    for (auto const& arena : {rows.keys, rows.values, rows.queries, rows.scores})
        if (arena) DKV_TRY(check_place(ready.layer, *arena));

    dkv_rows wanted{};
    wanted.heads = geometry.kv_heads;
    wanted.tokens = prompt_tokens_;
    wanted.head_dim = geometry.head_dim;
    wanted.dtype = static_cast<dkv_dtype>(geometry.dtype);
    if (ready.blocks != nullptr) wanted.tokens = ready.keys.tokens;
    DKV_TRY(check_rows("keys", ready.keys, wanted, rows.keys->bytes()));
    DKV_TRY(check_rows("values", ready.values, wanted, rows.values->bytes()));
    if (ready.blocks != nullptr) {
        DKV_TRY(
            check_blocks("keys", ready.keys, *ready.blocks, prompt_tokens_, rows.keys->bytes()));
        DKV_TRY(check_blocks("values", ready.values, *ready.blocks, prompt_tokens_,
                             rows.values->bytes()));
        wanted.tokens = prompt_tokens_;
    }
    if (ready.scores != nullptr) {
        wanted.heads =
            ready.scores->heads == geometry.q_heads ? geometry.q_heads : geometry.kv_heads;
        wanted.head_dim = 1;
        wanted.dtype = DKV_F32;
        DKV_TRY(check_rows("scores", *ready.scores, wanted, rows.scores->bytes()));
    } else if (ready.queries != nullptr) {
        wanted.heads = geometry.q_heads;
        wanted.tokens = opened_.window;
        DKV_TRY(check_rows("queries", *ready.queries, wanted, rows.queries->bytes()));
    }
    return {};
}

Result<void> Session::layer_ready(LayerRows const& rows, std::optional<Stream> stream) {
    look();
    if (failure_)
        return Error{ErrorCode::BadState, "the session was abandoned: " + failure_->message};
    DKV_TRY(check(rows));

    wire::LayerReadyT message;
    message.instance = engine_->instance();
    message.session = id_;
    message.layer = rows.ready.layer;
    message.scale = rows.ready.scale;
    message.softcap = rows.ready.softcap;
    auto const sinks = sink_logits(rows.ready);
    message.sink_logits.assign(sinks.begin(), sinks.end());
    auto const deadline = engine_->deadline();
    auto const lend = [&](dkv_rows const& given, std::shared_ptr<Arena> const& arena,
                          std::unique_ptr<wire::RowsT>& field) -> Result<void> {
        auto region = engine_->region_of(arena, false, attachment_.epoch, deadline);
        if (!region) {
            abandon(region.error());
            return std::move(region).error();
        }
        field = std::make_unique<wire::RowsT>(wire_of(given, region.value()));
        return {};
    };
    auto keys = rows.ready.keys;
    auto values = rows.ready.values;
    if (auto const* const blocks = rows.ready.blocks; blocks != nullptr && blocks->count > 1) {
        message.blocks = std::make_unique<wire::BlocksT>(wire_of(*blocks));
    } else if (blocks != nullptr) {
        // Rows of block 0 and of as many tokens as the prompt has are nothing that a sidecar of
        // before would refuse.
        keys = in_block(keys, *blocks, prompt_tokens_);
        values = in_block(values, *blocks, prompt_tokens_);
    }
    DKV_TRY(lend(keys, rows.keys, message.keys));
    DKV_TRY(lend(values, rows.values, message.values));
    if (rows.queries) DKV_TRY(lend(*rows.ready.queries, rows.queries, message.queries));
    if (rows.scores) DKV_TRY(lend(*rows.ready.scores, rows.scores, message.scores));
    if (stream) DKV_TRY(put_fence(*stream, message));

    layers_->report();
    engine_->connection().post(attachment_.epoch, body_of(std::move(message)),
                               [inbox = inbox_](Reply reply) {
                                   auto done = expect<wire::DoneT>(std::move(reply));
                                   if (!done) inbox->end(std::move(done).error());
                               });
    return {};
}

Result<void> Session::put_fence(Stream stream, wire::LayerReadyT& message) {
    auto const fence = engine_->fence(stream.handle, attachment_.epoch, engine_->deadline());
    if (!fence) {
        abandon(fence.error());
        return fence.error();
    }
    message.event = fence.value().event;
    message.timeline_region = fence.value().timeline_region;
    message.timeline_offset = fence.value().timeline_offset;
    message.timeline_value = fence.value().timeline_value;
    return {};
}

void Session::look() {
    if (is_over() || !opened_.compress) {
        inbox_->take();  // Late news of what is decided.
        return;
    }
    // First the end, then the messages: those that came before an end are all there by now.
    auto ended = inbox_->ended();
    for (auto const& message : inbox_->take()) {
        if (auto applied = apply(message); !applied) return abandon(std::move(applied).error());
        if (is_over()) return;
    }
    if (ended) abandon(std::move(*ended));
}

Result<void> Session::apply(wire::BodyUnion const& message) {
    if (auto const* progress = message.AsLayerProgress()) return layers_->apply(*progress);
    if (auto const* failed = message.AsSessionFailed()) return error_of(*failed->failure);
    if (auto const* committed = message.AsCommitted()) {
        DKV_TRY(layers_->apply(*committed));
        totals_ = {committed->bytes_full, committed->bytes_kept, committed->bytes_block_table,
                   committed->busy_ns};
    }
    return {};  // Planned: the lengths come again with each packed layer.
}

void Session::abandon(Error why) {
    layers_->abandon();
    engine_->count_failed(why);
    failure_ = std::move(why);
    close(failure_->message);
}

LayerEvent Session::poll(milliseconds timeout) {
    auto const deadline = Clock::now() + timeout;
    while (true) {
        look();
        if (layers_->has_event()) return layers_->pop();
        if (is_over() || !opened_.compress || !inbox_->wait(deadline)) return {};
    }
}

Result<SessionTotals> Session::finish(milliseconds timeout) {
    auto const begin = Clock::now();
    auto const deadline = begin + timeout;
    auto const layers = engine_->options().geometry.layers;
    look();
    if (opened_.compress && !is_over() && layers_->reported() < layers)
        return Error{ErrorCode::BadState, std::to_string(layers_->reported()) + " of " +
                                              std::to_string(layers) + " layers were reported"};
    while (opened_.compress && !is_over()) {
        if (!inbox_->wait(deadline)) {
            engine_->connection().run_out(begin);
            abandon(Error{
                ErrorCode::DeadlineExceeded,
                "the sidecar did not commit within " + std::to_string(timeout.count()) + " ms"});
        }
        look();
    }
    if (failure_) return *failure_;
    return totals_;
}

Result<std::shared_ptr<Arena>> Session::take_arena(dkv_layer_form form) {
    bool const packed = form == DKV_LAYER_PACKED;
    auto const& arena = packed ? destination_ : staging_;
    bool& taken = packed ? destination_taken_ : staging_taken_;
    char const* const what = packed ? "destination" : "staging";
    if ((!packed && form != DKV_LAYER_STAGED) || !arena)
        return Error{ErrorCode::BadState, std::string("there is no ") +
                                              (form == DKV_LAYER_FULL ? "such" : what) + " arena"};
    if (std::exchange(taken, true))
        return Error{ErrorCode::BadState, std::string("the ") + what + " arena was taken before"};
    return arena;
}

Result<void> Session::adopted(std::uint64_t returned, std::uint64_t peak, std::uint64_t left) {
    if (!layers_->is_committed())
        return Error{ErrorCode::BadState, "nothing was committed that could have been adopted"};
    wire::AdoptedT message;
    message.instance = engine_->instance();
    message.session = id_;
    message.bytes_returned = returned;
    message.bytes_peak = peak;
    message.bytes_final = left;
    message.bytes_pool = bytes_pool_;
    engine_->connection().post(attachment_.epoch, body_of(message));
    return {};
}

std::optional<Error> const& Session::failure() {
    look();
    return failure_;
}

void Session::close(std::string const& reason) {
    if (std::exchange(closed_, true)) return;
    engine_->connection().close_inbox(id_);
    wire::CloseSessionT message;
    message.instance = engine_->instance();
    message.session = id_;
    message.reason = reason;
    engine_->connection().post(attachment_.epoch, body_of(std::move(message)));
}

}  // namespace dkv::sdk
