#include "protocol/base/result.h"

#include <memory>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;

namespace {

Result<int> half(int number) {
    if (number % 2 != 0)
        return Error{ErrorCode::InvalidArgument, std::to_string(number) + " is odd"};
    return number / 2;
}

Result<int> quarter(int number) {
    return DKV_TRY(half(DKV_TRY(half(number))));
}

}  // namespace

TEST_CASE("result: DKV_TRY hands the value on, or returns the first error") {
    CHECK(quarter(12).value() == 3);
    CHECK(quarter(7).error().message == "7 is odd");
    CHECK(quarter(6).error().message == "3 is odd");
}

TEST_CASE("result: holds what can only be moved") {
    Result<std::unique_ptr<int>> result = std::make_unique<int>(5);

    REQUIRE(result);
    CHECK(*std::move(result).value() == 5);
}

TEST_CASE("errors: a code has a name, and says whether trying again can help") {
    CHECK(name_of(ErrorCode::DeadlineExceeded) == "deadline_exceeded");
    CHECK(name_of(ErrorCode::UnknownInstance) == "unknown_instance");
    CHECK(is_retryable(ErrorCode::Unavailable));
    CHECK_FALSE(is_retryable(ErrorCode::InvalidArgument));
}
