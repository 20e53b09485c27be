// Score where tiles of tokens begin and end.
#include <random>
#include <vector>

#include "tests/kernels/score_call.h"
#include "tests/support/reference.h"

using namespace dkv;
using Call = test::ScoreCall;

namespace {

void check_against_reference(Backend& backend, Call& call, std::mt19937& random) {
    call.fill(random);
    auto const want = test::reference_score(call.queries, call.keys, call.args.reduce);
    double const relative = test::tolerance(call.keys.view.dtype);
    REQUIRE(backend.score(call.args));
    CHECK(test::worst_error(call.scores, want.scores, relative) <= 1);
    CHECK(test::worst_error(call.mass, want.mass, relative) <= 1);
}

}  // namespace

TEST_CASE("score of a tile and a part of one") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(41);
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            CAPTURE(name_of(dtype));
            Call call({1, 2, 3, 150, 64}, dtype, GroupReduce::Mean);
            check_against_reference(backend, call, random);
        }
    });
}

// With fewer tiles than a device has room for, each block has but one.
TEST_CASE("score of many heads, whose blocks take several tiles each") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(43);
        for (Dtype const dtype : {Dtype::F16, Dtype::F32}) {
            CAPTURE(name_of(dtype));
            Call call({800, 1, 1, 131, 8}, dtype, GroupReduce::Mean);
            check_against_reference(backend, call, random);
        }
    });
}
