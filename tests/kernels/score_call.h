// One call of score, or of what is like it, and its memory.
#pragma once

#include <string>
#include <vector>

#include "kernels/ops/score.h"
#include "tests/support/backends.h"
#include "tests/support/rows.h"

namespace dkv::test {

struct ScoreShape {
    std::uint32_t kv_heads;
    std::uint32_t group;
    std::uint32_t window;
    std::uint32_t tokens;
    std::uint32_t head_dim;
};

/// Queries that attend to keys, and the scores that come of it: of score and of accumulate.
template <class Args>
struct AttendingCall {
    AttendingCall(ScoreShape const& shape,
                  std::uint32_t query_tokens,
                  Dtype dtype,
                  GroupReduce reduce,
                  Layout layout)
        : queries(dtype, shape.kv_heads * shape.group, query_tokens, shape.head_dim, layout),
          keys(dtype, shape.kv_heads, shape.tokens, shape.head_dim, layout),
          scores(std::size_t{shape.kv_heads} * (reduce == GroupReduce::None ? shape.group : 1) *
                 (shape.tokens - shape.window)) {
        args.queries = queries.view;
        args.keys = keys.view;
        args.scores = scores;
        args.reduce = reduce;
    }
    void fill(std::mt19937& random) {
        queries.fill_normal(random);
        keys.fill_normal(random);
    }
    /// A sink of its own for each query head, in turn.
    void add_sinks(std::vector<float> const& values) {
        sinks.clear();
        for (std::uint32_t head = 0; head < queries.view.heads; ++head)
            sinks.push_back(values[head % values.size()]);
        args.sink_logits = sinks;
    }
    std::string refusal() const {
        auto const result = check(args);
        if (!result) CHECK(result.error().code == ErrorCode::InvalidArgument);
        return result ? "" : result.error().message;
    }

    Rows queries;
    Rows keys;
    std::vector<float> scores;
    std::vector<float> sinks;
    Args args;
};

struct ScoreCall : AttendingCall<ScoreArgs> {
    ScoreCall(ScoreShape const& shape,
              Dtype dtype,
              GroupReduce reduce,
              Layout layout = Layout::HeadMajor)
        : AttendingCall(shape, shape.window, dtype, reduce, layout),
          mass(std::size_t{shape.kv_heads} * (shape.tokens - shape.window)),
          peaks(mass.size()) {
        args.mass = mass;
        args.peaks = peaks;
    }

    std::vector<float> mass;
    std::vector<float> peaks;
};

}  // namespace dkv::test
