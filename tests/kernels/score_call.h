// One call of score, and its memory.
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

struct ScoreCall {
    ScoreCall(ScoreShape const& shape,
              Dtype dtype,
              GroupReduce reduce,
              Layout layout = Layout::HeadMajor)
        : queries(dtype, shape.kv_heads * shape.group, shape.window, shape.head_dim, layout),
          keys(dtype, shape.kv_heads, shape.tokens, shape.head_dim, layout),
          scores(std::size_t{reduce == GroupReduce::None ? shape.kv_heads * shape.group
                                                         : shape.kv_heads} *
                 (shape.tokens - shape.window)),
          mass(std::size_t{shape.kv_heads} * (shape.tokens - shape.window)) {
        args.queries = queries.view;
        args.keys = keys.view;
        args.scores = scores;
        args.mass = mass;
        args.reduce = reduce;
    }
    void fill(std::mt19937& random) {
        queries.fill_normal(random);
        keys.fill_normal(random);
    }
    std::string refusal() const {
        auto const result = check(args);
        if (!result) CHECK(result.error().code == ErrorCode::InvalidArgument);
        return result ? "" : result.error().message;
    }

    Rows queries;
    Rows keys;
    std::vector<float> scores;
    std::vector<float> mass;
    ScoreArgs args;
};

}  // namespace dkv::test
