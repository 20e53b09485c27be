// What cannot be compacted, is stopped, or is one of several.

#include "protocol/base/guarded_memory.h"
#include "tests/cli/saved/offline/compact_fixture.h"

using namespace dkv;
using offline::CompactRequest;
using test::bytes_of_file;
using test::CompactFixture;

namespace fs = std::filesystem;

TEST_CASE_FIXTURE(CompactFixture, "where there are no queries, what needs them says what to do") {
    auto wish = request({.name = "", .capacity = 20, .window = 4}, make(0));
    CHECK(refusal(wish) ==
          "invalid_argument: cache: auto needs the queries of the last 4 tokens, and the file has "
          "none: `dkv capture MODEL FILE` works them out; reuse, knorm, keydiff and streamingllm "
          "need none");
    for (char const* policy : {"knorm", "keydiff", "streamingllm"}) {
        wish.policy.name = policy;
        CHECK(compact(wish).mass_kept.empty());
        fs::remove(wish.output);
    }
    wish.input = make(2);
    wish.policy.name = "snapkv";
    CHECK(refusal(wish) ==
          "invalid_argument: cache: snapkv needs the queries of the last 4 tokens, and the file "
          "has 2: a window of 2 would do; reuse, knorm, keydiff and streamingllm need none");
    CHECK(files() == std::vector<std::string>{"cache"});
}

TEST_CASE_FIXTURE(CompactFixture, "the input stays as it is, whatever its name") {
    auto const input = make(4);
    auto const before = bytes_of_file(input);
    auto const written = fs::last_write_time(input);
    fs::create_symlink(input, folder / "link");
    fs::create_hard_link(input, folder / "twin");
    auto wish = request({.name = "", .capacity = 20, .window = 4}, input);
    wish.force = true;
    for (char const* name : {"cache", "link", "twin", "./cache"}) {
        wish.output = folder / name;
        CHECK(refusal(wish).find(": the output is the input, which stays as it is") !=
              std::string::npos);
    }
    wish.output = folder / "out";
    compact(wish);
    CHECK(bytes_of_file(input) == before);
    CHECK(fs::last_write_time(input) == written);
}

TEST_CASE_FIXTURE(CompactFixture, "an input that changes while it is read makes no output") {
    survive_missing_pages();
    for (bool const cut : {true, false})
        for (bool const verify : {true, false}) {
            CAPTURE(cut);
            CAPTURE(verify);
            tokens = 2000;  // Many pages.
            auto const input = make(4);
            auto wish = request({.name = "knorm", .capacity = 20, .window = 4}, input);
            wish.verify = verify;
            offline::Progress const progress{.advance =
                                                 [&](std::size_t, std::uint64_t, std::uint64_t) {
                                                     if (cut)
                                                         fs::resize_file(input, 100);
                                                     else
                                                         fs::last_write_time(input, {});
                                                 },
                                             .stop = {}};
            auto const outcome = offline::compact(*backend, wish, progress);
            REQUIRE(!outcome);
            CHECK(outcome.error().code == ErrorCode::Io);
            CHECK(outcome.error().message ==
                  input.string() + ": the file changed while it was read");
            CHECK(files() == std::vector<std::string>{"cache"});
        }
}

TEST_CASE_FIXTURE(CompactFixture,
                  "scores without any in the file are refused with what makes them") {
    CHECK(refusal(request({.name = "scores", .capacity = 20, .window = 4}, make(4))) ==
          "invalid_argument: cache: scores needs scores of every token, and the file has none: "
          "`dkv capture --replay MODEL FILE` works them out");
}

TEST_CASE_FIXTURE(CompactFixture, "what cannot be compacted is refused by name") {
    auto wish = request({.name = "snapkv", .capacity = 20, .window = 4}, make(4));
    wish.format = FileFormat::Vllm;
    CHECK(refusal(wish) ==
          "unsupported: cache: vllm is read and not written: choose dkv, hf, llama-state, "
          "llama-slot, mlx-lm or mlx-lm@0.31");
    wish.format.reset();
    wish.policy.name = "snapkw";
    CHECK(refusal(wish).starts_with("not_found: cache: no policy is called \"snapkw\""));
    wish.policy = {.name = "snapkv", .window = 4, .bytes = 900};
    CHECK(refusal(wish).starts_with(
        "invalid_argument: cache: bytes is 900, and a file of the window of 4 tokens alone has "));
    wish.policy = {.name = "snapkv", .capacity = 20, .window = 4};
    compact(wish);
    auto const again = request({.name = "snapkv", .capacity = 10, .window = 4}, wish.output);
    CHECK(refusal({.input = wish.output, .output = folder / "out2", .policy = again.policy}) ==
          "unsupported: out: tokens are missing from it already: compact the cache that it was "
          "made of");
    CHECK(refusal({.input = folder / "nothing", .output = folder / "out2", .policy = {.name = ""}})
              .starts_with("io: "));
}

TEST_CASE_FIXTURE(CompactFixture,
                  "a number that is none, in rows or queries, is found and nothing left") {
    std::size_t const size = fs::file_size(make(4));
    float const nan = std::nanf("");
    // The last tensor of the last layer is its queries; before them are its values.
    for (std::size_t const back : {std::size_t{4}, std::size_t{6 * 4 * 8 * 4 + 400}}) {
        auto const input = make(4);
        std::fstream file(input, std::ios::binary | std::ios::in | std::ios::out);
        file.seekp(static_cast<std::streamoff>(size - back));
        file.write(reinterpret_cast<char const*>(&nan), sizeof nan);
        file.close();
        auto wish = request({.name = "snapkv", .capacity = 20, .window = 4}, input);
        auto const refused = refusal(wish);
        CAPTURE(refused);
        CHECK(refused.starts_with("corrupt_data: cache: "));
        CHECK(refused.find('\n') == std::string::npos);
        CHECK(files() == std::vector<std::string>{"cache"});
        wish.verify = false;
        CHECK(refusal(wish) == "");
        fs::remove(wish.output);
    }
}

TEST_CASE_FIXTURE(CompactFixture, "work that is told to stop leaves nothing, wherever it is") {
    auto const input = make(4);
    for (int stop_at = 0; stop_at < 12; ++stop_at) {
        int asked = 0;
        offline::Progress const progress{.advance = {}, .stop = [&] { return asked++ == stop_at; }};
        auto const outcome = offline::compact(
            *backend, request({.name = "snapkv", .capacity = 20, .window = 4}, input), progress);
        if (outcome) {
            CHECK(stop_at >= 11);  // Once before the work, 5 layers read, 5 written.
            continue;
        }
        CHECK(outcome.error().code == ErrorCode::Cancelled);
        CHECK(outcome.error().message == "interrupted");
        CHECK(files() == std::vector<std::string>{"cache"});
    }
}

TEST_CASE_FIXTURE(CompactFixture, "progress rises to the file's size") {
    auto const input = make(4);
    std::vector<std::uint64_t> seen;
    offline::Progress const progress{.advance =
                                         [&](std::size_t file, auto done, std::uint64_t total) {
                                             CHECK(file == 7);
                                             CHECK(total == fs::file_size(input));
                                             seen.push_back(done);
                                         },
                                     .stop = {}};
    REQUIRE(offline::compact(
        *backend, request({.name = "snapkv", .capacity = 20, .window = 4}, input), progress, 7));
    CHECK(seen.size() == 6);
    CHECK(std::ranges::is_sorted(seen));
    CHECK(seen.back() == fs::file_size(input));
}

TEST_CASE_FIXTURE(CompactFixture,
                  "formats whose heads or layers are alike refuse others, or fill them up") {
    auto const input = make(4);
    PolicyRequest const by_layer{
        .name = "dynamickv", .capacity = 20, .window = 4, .r_max = 3.0, .update_interval = 2};
    auto wish = request(by_layer, input);
    wish.format = FileFormat::LlamaState;
    wish.open.rope = {.theta = 10000, .interleaved = true};
    CHECK(refusal(wish).find("(--fill)") != std::string::npos);
    wish.policy.name = "pyramidkv";
    CHECK(refusal(wish).find("(--fill)") != std::string::npos);
    for (char const* policy : {"dynamickv", "pyramidkv"}) {
        wish.policy.name = policy;
        wish.fill = true;
        wish.dry_run = true;
        auto const filled = compact(wish);
        CAPTURE(policy);
        auto const [least, most] = std::ranges::minmax(filled.lengths);
        CHECK(least == most);
        CHECK(least > 20);
        REQUIRE(filled.notes.size() == 2);
        CHECK(filled.notes[1].starts_with("budgets of "));

        auto bytes = wish;
        bytes.policy.capacity.reset();
        bytes.policy.bytes = 5 * 2 * 2 * 32 * 40;
        auto const sized = compact(bytes);
        CHECK(std::ranges::min(sized.lengths) == std::ranges::max(sized.lengths));
        CHECK(sized.file_bytes_after <= *bytes.policy.bytes);
        CHECK(sized.file_bytes_after > *bytes.policy.bytes * 9 / 10);
    }
    // HF's layers may differ, and their heads may not.
    wish = request(by_layer, input);
    wish.format = FileFormat::Hf;
    wish.policy.granularity = Granularity::Head;
    CHECK(refusal(wish).starts_with("unsupported: "));
    wish.fill = true;
    auto const filled = compact(wish);
    for (std::size_t layer = 0; layer < 5; ++layer)
        CHECK(filled.lengths[2 * layer] == filled.lengths[2 * layer + 1]);
}

TEST_CASE_FIXTURE(CompactFixture,
                  "several files are done together, and one that fails stops no other") {
    std::vector<CompactRequest> requests;
    for (unsigned i = 0; i < 4; ++i) {
        auto const name = std::to_string(i);
        auto wish = request({.name = "snapkv", .capacity = 20, .window = 4},
                            make(i == 2 ? 0 : 4, i, "in" + name));
        wish.output = folder / ("out" + name);
        requests.push_back(wish);
    }
    requests.push_back(requests[0]);
    requests.push_back(requests[1]);
    requests.back().input = requests[0].input;
    requests.back().output = requests[3].input;
    std::vector<std::size_t> ended;
    auto const outcomes = offline::compact_all(
        requests, 2, {}, [&](std::size_t file, auto const&) { ended.push_back(file); });

    REQUIRE(outcomes.size() == 6);
    for (std::size_t const good : {0U, 1U, 3U}) {
        REQUIRE(outcomes[good]);
        CHECK(fs::exists(requests[good].output));
    }
    REQUIRE_FALSE(outcomes[2]);
    CHECK(outcomes[2].error().message.find("in2: snapkv needs the queries") != std::string::npos);
    REQUIRE_FALSE(outcomes[4]);
    CHECK(outcomes[4].error().message == (folder / "in0") + ": its output would be that of " +
                                             (folder / "in0") + ", " + (folder / "out0"));
    REQUIRE_FALSE(outcomes[5]);
    CHECK(outcomes[5].error().message ==
          (folder / "in0") + ": its output " + (folder / "in3") + " is another input");
    std::ranges::sort(ended);
    CHECK(ended == std::vector<std::size_t>{0, 1, 2, 3, 4, 5});
}
