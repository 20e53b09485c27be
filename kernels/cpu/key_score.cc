#include <algorithm>
#include <cmath>
#include <hwy/aligned_allocator.h>

#include "kernels/cpu/key_tiles.h"
#include "kernels/cpu/ops.h"

namespace dkv::cpu {
namespace {

class KeyScore {
public:
    KeyScore(KeyScoreArgs const& args, Workers& workers)
        : args_(args),
          workers_(workers),
          columns_(args.keys.tokens - args.window),
          row_floats_(round_up(args.keys.head_dim, kLine)) {}

    Result<void> run() {
        bool const by_difference = args_.measure == KeyMeasure::Difference;
        std::uint32_t const heads = args_.keys.heads;
        DKV_TRY(allocate(by_difference ? heads * ranges(args_.keys.tokens) : 0));
        // What is read twice is read twice while it is near.
        std::uint32_t const batch = by_difference ? batch_heads() : heads;
        for (std::uint32_t head = 0; head < heads; head += batch)
            run_heads(head, std::min(batch, heads - head), by_difference);
        return {};
    }

private:
    // Ranges depend on the shape alone and are joined in order: the same bits on any number of
    // threads.
    static constexpr std::uint32_t kRangeKeys = 1024;
    static constexpr std::size_t kItemsPerWorker = 4;  // So that workers end together.

    static std::size_t ranges(std::uint32_t tokens) noexcept {
        return (std::size_t{tokens} + kRangeKeys - 1) / kRangeKeys;
    }

    /// Enough of them for all workers.
    std::uint32_t batch_heads() const noexcept {
        return static_cast<std::uint32_t>(std::min<std::size_t>(
            kItemsPerWorker * workers_.count() / ranges(args_.keys.tokens) + 1, args_.keys.heads));
    }

    void run_heads(std::uint32_t first, std::uint32_t heads, bool by_difference) {
        if (by_difference) {
            auto const add = [&](KeyRange const& range, std::size_t worker) {
                add_directions(range, row(worker), directions(range.head, range.begin));
            };
            for_each_range(first, heads, args_.keys.tokens, add);
            for (std::uint32_t head = first; head < first + heads; ++head)
                join_directions(head);
        }
        for_each_range(first, heads, columns_, [&](KeyRange const& range, std::size_t worker) {
            float* const out =
                args_.scores.data() + std::size_t{range.head} * columns_ + range.begin;
            if (by_difference)
                key_cosines(range, directions(range.head, 0), row(worker), out);
            else
                key_norms(range, row(worker), out);
        });
    }

    template <class Body>
    void for_each_range(std::uint32_t first,
                        std::uint32_t heads,
                        std::uint32_t tokens,
                        Body const& body) {
        std::size_t const count = ranges(tokens);
        workers_.for_each(heads * count, [&](std::size_t item, std::size_t worker) {
            auto const begin = static_cast<std::uint32_t>(item % count * kRangeKeys);
            body(KeyRange{&args_.keys, first + static_cast<std::uint32_t>(item / count), begin,
                          begin + std::min(kRangeKeys, tokens - begin)},
                 worker);
        });
    }

    float* row(std::size_t worker) noexcept { return memory_.get() + worker * row_floats_; }
    float* directions(std::uint32_t head, std::uint32_t token) noexcept {
        return directions_ + (head * ranges(args_.keys.tokens) + token / kRangeKeys) * row_floats_;
    }

    Result<void> allocate(std::size_t directions) {
        std::size_t const floats = (workers_.count() + directions) * row_floats_;
        memory_ = hwy::AllocateAligned<float>(floats);
        if (!memory_)
            return Error{ErrorCode::LimitExceeded, "not enough memory for " +
                                                       std::to_string(floats * sizeof(float)) +
                                                       " bytes of key_score's directions"};
        std::fill_n(memory_.get(), floats, 0.0f);
        directions_ = memory_.get() + workers_.count() * row_floats_;
        return {};
    }

    /// A head's sum, over the length that it has, in the place of its first range's. The mean is
    /// only a direction, so that its own length does not matter.
    void join_directions(std::uint32_t head) {
        float* const sum = directions(head, 0);
        for (std::size_t range = 1; range < ranges(args_.keys.tokens); ++range)
            for (std::size_t dim = 0; dim < row_floats_; ++dim)
                sum[dim] += sum[range * row_floats_ + dim];
        double squares = 0;
        for (std::size_t dim = 0; dim < row_floats_; ++dim)
            squares += double{sum[dim]} * double{sum[dim]};
        if (squares == 0) return;
        for (std::size_t dim = 0; dim < row_floats_; ++dim)
            sum[dim] = static_cast<float>(sum[dim] / std::sqrt(squares));
    }

    static constexpr std::size_t kLine = 16;  // f32 in 64 bytes.

    KeyScoreArgs const& args_;
    Workers& workers_;
    std::uint32_t const columns_;
    std::size_t const row_floats_;

    hwy::AlignedFreeUniquePtr<float[]> memory_;  // [workers, row_floats], then the directions.
    float* directions_ = nullptr;                // [kv_heads, ranges, row_floats]
};

}  // namespace

Result<void> key_score(KeyScoreArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    if (args.keys.place != Place::Host)
        return Error{ErrorCode::InvalidArgument, "keys are in device memory"};
    if (args.scores.empty()) return {};
    return KeyScore(args, workers).run();
}

}  // namespace dkv::cpu
