#include "protocol/base/geometry.h"

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;

TEST_CASE("geometry: a cache's bytes are tokens x layers x heads x dim x 2 x the element's size") {
    Geometry const smollm2{30, 9, 3, 64, Dtype::F32};
    Geometry const llama3{32, 32, 8, 128, Dtype::Bf16};

    CHECK(smollm2.group() == 3);
    CHECK(smollm2.token_bytes() == 1536);
    CHECK(smollm2.cache_bytes(4096) == 188'743'680);
    CHECK(llama3.cache_bytes(32'768) == 4'294'967'296);
}

TEST_CASE("geometry: refusals name the count at fault") {
    CHECK(check({30, 9, 3, 64, Dtype::F32}));

    CHECK(check({0, 9, 3, 64, Dtype::F32}).error().message == "layers is 0, not in 1 … 1024");
    CHECK(check({30, 9, 3, 5000, Dtype::F32}).error().message ==
          "head_dim is 5000, not in 1 … 1024");
    CHECK(check({30, 9, 4, 64, Dtype::F32}).error().message ==
          "q_heads is 9, no multiple of kv_heads 4");
}

TEST_CASE("geometry: is described in one line") {
    CHECK(describe({30, 9, 3, 64, Dtype::F32}) == "30 layers, 9/3 heads, head_dim 64, f32");
}
