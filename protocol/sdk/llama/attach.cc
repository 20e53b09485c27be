#include "protocol/sdk/llama/attach.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <string_view>

#include "protocol/base/elements.h"

namespace dkv::llama {
namespace {

constexpr std::uint32_t kWindowDefault = 64;
constexpr std::uint32_t kTimeoutDefaultMs = 10'000;
constexpr std::uint32_t kSidecarMs = 1'000;  // One that runs answers in a few.
// Their queries are seen as they are scored: post-RoPE, and the logits' scale is 1/sqrt(head_dim).
constexpr std::array<std::string_view, 4> kArchitectures{"llama", "qwen2", "qwen3", "gemma3"};
constexpr std::int32_t kGemma3With27B = 62;  // Layers, by which llama.cpp knows it and its scale.

Error bad_state(std::string message) {
    return {ErrorCode::BadState, std::move(message)};
}

std::string named(std::int32_t sequence) {
    return "sequence " + std::to_string(sequence);
}

Result<void> check_sequence(Library const& library,
                            llama_context const* context,
                            std::int32_t sequence) {
    auto const most = library.llama_n_seq_max(context);
    if (sequence >= 0 && static_cast<std::uint32_t>(sequence) < most) return {};
    return invalid("the context has no " + named(sequence) + ": its n_seq_max is " +
                   std::to_string(most));
}

template <std::size_t bytes>
void put_text(char (&target)[bytes], std::string_view text) {
    auto const length = std::min(text.size(), bytes - 1);
    std::memcpy(target, text.data(), length);
    target[length] = '\0';
}

Result<void> check_model(Library const& library, llama_model const* model) {
    if (library.llama_model_is_recurrent(model))
        return unsupported("the model is recurrent: it has no keys to cut");
    if (library.llama_model_is_hybrid(model))
        return unsupported("the model is a hybrid: recurrent layers beside attention");
    if (library.llama_model_is_diffusion(model))
        return unsupported("the model is a diffusion model: every token sees all others");
    auto const architecture = library.metadata(model, "general.architecture");
    if (std::ranges::find(kArchitectures, architecture) == kArchitectures.end())
        return unsupported("the model's architecture is " + architecture +
                           ": known are llama, qwen2, qwen3 and gemma3");
    if (architecture == "gemma3" && library.llama_model_n_layer(model) == kGemma3With27B)
        return unsupported(
            "Gemma 3 27B scales its queries by another number than 1/sqrt(head_dim)");
    for (char const* const key : {".attention.scale", ".attn_logit_softcapping"})
        if (!library.metadata(model, architecture + key).empty())
            return unsupported("the model sets " + architecture + key);
    return {};
}

/// Errors: Unsupported, for a head that is not a share of the embedding and is not said either.
Result<ModelShape> shape_of(Library const& library, llama_model const* model) {
    ModelShape shape{.layers = static_cast<std::uint32_t>(library.llama_model_n_layer(model)),
                     .q_heads = static_cast<std::uint32_t>(library.llama_model_n_head(model)),
                     .kv_heads = static_cast<std::uint32_t>(library.llama_model_n_head_kv(model))};
    auto const length = library.metadata(
        model, library.metadata(model, "general.architecture") + ".attention.key_length");
    auto const embedding = static_cast<std::uint32_t>(library.llama_model_n_embd(model));
    if (!length.empty())
        shape.head_dim = static_cast<std::uint32_t>(std::atoi(length.c_str()));
    else if (shape.q_heads > 0 && embedding % shape.q_heads == 0)
        shape.head_dim = embedding / shape.q_heads;
    DKV_TRY(check(Geometry{.layers = shape.layers,
                           .q_heads = shape.q_heads,
                           .kv_heads = shape.kv_heads,
                           .head_dim = shape.head_dim,
                           .dtype = Dtype::F16}));
    return shape;
}

}  // namespace

Attachment::Attachment(Library library, dkv_llama_options const& options)
    : library_(library),
      watch_(library_, options.window_max == 0 ? kWindowDefault : options.window_max),
      cells_(library_),
      model_(options.model == nullptr ? "" : options.model),
      timeout_ms_(options.timeout_ms == 0 ? kTimeoutDefaultMs : options.timeout_ms),
      user_eval_(options.eval),
      user_data_(options.eval_data) {
    if (options.endpoint != nullptr) endpoint_ = options.endpoint;
    report_.struct_bytes = sizeof report_;
}

bool Attachment::eval(ggml_tensor* tensor, bool ask) {
    if (ask) {
        user_wants_ = user_eval_ != nullptr && user_eval_(tensor, true, user_data_);
        if (watch_.is_watching()) cells_.note(tensor);
        return user_wants_ || watch_.wants(tensor);
    }
    watch_.take(tensor);
    // llama.cpp asks about each node before it computes it, so the answer is of this one.
    return user_wants_ ? user_eval_(tensor, false, user_data_) : true;
}

Result<void> Attachment::attach(llama_context* context) {
    if (context_ != nullptr) return bad_state("a context is attached already");
    auto const* const model = library_.llama_get_model(context);
    DKV_TRY(check_model(library_, model));
    is_interleaved_ = library_.metadata(model, "general.architecture") == "llama";
    shape_ = DKV_TRY(shape_of(library_, model));
    is_sliding_ = library_.llama_model_n_swa(model) > 0;
    watch_.set_shape(shape_.layers, shape_.q_heads, is_sliding_ ? shape_.kv_heads : 0,
                     shape_.head_dim);
    cells_.set_layers(shape_.layers);
    context_ = context;
    return {};
}

Result<void> Attachment::begin(std::int32_t sequence) {
    if (context_ == nullptr) return bad_state("no context is attached");
    DKV_TRY(check_sequence(library_, context_, sequence));
    auto const last = library_.llama_memory_seq_pos_max(memory(context_), sequence);
    sequence_ = sequence;
    session_.reset();
    positions_.clear();
    watch_.begin(static_cast<std::uint32_t>(last + 1));
    return {};
}

void Attachment::leave_whole(std::string_view reason) {
    begin_report();
    watch_.end();
    put_text(report_.reason, reason);
}

void Attachment::begin_report() {
    ++report_.prompts;
    report_.compressed = 0;
    report_.tokens = report_.cells = report_.layers = report_.layers_left_alone = 0;
    report_.bytes_before = report_.bytes_after = report_.bytes_returned = 0;
    report_.session = 0;
    put_text(report_.policy, "");
    put_text(report_.reason, "");
}

Result<void> Attachment::compress(dkv_policy const* policy, llama_context* target) {
    begin_report();
    auto outcome = try_compress(policy, target);
    watch_.end();
    if (!outcome) {
        session_.reset();
        positions_.clear();
        put_text(report_.reason, outcome.error().message);
    } else if (report_.compressed == 0) {
        put_text(report_.reason, "the policy keeps this prompt whole");
    } else {
        ++report_.prompts_compressed;
    }
    return outcome;
}

Result<void> Attachment::try_compress(dkv_policy const* policy, llama_context* target) {
    if (!watch_.is_watching()) return bad_state("begin was not called for this prompt");
    if (target == nullptr)
        target = context_;
    else
        DKV_TRY(check_target(target));
    std::uint64_t const bytes = library_.llama_state_seq_get_size(context_, sequence_);
    auto const tokens = static_cast<std::uint32_t>(
        library_.llama_memory_seq_pos_max(memory(context_), sequence_) + 1);
    report_.tokens = tokens;
    report_.bytes_before = bytes;
    DKV_TRY(watch_.check_seen(tokens));

    Geometry widest{shape_.layers, shape_.q_heads, shape_.kv_heads, shape_.head_dim, Dtype::F32};
    std::uint64_t const queries_offset =
        (bytes + 63) / 64 * 64 + (dense_bytes(shape_, tokens) + 63) / 64 * 64;
    dkv_arena* made = nullptr;
    DKV_TRY(checked(dkv_arena_create(queries_offset + queries_bytes(widest, watch_.rows_max()),
                                     DKV_ARENA_DEFAULT, &made)));
    Arena const arena(made);
    auto* const base = static_cast<std::byte*>(dkv_arena_base(arena.get()));
    if (library_.llama_state_seq_get_data(context_, reinterpret_cast<std::uint8_t*>(base), bytes,
                                          sequence_) != bytes)
        return bad_state("llama.cpp did not give the state of " + named(sequence_));
    std::span<std::byte> const whole(base, bytes);
    auto const rows = DKV_TRY(read_state(whole, shape_));
    if (rows.tokens() != tokens)
        return unsupported(named(sequence_) + " has " + std::to_string(rows.tokens()) +
                           " cells and " + std::to_string(tokens) + " positions");
    if (rows.is_quantised()) rows.lay_dense(base);
    DKV_TRY(open_engine(rows.geometry));
    auto layers = DKV_TRY(model_layers(rows, arena.get()));
    auto plan = DKV_TRY(make_plan(
        engine_.get(), {arena.get(), queries_offset, rows, watch_, layers, is_interleaved_},
        {policy, timeout_ms_}, report_.session));
    put_text(report_.policy, plan.policy);
    if (plan.session == nullptr) return {};

    // Any KV head's positions will do for the cells: ascending, below the next, the window last.
    auto const kept = smaller_state(whole, rows, plan.positions, plan.cells);
    DKV_TRY(adopt(whole, kept, target));
    layers_ = std::move(layers);
    Returned returned;
    if (target == context_) returned = give_back(kept, tokens);
    if (returned.bytes > 0 && !stores(context_, kept)) {
        DKV_TRY(adopt(whole, kept, context_));
        returned = {};
    }
    report_.compressed = 1;
    report_.cells = plan.cells;
    report_.layers = rows.geometry.layers;
    report_.layers_left_alone = rows.layout.sliding.layers;
    report_.bytes_after = kept.size();
    report_.bytes_returned = returned.bytes;
    positions_ = std::move(plan.positions);
    session_ = std::move(plan.session);
    if (target == context_) say_returned(returned);
    return {};
}

/// A sidecar that does not hear of it changes nothing: the cells are in place.
void Attachment::say_returned(Returned const& returned) {
    std::uint64_t const dropped = report_.bytes_before - report_.bytes_after;
    std::uint64_t const of_dropped = std::min(returned.bytes_before, dropped);
    // Where the system took nothing back, cells are free for other tokens.
    if (of_dropped < dropped) dkv_session_returned_to_pool(session_.get(), dropped - of_dropped);
    static_cast<void>(
        adopted(returned.bytes, report_.bytes_before, report_.bytes_before - of_dropped));
}

Returned Attachment::give_back(std::span<std::byte const> kept, std::uint32_t tokens) const noexcept
    try {
    auto const layout = parse_llama(kept, false);
    if (!layout || has_other_cells()) return {};
    return cells_.give_back({kept, layout.value(), layers_, tokens});
} catch (...) {
    return {};
}

bool Attachment::has_other_cells() const {
    std::uint32_t const sequences = library_.llama_n_seq_max(context_);
    // Of a model with sliding windows llama.cpp tells the positions that are in the windows, not
    // those in full layers.
    if (is_sliding_ && sequences > 1) return true;
    for (std::uint32_t other = 0; other < sequences; ++other) {
        auto const id = static_cast<std::int32_t>(other);
        if (id != sequence_ && library_.llama_memory_seq_pos_max(memory(context_), id) >= 0)
            return true;
    }
    return false;
}

/// A state does not name its layers: the last token's keys, which were seen, tell full layers from
/// sliding ones.
Result<std::vector<std::uint32_t>> Attachment::model_layers(StateRows const& rows,
                                                            dkv_arena* arena) const {
    std::vector<std::uint32_t> all(shape_.layers);
    std::iota(all.begin(), all.end(), 0U);
    if (!is_sliding_) return all;
    Geometry const& geometry = rows.geometry;
    std::vector<float> last;
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
        auto const keys = rows.keys(arena, layer);
        auto const* at = static_cast<std::byte const*>(dkv_arena_base(arena)) + keys.offset +
                         (rows.tokens() - 1ULL) * keys.token_stride * bytes_of(geometry.dtype);
        for (std::uint32_t i = 0; i < geometry.kv_heads * geometry.head_dim; ++i)
            last.push_back(
                load_f32(at + std::uint64_t{i} * bytes_of(geometry.dtype), geometry.dtype));
    }
    return watch_.layers_of(last);
}

Result<void> Attachment::check_target(llama_context* target) const {
    if (target == context_) return invalid("target is the attached context: pass NULL for it");
    if (library_.llama_get_model(target) != library_.llama_get_model(context_))
        return invalid("target is a context of another model");
    DKV_TRY(check_sequence(library_, target, sequence_));
    if (library_.llama_memory_seq_pos_max(memory(target), sequence_) >= 0)
        return bad_state(named(sequence_) + " of target has cells already");
    return {};
}

Result<void> Attachment::open_engine(Geometry const& geometry) {
    if (engine_ != nullptr && engine_geometry_ != geometry) engine_.reset();
    if (engine_ == nullptr) {
        auto const name = std::string("llama.cpp ") + library_.llama_version();
        dkv_engine_options options{};
        options.struct_bytes = sizeof options;
        options.endpoint = endpoint_ ? endpoint_->c_str() : nullptr;
        options.engine = name.c_str();
        options.model = model_.c_str();
        options.geometry = {geometry.layers, geometry.q_heads, geometry.kv_heads, geometry.head_dim,
                            static_cast<dkv_dtype>(geometry.dtype)};
        options.timeout_ms = timeout_ms_;
        dkv_engine* opened = nullptr;
        DKV_TRY(checked(dkv_engine_open(&options, &opened)));
        engine_.reset(opened);
        waits_ = true;
        engine_geometry_ = geometry;
    }
    // One that did not come is not waited for by the next prompts.
    auto const waited =
        dkv_engine_wait_attached(engine_.get(), waits_ ? std::min(timeout_ms_, kSidecarMs) : 0);
    waits_ = waited == DKV_OK;
    return checked(waited);
}

Result<void> Attachment::put_state(llama_context* context, std::span<std::byte const> state) {
    auto const* const bytes = reinterpret_cast<std::uint8_t const*>(state.data());
    if (library_.llama_state_seq_set_data(context, bytes, state.size(), sequence_) != state.size())
        return Error{ErrorCode::LimitExceeded,
                     "llama.cpp does not take a state of " + std::to_string(state.size()) +
                         " bytes: the context has too few cells, another KV type, "
                         "or, without kv_unified, another n_seq_max"};
    // A state has no version that could be checked.
    if (!stores(context, state))
        return bad_state("llama.cpp did not store the state that it was given");
    return {};
}

bool Attachment::stores(llama_context* context, std::span<std::byte const> state) const noexcept
    try {
    std::vector<std::byte> seen(library_.llama_state_seq_get_size(context, sequence_));
    auto const got = library_.llama_state_seq_get_data(
        context, reinterpret_cast<std::uint8_t*>(seen.data()), seen.size(), sequence_);
    return got == seen.size() && same_rows(seen, state);
} catch (...) {  // Out of memory: it was not seen.
    return false;
}

Result<void> Attachment::adopt(std::span<std::byte const> whole,
                               std::span<std::byte const> kept,
                               llama_context* target) {
    library_.llama_memory_seq_rm(memory(target), sequence_, -1, -1);
    auto put = put_state(target, kept);
    if (put) return {};
    library_.llama_memory_seq_rm(memory(target), sequence_, -1, -1);
    if (target == context_)
        if (auto const restored = put_state(target, whole); !restored)
            return Error{ErrorCode::Internal,
                         named(sequence_) +
                             " is lost, decode its prompt again: " + restored.error().message};
    return put;
}

Result<void> Attachment::adopted(std::uint64_t returned, std::uint64_t peak, std::uint64_t final) {
    if (session_ == nullptr) return bad_state("no prompt was compressed");
    return checked(dkv_session_adopted(session_.get(), returned, peak, final));
}

Result<void> Attachment::positions(std::uint32_t layer,
                                   std::uint32_t head,
                                   std::int32_t* out) const {
    auto const found = std::ranges::find(layers_, layer);
    if (positions_.empty() || found == layers_.end() || head >= shape_.kv_heads)
        return Error{ErrorCode::NotFound, "there are no kept positions of layer " +
                                              std::to_string(layer) + ", head " +
                                              std::to_string(head)};
    auto const index = static_cast<std::size_t>(found - layers_.begin());
    auto const begin = (index * shape_.kv_heads + head) * report_.cells;
    std::copy_n(positions_.begin() + static_cast<std::ptrdiff_t>(begin), report_.cells, out);
    return {};
}

}  // namespace dkv::llama
