#include "cli/saved/offline/attention_error.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <hwy/aligned_allocator.h>
#include <limits>
#include <numeric>
#include <string>
#include <thread>

#include "cli/saved/offline/attention_tiles.h"
#include "kernels/host.h"
#include "protocol/base/sink_logits.h"

namespace dkv::offline {
namespace {

constexpr std::size_t kTileTokens = 64;                     // A tile of keys or values stays in L2.
constexpr std::size_t kLogitsMax = std::size_t{16} << 20U;  // 64 MiB of a thread.

Result<void> check(AttentionErrorArgs const& args) {
    DKV_TRY(check_heads(args.queries, args.keys));
    DKV_TRY(
        check_shape("values", args.values, args.keys.heads, args.keys.tokens, args.keys.head_dim));
    if (args.values.dtype != args.keys.dtype)
        return Error{ErrorCode::InvalidArgument, "keys and values differ in their dtype"};
    if (args.queries.tokens > args.keys.tokens)
        return Error{ErrorCode::InvalidArgument,
                     "there are queries of " + std::to_string(args.queries.tokens) +
                         " tokens, and " + std::to_string(args.keys.tokens) + " tokens"};
    for (KeptTokens const& kept : args.kept)
        if (kept.lengths.size() != args.keys.heads)
            return Error{ErrorCode::InvalidArgument,
                         "lengths has " + std::to_string(kept.lengths.size()) + " elements, not [" +
                             std::to_string(args.keys.heads) + "]"};
    return check_sink_logits(args.sink_logits, args.queries.heads);
}

/// Sums of squares, of one KV head or of several.
struct Squares {
    double whole = 0;
    std::vector<double> moved;  // [kept]
};

/// One KV head's queries, a few rows of them at a time: a row is a query of one query head.
class HeadError {
public:
    explicit HeadError(AttentionErrorArgs const& args)
        : args_(args),
          window_(args.queries.tokens),
          rows_(std::size_t{window_} * (args.queries.heads / args.keys.heads)),
          rows_max_(std::clamp(kLogitsMax / args.keys.tokens, std::size_t{1}, rows_)),
          columns_((args.keys.head_dim + kTileColumns - 1) / kTileColumns * kTileColumns),
          scale_(args.scale != 0 ? args.scale
                                 : 1 / std::sqrt(static_cast<float>(args.keys.head_dim))),
          queries_(hwy::AllocateAligned<float>(rows_max_ * columns_)),
          tile_(hwy::AllocateAligned<float>(kTileTokens * columns_)),
          row_(hwy::AllocateAligned<float>(columns_)),
          products_(hwy::AllocateAligned<float>(rows_max_ * kTileTokens)),
          whole_(hwy::AllocateAligned<float>(rows_max_ * columns_)),
          part_(hwy::AllocateAligned<float>(rows_max_ * columns_)),
          logits_(rows_max_ * args.keys.tokens),
          weights_(rows_max_ * kTileTokens),
          largest_(rows_max_),
          sums_(rows_max_) {}

    Squares squares(std::uint32_t head) {
        Squares result{.whole = 0, .moved = std::vector<double>(args_.kept.size(), 0)};
        for (first_row_ = 0; first_row_ < rows_; first_row_ += rows_max_) {
            count_ = std::min(rows_max_, rows_ - first_row_);
            fill_logits(head);
            attend(head, nullptr, whole_.get());
            for (std::size_t i = 0; i < count_ * columns_; ++i)
                result.whole += double{whole_[i]} * double{whole_[i]};
            for (std::size_t point = 0; point < args_.kept.size(); ++point) {
                attend(head, &args_.kept[point], part_.get());
                for (std::size_t i = 0; i < count_ * columns_; ++i) {
                    double const moved = double{part_[i]} - double{whole_[i]};
                    result.moved[point] += moved * moved;
                }
            }
        }
        return result;
    }

private:
    std::uint32_t tokens() const noexcept { return args_.keys.tokens; }
    /// Tokens that the query of a row sees.
    std::uint32_t seen(std::size_t row) const noexcept {
        return tokens() - window_ + static_cast<std::uint32_t>((first_row_ + row) % window_) + 1;
    }
    float* logits(std::size_t row) noexcept { return logits_.data() + row * tokens(); }

    void fill_logits(std::uint32_t head) {
        std::uint32_t const group = args_.queries.heads / args_.keys.heads;
        for (std::size_t row = 0; row < count_; ++row)
            widen(args_.queries,
                  head * group + static_cast<std::uint32_t>((first_row_ + row) / window_),
                  static_cast<std::uint32_t>((first_row_ + row) % window_),
                  queries_.get() + row * columns_, columns_);
        for (std::uint32_t token = 0; token < tokens(); token += kTileTokens) {
            std::size_t const count = std::min<std::size_t>(kTileTokens, tokens() - token);
            std::fill_n(tile_.get(), kTileTokens * columns_, 0.0F);
            for (std::size_t i = 0; i < count; ++i) {
                widen(args_.keys, head, token + static_cast<std::uint32_t>(i), row_.get(),
                      columns_);
                for (std::size_t dim = 0; dim < columns_; ++dim)
                    tile_[dim * kTileTokens + i] = row_[dim];
            }
            std::fill_n(products_.get(), count_ * kTileTokens, 0.0F);
            multiply_add(queries_.get(), columns_, tile_.get(), products_.get(), count_, columns_,
                         kTileTokens);
            for (std::size_t row = 0; row < count_; ++row)
                put_logits(products_.get() + row * kTileTokens, logits(row) + token, count);
        }
    }

    /// From products to logits, of one row.
    void put_logits(float const* products, float* out, std::size_t count) const {
        for (std::size_t i = 0; i < count; ++i)
            out[i] = products[i] * scale_;
        if (args_.softcap == 0) return;
        for (std::size_t i = 0; i < count; ++i)
            out[i] = args_.softcap * std::tanh(out[i] / args_.softcap);
    }

    /// The attention's output over `kept`, or over every token.
    void attend(std::uint32_t head, KeptTokens const* kept, float* out) {
        std::span<std::int32_t const> ids;
        if (kept != nullptr) {
            auto const begin = std::accumulate(kept->lengths.begin(), kept->lengths.begin() + head,
                                               std::size_t{0});
            ids = std::span(kept->rows).subspan(begin, kept->lengths[head]);
        }
        std::size_t const length = kept != nullptr ? ids.size() : tokens();
        auto const token_at = [&](std::size_t i) {
            return kept != nullptr ? static_cast<std::uint32_t>(ids[i])
                                   : static_cast<std::uint32_t>(i);
        };
        find_largest(ids, kept == nullptr);
        begin_sums(head);
        std::fill_n(out, count_ * columns_, 0.0F);
        for (std::size_t first = 0; first < length; first += kTileTokens) {
            std::size_t const count = std::min(kTileTokens, length - first);
            for (std::size_t i = 0; i < count; ++i)
                widen(args_.values, head, token_at(first + i), tile_.get() + i * columns_,
                      columns_);
            for (std::size_t row = 0; row < count_; ++row) {
                auto const weights = std::span(weights_).subspan(row * kTileTokens, count);
                std::uint32_t const end = seen(row);
                std::size_t visible = 0;  // Tokens ascend.
                for (; visible < count && token_at(first + visible) < end; ++visible)
                    weights[visible] = logits(row)[token_at(first + visible)];
                sums_[row] += exponentials(weights.first(visible), largest_[row]);
                std::ranges::fill(weights.subspan(visible), 0.0F);
            }
            multiply_add(weights_.data(), kTileTokens, tile_.get(), out, count_, count, columns_);
        }
        for (std::size_t row = 0; row < count_; ++row)
            for (std::size_t dim = 0; dim < columns_; ++dim)
                out[row * columns_ + dim] *= sums_[row] > 0 ? 1 / sums_[row] : 0.0F;
    }

    /// With the sinks' part of them, which a sink may raise the largest logit for.
    void begin_sums(std::uint32_t head) {
        std::fill_n(sums_.data(), count_, 0.0F);
        if (args_.sink_logits.empty()) return;
        std::uint32_t const group = args_.queries.heads / args_.keys.heads;
        for (std::size_t row = 0; row < count_; ++row) {
            float const sink =
                args_.sink_logits[std::size_t{head} * group + (first_row_ + row) / window_];
            largest_[row] = std::max(largest_[row], sink);
            sums_[row] = std::exp(sink - largest_[row]);
        }
    }

    void find_largest(std::span<std::int32_t const> ids, bool every) {
        for (std::size_t row = 0; row < count_; ++row) {
            float largest = std::numeric_limits<float>::lowest();
            std::uint32_t const end = seen(row);
            if (every)
                largest = *std::max_element(logits(row), logits(row) + end);
            else
                for (std::int32_t const id : ids) {
                    if (static_cast<std::uint32_t>(id) >= end) break;
                    largest = std::max(largest, logits(row)[id]);
                }
            largest_[row] = largest;
        }
    }

    AttentionErrorArgs const& args_;
    std::uint32_t const window_;
    std::size_t const rows_;      // Of a KV head.
    std::size_t const rows_max_;  // At a time.
    std::size_t const columns_;   // head_dim, rounded up.
    float const scale_;
    std::size_t first_row_ = 0;
    std::size_t count_ = 0;

    hwy::AlignedFreeUniquePtr<float[]> queries_;   // [rows_max, columns]
    hwy::AlignedFreeUniquePtr<float[]> tile_;      // [columns, kTileTokens] or the other way round
    hwy::AlignedFreeUniquePtr<float[]> row_;       // [columns]
    hwy::AlignedFreeUniquePtr<float[]> products_;  // [rows_max, kTileTokens]
    hwy::AlignedFreeUniquePtr<float[]> whole_;     // [rows_max, columns]
    hwy::AlignedFreeUniquePtr<float[]> part_;      // [rows_max, columns]
    std::vector<float> logits_;                    // [rows_max, tokens]
    std::vector<float> weights_;                   // [rows_max, kTileTokens]
    std::vector<float> largest_;                   // [rows_max]
    std::vector<float> sums_;                      // [rows_max]
};

double relative(double moved, double whole) {
    if (moved == 0) return 0;
    return whole > 0 ? std::sqrt(moved / whole) : 1;
}

}  // namespace

Result<std::vector<double>> attention_error(AttentionErrorArgs const& args, unsigned threads) {
    DKV_TRY(check(args));
    std::uint32_t const heads = args.keys.heads;
    if (threads == 0) threads = std::max(1U, std::thread::hardware_concurrency());
    std::vector<Squares> squares(heads);
    std::atomic<std::uint32_t> next = 0;
    auto const work = [&] {
        HeadError error(args);
        for (std::uint32_t head = next++; head < heads; head = next++)
            squares[head] = error.squares(head);
    };
    {
        std::vector<std::jthread> others;
        for (unsigned thread = 1; thread < std::min(threads, heads); ++thread)
            others.emplace_back(work);
        work();
    }

    // Head after head: the order in which doubles are added is part of the result.
    Squares sum{.whole = 0, .moved = std::vector<double>(args.kept.size(), 0)};
    for (Squares const& of_head : squares) {
        sum.whole += of_head.whole;
        for (std::size_t point = 0; point < args.kept.size(); ++point)
            sum.moved[point] += of_head.moved[point];
    }
    std::vector<double> errors;
    for (double const moved : sum.moved)
        errors.push_back(relative(moved, sum.whole));
    return errors;
}

}  // namespace dkv::offline
