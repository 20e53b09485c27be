#include "cli/saved/formats/write_cache.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "cli/saved/formats/llama_write.h"
#include "cli/saved/formats/row_stream.h"
#include "cli/saved/formats/turn_keys.h"
#include "cli/saved/formats/write_plan.h"
#include "protocol/base/sink_logits.h"

namespace dkv {
namespace {

template <class T>
std::span<std::byte const> bytes_in(std::vector<T> const& values) {
    return std::as_bytes(std::span(values));
}

/// What refines the rows of a layer that are to be, in their order.
class RestOfRows {
public:
    /// `refined` outlives what follows.
    void begin(std::span<std::int32_t const> refined) {
        left_ = refined;
        row_ = 0;
        packed_.clear();
    }

    /// The layer's next rows.
    Result<void> add(QuantisedRows const& form, std::span<std::byte const> rows, Dtype dtype) {
        std::size_t const bytes = bytes_of(dtype) * form.head_dim;
        auto const end = row_ + static_cast<std::int64_t>(rows.size() / bytes);
        for (; !left_.empty() && left_.front() < end; left_ = left_.subspan(1)) {
            auto const at = static_cast<std::size_t>(left_.front() - row_) * bytes;
            DKV_TRY(form.pack_rest(rows.subspan(at, bytes), dtype, packed_));
        }
        row_ = end;
        return {};
    }

    std::vector<std::byte> take() { return std::exchange(packed_, {}); }

private:
    std::span<std::int32_t const> left_;
    std::int64_t row_ = 0;
    std::vector<std::byte> packed_;
};

/// One file of safetensors, layer by layer.
class ContainerWriter {
public:
    ContainerWriter(WriteRequest const& request,
                    FilePlan const& plan,
                    SafetensorsWriter writer,
                    RowStream stream,
                    std::optional<KeyTurner> turner,
                    KeyReorder reorder)
        : request_(request),
          plan_(plan),
          writer_(std::move(writer)),
          stream_(std::move(stream)),
          turner_(std::move(turner)),
          reorder_(std::move(reorder)) {}

    Result<std::uint64_t> write() {
        CacheFacts const& facts = request_.facts;
        // Of these formats, dkv's alone has them.
        if (request_.format == FileFormat::Dkv) DKV_TRY(writer_.append(bytes_in(facts.tokens)));
        for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer) {
            auto const rows = DKV_TRY(request_.layer(layer));
            DKV_TRY(write_layer(layer, rows));
        }
        if (request_.before_commit) DKV_TRY(request_.before_commit());
        DKV_TRY(writer_.commit());
        return writer_.file_bytes();
    }

private:
    Result<void> write_layer(std::uint32_t layer, RowsToWrite const& rows) {
        CacheFacts const& facts = request_.facts;
        auto const lengths =
            std::span(facts.lengths)
                .subspan(std::size_t{layer} * facts.geometry.kv_heads, facts.geometry.kv_heads);
        auto const heads = DKV_TRY(rows_of_heads(rows, lengths, layer));
        DKV_TRY(check_refined(rows.refined, lengths, layer));
        auto const shape = layer_shape(lengths, facts.prompt_tokens);
        if (shape == LayerShape::Ragged) DKV_TRY(write_offsets(lengths));
        if (plan_.with_positions && shape != LayerShape::Whole) DKV_TRY(write_positions(heads));
        rest_.begin(rows.refined);
        for (std::uint32_t head = 0; head < heads.size(); ++head)
            DKV_TRY(write_keys(rows.source.keys_of(head), heads[head]));
        auto const keys_rest = rest_.take();
        rest_.begin(rows.refined);
        for (std::uint32_t head = 0; head < heads.size(); ++head)
            DKV_TRY(stream_.send(rows.source.values_of(head), heads[head], rows_));
        DKV_TRY(writer_.append(bytes_in(rows.refined)));
        DKV_TRY(writer_.append(keys_rest));
        DKV_TRY(writer_.append(rest_.take()));
        if (plan_.with_counts) DKV_TRY(write_count(lengths.front()));
        if (!plan_.with_queries) return {};
        DKV_TRY(write_queries(layer, rows.source.queries));
        DKV_TRY(writer_.append(std::as_bytes(facts.sinks(layer))));
        return write_scores(rows.source.scores);
    }

    /// As many as the header says, ascending, of the layer.
    Result<void> check_refined(std::span<std::int32_t const> refined,
                               std::span<std::uint32_t const> lengths,
                               std::uint32_t layer) const {
        std::size_t const due = request_.refined.empty() ? 0 : request_.refined[layer];
        auto const rows = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
        bool const fits = refined.empty() || (refined.front() >= 0 && refined.back() < rows);
        if (refined.size() == due && fits &&
            std::ranges::adjacent_find(refined, std::greater_equal()) == refined.end())
            return {};
        return invalid(fmt::format("layer {}: {} rows to refine, not {} ascending ones of {}",
                                   layer, refined.size(), due, rows));
    }

    Result<void> write_scores(RowsView const& scores) {
        if (!request_.facts.has_scores) return {};
        for (std::uint32_t head = 0; head < scores.heads; ++head)
            DKV_TRY(writer_.append({static_cast<std::byte const*>(scores.row(head, 0)),
                                    scores.tokens * sizeof(float)}));
        return {};
    }

    Result<void> write_offsets(std::span<std::uint32_t const> lengths) {
        std::vector<std::int32_t> offsets{0};
        for (std::uint32_t const length : lengths)
            offsets.push_back(offsets.back() + static_cast<std::int32_t>(length));
        return writer_.append(bytes_in(offsets));
    }

    Result<void> write_count(std::uint32_t rows) {
        return writer_.append(bytes_in(std::vector{static_cast<std::int32_t>(rows)}));
    }

    Result<void> write_positions(std::vector<HeadRows> const& heads) {
        for (HeadRows const& head : heads) {
            std::vector<std::int32_t> positions(head.count);
            for (std::uint32_t row = 0; row < head.count; ++row)
                positions[row] = head.position(row);
            DKV_TRY(writer_.append(bytes_in(positions)));
        }
        return {};
    }

    Result<void> write_keys(RowsView const& keys, HeadRows const& head) {
        if (!turner_) return send_reordered(keys, head, rows_);
        std::uint64_t const row_bytes = keys.row_bytes();
        return stream_.send(
            keys, head, [&](std::span<std::byte const> rows, std::uint32_t first) -> Result<void> {
                turned_.assign(rows.begin(), rows.end());
                for (std::uint64_t at = 0; at < turned_.size(); at += row_bytes) {
                    auto const row = first + static_cast<std::uint32_t>(at / row_bytes);
                    turner_->turn(std::span(turned_).subspan(at, row_bytes),
                                  std::int64_t{row} - head.position(row));
                }
                reorder_.apply(turned_);
                return writer_.append(turned_);
            });
    }

    Result<void> send_reordered(RowsView const& rows,
                                HeadRows const& head,
                                RowStream::Sink const& to) {
        if (!reorder_.is_needed()) return stream_.send(rows, head, to);
        return stream_.send(rows, head, [&](std::span<std::byte const> sent, std::uint32_t first) {
            turned_.assign(sent.begin(), sent.end());
            reorder_.apply(turned_);
            return to(turned_, first);
        });
    }

    /// K or V, as the file has them.
    Result<void> append_rows(std::span<std::byte const> rows) {
        if (!plan_.quantised) return writer_.append(rows);
        packed_.clear();
        auto const dtype = request_.facts.geometry.dtype;
        DKV_TRY(plan_.quantised->pack(rows, dtype, packed_));
        if (plan_.quantised->refined) DKV_TRY(rest_.add(*plan_.quantised, rows, dtype));
        return writer_.append(packed_);
    }

    /// The last query_rows of them.
    Result<void> write_queries(std::uint32_t layer, RowsView const& queries) {
        std::uint32_t const rows = request_.facts.query_rows;
        if (rows == 0) return {};
        if (queries.data == nullptr || queries.tokens < rows ||
            queries.heads != request_.facts.geometry.q_heads)
            return Error{
                ErrorCode::InvalidArgument,
                fmt::format("layer {} has {} queries of {} heads, not {} of {}", layer,
                            queries.tokens, queries.heads, rows, request_.facts.geometry.q_heads)};
        for (std::uint32_t head = 0; head < queries.heads; ++head) {
            RowsView one = queries;
            one.data = queries.row(head, queries.tokens - rows);
            one.heads = 1;
            one.tokens = rows;
            DKV_TRY(send_reordered(one, {.count = rows, .all = true, .ids = {}, .at = {}}, plain_));
        }
        return {};
    }

    WriteRequest const& request_;
    FilePlan const& plan_;
    SafetensorsWriter writer_;
    RowStream stream_;
    std::optional<KeyTurner> turner_;
    KeyReorder reorder_;
    std::vector<std::byte> turned_;
    std::vector<std::byte> packed_;
    RestOfRows rest_;
    RowStream::Sink plain_ = [this](std::span<std::byte const> rows, std::uint32_t /*first*/) {
        return writer_.append(rows);
    };
    RowStream::Sink rows_ = [this](std::span<std::byte const> rows, std::uint32_t /*first*/) {
        return append_rows(rows);
    };
};

/// Nothing when every row is where it will be counted to be.
Result<std::optional<KeyTurner>> turner_of(WriteRequest const& request, FilePlan const& plan) {
    CacheFacts const& facts = request.facts;
    bool const whole = std::ranges::all_of(
        facts.lengths, [&](std::uint32_t rows) { return rows == facts.prompt_tokens; });
    if (!plan.from_zero || whole) return std::optional<KeyTurner>();
    auto turner = KeyTurner::create(facts.rope, facts.geometry.head_dim, facts.geometry.dtype);
    if (!turner)
        return Error{turner.error().code,
                     fmt::format("{}: {}", name_of(request.format), turner.error().message)};
    return std::optional(std::move(turner).value());
}

/// What the header will say can be said.
Result<FilePlan> checked_plan(WriteRequest const& request) {
    CacheFacts const& facts = request.facts;
    DKV_TRY(check(facts.geometry));
    auto const rows = std::size_t{facts.geometry.layers} * facts.geometry.kv_heads;
    if (facts.lengths.size() != rows)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("{} lengths, not {}", facts.lengths.size(), rows)};
    for (std::uint32_t const length : facts.lengths)
        if (length > facts.prompt_tokens)
            return Error{ErrorCode::InvalidArgument,
                         fmt::format("{} rows, of {} tokens", length, facts.prompt_tokens)};
    if (!facts.tokens.empty() && facts.tokens.size() != facts.prompt_tokens)
        return Error{
            ErrorCode::InvalidArgument,
            fmt::format("{} token ids, of {} tokens", facts.tokens.size(), facts.prompt_tokens)};
    if (!facts.sink_logits.empty() && facts.sink_logits.size() != facts.geometry.layers)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("sinks of {} layers, not {}", facts.sink_logits.size(),
                                 facts.geometry.layers)};
    for (auto const& sinks : facts.sink_logits)
        DKV_TRY(check_sink_logits(sinks, facts.geometry.q_heads));
    return file_plan(request);
}

/// From the source's order to the output's.
Result<KeyReorder> reorder_of(WriteRequest const& asked, WriteRequest const& request) {
    auto const& geometry = asked.facts.geometry;
    auto const to = request.facts.rope.interleaved ? KeyOrder::Pairs : KeyOrder::Halves;
    return KeyReorder::create(asked.facts.rope, to, geometry.head_dim, geometry.dtype);
}

/// Rows that another program can read as keys and values.
Result<void> check_rows(WriteRequest const& request) {
    if (auto const& sliding = request.facts.sliding; !sliding.empty())
        return Error{
            ErrorCode::Unsupported,
            fmt::format("{}: the cache has {}, for which only llama.cpp's own formats have "
                        "a place (--format llama-slot, llama-state)",
                        name_of(request.format), sliding)};
    auto const& stored = request.facts.stored;
    if (!stored || !stored->rotation_unknown) return {};
    return Error{ErrorCode::Unsupported,
                 fmt::format("{}: its rows are {}, and only files of llama.cpp since b11549 (GGSQ "
                             "4) say whether such rows are rotated: they can be compacted as they "
                             "are (--format llama-slot, llama-state), not converted. Save it again "
                             "with a newer llama.cpp, or with -ctk f16 -ctv f16",
                             name_of(request.format), stored->type)};
}

/// The request as the output will have it: its keys' order, and rows that are no longer stored as
/// something else.
Result<WriteRequest> resolved(WriteRequest const& asked) {
    DKV_TRY(check_rows(asked));
    WriteRequest request = asked;
    bool const pairs = DKV_TRY(written_key_order(asked)) == KeyOrder::Pairs;
    if (pairs != asked.facts.rope.interleaved) request.facts.provenance.erase(kLlamaVersion);
    request.facts.rope.interleaved = pairs;
    request.facts.stored.reset();
    return request;
}

}  // namespace

Result<void> check_bits(RowBits bits, FileFormat format, std::uint32_t head_dim) {
    if (bits == RowBits::Own) return {};
    if (format != FileFormat::Dkv)
        return unsupported(
            fmt::format("{} has no place for rows of {} bits, which are dkv's own "
                        "format's (--format dkv): leave --bits out",
                        name_of(format), name_of(bits)));
    DKV_TRY(quantised_rows(bits, head_dim));
    return {};
}

Result<KeyOrder> written_key_order(WriteRequest const& request) {
    auto const& rope = request.facts.rope;
    KeyOrder const own = rope.interleaved ? KeyOrder::Pairs : KeyOrder::Halves;
    bool const to_dkv = request.format == FileFormat::Dkv;
    bool const moved = is_llama(request.format) && is_llama_cache(request.source);
    if (moved && request.key_order)
        return Error{ErrorCode::Unsupported,
                     fmt::format("{}: llama.cpp's own rows are moved as they are: --key-order is "
                                 "for what another program saved",
                                 name_of(request.format))};
    if (moved || (to_dkv && !request.key_order)) return own;
    if (!rope.order_known)
        return Error{ErrorCode::Unsupported,
                     fmt::format("{}: llama.cpp does not save in which order its keys' dims are: "
                                 "say --rope-theta THETA, and --rope-interleaved where it turns "
                                 "adjacent pairs (Llama, Mistral, SmolLM …; not Qwen, Gemma, Phi)",
                                 name_of(request.format))};
    if (request.key_order) return *request.key_order;
    if (!is_llama(request.format))
        return rope.model_interleaved ? KeyOrder::Pairs : KeyOrder::Halves;
    // What was llama.cpp's is in its order still: resolved().
    if (rope.interleaved || request.facts.provenance.contains(kLlamaVersion)) return own;
    return Error{ErrorCode::Unsupported,
                 fmt::format("{}: the order that llama.cpp wants of a key's dims depends on the "
                             "model: say --key-order pairs (Llama, Mistral, SmolLM …) or "
                             "--key-order halves (Qwen, Gemma, Phi …)",
                             name_of(request.format))};
}

Result<std::uint64_t> write_cache(Backend& backend, WriteRequest const& asked) {
    DKV_TRY(check_bits(asked.bits, asked.format, asked.facts.geometry.head_dim));
    if (is_llama(asked.format)) return write_llama(backend, asked);
    WriteRequest const request = DKV_TRY(resolved(asked));
    auto const plan = DKV_TRY(checked_plan(request));
    auto turner = DKV_TRY(turner_of(asked, plan));
    auto reorder = DKV_TRY(reorder_of(asked, request));
    auto stream = DKV_TRY(RowStream::create(backend));
    auto writer = DKV_TRY(SafetensorsWriter::create(request.path, plan.tensors, plan.metadata,
                                                    plan.with_crcs, request.like, request.links));
    return ContainerWriter(request, plan, std::move(writer), std::move(stream), std::move(turner),
                           std::move(reorder))
        .write();
}

Result<std::uint64_t> written_bytes(WriteRequest const& asked) {
    DKV_TRY(check_bits(asked.bits, asked.format, asked.facts.geometry.head_dim));
    if (is_llama(asked.format)) return llama_bytes(asked);
    WriteRequest const request = DKV_TRY(resolved(asked));
    auto const plan = DKV_TRY(checked_plan(request));
    DKV_TRY(turner_of(asked, plan));
    DKV_TRY(reorder_of(asked, request));
    return SafetensorsWriter::file_bytes(plan.tensors, plan.metadata, plan.with_crcs);
}

}  // namespace dkv
