#include "tools/golden/golden_check.h"

#include <string>
#include <utility>

#include <doctest/doctest.h>

#include "tests/support/results.h"
#include "tools/golden/golden_file.h"

using namespace dkv;
using namespace dkv::golden;

namespace {

// Made with tools/golden/make_cases.py's outcome().
constexpr char kCases[] = R"({"cases": [
{"name": "tiny", "L": 2, "H": 1, "N": 6, "base": 2, "ws": 2, "kernel": 1, "radio_max": 2.0, "m": 2,
 "seed": 1, "shape": "flat", "B": 4, "budgets_per_update": [[2, 2]], "error": null,
 "stored_len_per_layer": [4, 4], "kept_head0_layer0_first16": [4, 2, 6, 7],
 "kept_ids_crc32_all_layers_heads": 3851185756, "duplicate_entries": 0},
{"name": "crash", "L": 2, "H": 1, "N": 6, "base": 0, "ws": 2, "kernel": 1, "radio_max": 2, "m": 1,
 "seed": 1, "shape": "flat", "B": 0, "budgets_per_update": [],
 "error": "ValueError: cannot convert float NaN to integer"}]})";

/// kCases with one text replaced.
std::string changed(std::string_view from, std::string_view to) {
    std::string text = kCases;
    auto const at = text.find(from);
    REQUIRE(at != std::string::npos);
    return text.replace(at, from.size(), to);
}

/// "field: theirs, ours" of the first case that disagrees.
std::string first_difference(std::string const& text) {
    auto const cases = parse_golden(text);
    REQUIRE(cases);
    for (auto const& golden : cases.value()) {
        auto const different = check_case(golden);
        REQUIRE(different);
        if (auto const& at = different.value())
            return at->field + ": " + at->theirs + ", " + at->ours;
    }
    return "";
}

std::string refusal(std::string const& text) {
    auto const cases = parse_golden(text);
    REQUIRE_FALSE(cases);
    return cases.error().message;
}

}  // namespace

TEST_CASE("the golden check agrees with what the rules give") {
    CHECK(first_difference(kCases) == "");
}

TEST_CASE("the golden check names the number that differs, and both values") {
    CHECK(first_difference(changed("\"B\": 4", "\"B\": 5")) == "B: 5, 4");
    CHECK(first_difference(changed("[[2, 2]]", "[[2, 3]]")) == "budgets_per_update[0][1]: 3, 2");
    CHECK(first_difference(changed("[[2, 2]]", "[[2, 2], [2, 2]]")) ==
          "budgets_per_update: 2 updates, 1 updates");
    CHECK(first_difference(changed("[4, 4]", "[4, 4, 4]")) ==
          "stored_len_per_layer: 3 entries, 2 entries");
    CHECK(first_difference(changed("[4, 2, 6, 7]", "[4, 3, 6, 7]")) ==
          "kept_head0_layer0_first16[1]: 3, 2");
    CHECK(first_difference(changed("3851185756", "3851185757")) ==
          "kept_ids_crc32_all_layers_heads: 3851185757, 3851185756");
    CHECK(first_difference(changed("\"duplicate_entries\": 0", "\"duplicate_entries\": 1")) ==
          "duplicate_entries: 1, 0");
}

TEST_CASE("the golden check compares the type of an error") {
    CHECK(first_difference(changed("ValueError", "ZeroDivisionError")) ==
          "error: ZeroDivisionError: cannot convert float NaN to integer, ValueError");
    CHECK(first_difference(changed("null", "\"ValueError\"")) == "error: ValueError, no error");
    CHECK(first_difference(changed("cannot convert", "could not convert")) == "");
}

TEST_CASE("the golden check takes the pooling, the shape and the seed of the file") {
    CHECK(first_difference(changed("\"seed\": 1", "\"seed\": 2")) != "");
    CHECK(first_difference(changed("\"seed\": 1", "\"seed\": 18446744073709551615")) != "");
    CHECK(first_difference(changed("\"shape\"", "\"pooling\": \"maxpool\", \"shape\"")) == "");
}

TEST_CASE("a malformed golden file is refused in one line that names case and field") {
    CHECK(refusal("{") == "not JSON");
    CHECK(refusal("[]") == "no list \"cases\" with at least one case");
    CHECK(refusal(R"({"cases": []})") == "no list \"cases\" with at least one case");
    CHECK(refusal(R"({"cases": [1]})") == "case 0 is not an object");
    CHECK(refusal(changed("\"H\": 1,", "")) == "case tiny: H is missing");
    CHECK(refusal(changed("\"H\": 1", "\"H\": -1")) ==
          "case tiny: H is -1, not a count below 2^31");
    CHECK(refusal(changed("\"flat\"", "\"round\"")) ==
          "case tiny: shape is \"round\", which is unknown here");
    CHECK(refusal(changed("[[2, 2]]", "[[2, 0.5]]")) ==
          "case tiny: budgets_per_update holds 0.5, not a whole number");
    CHECK(refusal(changed("[4, 4]", "4")) ==
          "case tiny: stored_len_per_layer is not a list of whole numbers");
    CHECK(refusal(changed("\"stored_len_per_layer\": [4, 4],", "")) ==
          "case tiny: stored_len_per_layer is missing");
    CHECK(refusal(changed("\"seed\": 1", "\"seed\": \"one\"")) ==
          "case tiny: seed is \"one\", not a whole number");
    CHECK(refusal(changed("\"N\": 6", "\"N\": 2000000000")) ==
          "case tiny: L * H * N is 4000000000; the limit is 268435456");
}

TEST_CASE("a golden case whose inputs make no sense is refused by the policy") {
    auto const cases = parse_golden(changed("\"ws\": 2", "\"ws\": 0"));
    REQUIRE(cases);

    CHECK(check_case(cases.value().front()).error().message == "window is 0");
}

TEST_CASE("a golden file that is not there is an io error") {
    auto const cases = read_golden("/nonexistent/golden.json");

    REQUIRE_FALSE(cases);
    CHECK(cases.error().code == ErrorCode::Io);
    CHECK(cases.error().message ==
          "cannot read /nonexistent/golden.json: No such file or directory");
}
