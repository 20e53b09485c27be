#include "sidecar/session/session.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include <doctest/doctest.h>

#include "tests/sidecar/session/fixture.h"

namespace dkv {
namespace {

using test::kEngine;
using test::LentPrompt;
using test::refused;
using test::TableFixture;

TEST_CASE("a dynamickv session: layers are staged, planned, packed, adopted, closed") {
    TableFixture t;
    t.open(5);
    t.send_layers(5);
    t.await([&] { return t.ears.heard("peer/5: committed"); });

    CHECK(t.ears.lines.front() == "peer/5: layer 0 staged");
    CHECK(t.ears.heard("peer/5: planned"));
    CHECK(t.ears.heard("peer/5: layer 2 committed"));
    CHECK(t.ears.last_busy_ns > 0);
    auto const& lengths = t.ears.last_outcome.lengths;
    CHECK(std::accumulate(lengths.begin(), lengths.end(), 0U) ==
          32 * LentPrompt::kLayers * LentPrompt::kKvHeads);

    AdoptedBytes const bytes{.returned = 70, .peak = 90, .final_ = 20, .pool = 50};
    REQUIRE(t.table.adopted(t.caller(), kEngine, 5, bytes));
    REQUIRE(t.table.adopted(t.caller(), kEngine, 5, bytes));
    REQUIRE(t.table.close_session(t.caller(), kEngine, 5, ""));
    REQUIRE(t.table.close_session(t.caller(), kEngine, 5, ""));

    auto const savings = t.table.facts().savings;
    CHECK(savings.sessions == 1);
    CHECK(savings.bytes_full == LentPrompt::geometry().cache_bytes(LentPrompt::kTokens));
    CHECK(savings.bytes_dropped == savings.bytes_full - t.ears.last_outcome.bytes_kept);
    CHECK(savings.bytes_returned == 70);
    CHECK(savings.bytes_pool == 50);
    CHECK(savings.bytes_peak == 90);
    auto const closed = t.table.sessions({.instance = kEngine}, t.now);
    REQUIRE(closed);
    CHECK(closed.value().at(0).state == SessionState::Closed);
    CHECK(closed.value().at(0).lengths == lengths);
    CHECK(closed.value().at(0).mass_kept.size() == LentPrompt::kLayers);
    CHECK(closed.value().at(0).spans.empty());
}

TEST_CASE(
    "the spans of a session are told of that session alone, stage by stage, and when it is over, "
    "too") {
    TableFixture t;
    t.open(5);
    t.send_layers(5);
    t.await([&] { return t.ears.heard("peer/5: committed"); });
    REQUIRE(t.table.close_session(t.caller(), kEngine, 5, ""));

    CHECK(t.table.sessions({.session = 6, .spans = true}, t.now).value().empty());
    auto const found = t.table.sessions({.session = 5, .spans = true}, t.now).value();
    REQUIRE(found.size() == 1);
    auto const count = [&](Stage stage) {
        return std::ranges::count(found.front().spans, stage, &Span::stage);
    };
    CHECK(count(Stage::Wait) == 0);
    CHECK(count(Stage::Open) == 1);
    for (auto const stage : {Stage::Score, Stage::Select, Stage::Stage, Stage::Pack})
        CHECK(count(stage) == LentPrompt::kLayers);
    CHECK(count(Stage::Commit) == 1);
    CHECK(found.front().spans.front().stage == Stage::Open);
    CHECK(found.front().spans.back().stage == Stage::Commit);
    CHECK(std::ranges::is_sorted(found.front().spans, {}, &Span::begin_ns));
}

TEST_CASE("rows that were never written fail the session before any memory is found for them") {
    TableFixture t;
    t.open(5);
    test::EngineMemory const sparse(t.prompt.memory.bytes().size());
    auto const region = t.lend(sparse, false).value();
    REQUIRE(t.table.layer_ready(t.caller(), kEngine, 5, TableFixture::layer_in(region, 0)));
    t.await([&] { return t.ears.heard(NoticeKind::SessionFailed); });
    CHECK(t.ears.lines.back().starts_with("peer/5: failed: keys have "));
    CHECK(t.ears.lines.back().ends_with("of which the region has 0: the rest was never written"));
}

TEST_CASE("a prompt in an engine's blocks keeps what it keeps when its rows lie side by side") {
    for (bool const progressive : {true, false}) {
        CAPTURE(progressive);
        TableFixture dense;
        dense.open(1, {.progressive = progressive});
        dense.send_layers(1);
        dense.await([&] { return dense.ears.heard("peer/1: committed"); });

        TableFixture t;
        t.open(1, {.progressive = progressive});
        test::PagedPrompt const prompt(t.prompt);
        auto const region = t.lend(prompt.memory, false).value();
        for (std::uint32_t index = 0; index < LentPrompt::kLayers; ++index)
            REQUIRE(t.table.layer_ready(t.caller(), kEngine, 1,
                                        TableFixture::paged_layer_in(region, prompt, index)));
        t.await([&] { return t.ears.heard("peer/1: committed"); });

        CHECK(t.ears.last_outcome.lengths == dense.ears.last_outcome.lengths);
        auto const kept = t.ears.last_outcome.bytes_kept;
        CHECK(std::ranges::equal(t.destination->bytes().first(kept),
                                 dense.destination->bytes().first(kept)));
    }
}

TEST_CASE("a block that the engine never wrote to fails the session, and no page is made for it") {
    TableFixture t;
    t.open(5);
    test::EngineMemory const sparse(std::size_t{1} << 20U);
    test::PagedPrompt const prompt(t.prompt);
    auto request = TableFixture::paged_layer_in(t.lend(sparse, false).value(), prompt, 0);
    sparse.bytes()[6144] = std::byte{1};  // Of block 3, the prompt's first.
    REQUIRE(t.table.layer_ready(t.caller(), kEngine, 5, request));
    t.await([&] { return t.ears.heard(NoticeKind::SessionFailed); });
    CHECK(
        t.ears.lines.back() ==
        "peer/5: failed: keys in block 10 have 1024 bytes, of which the region has 0: the rest was "
        "never written");
}

TEST_CASE("two sessions of one engine and a policy that knows its budgets") {
    TableFixture t;
    t.open(1, {.wish = PolicyRequest{.name = "snapkv", .capacity = 32, .window = 8}});
    t.send_layers(1);
    auto const first_destination = std::move(t.destination);
    auto const first_staging = std::move(t.staging);
    t.open(2, {.progressive = false});
    t.send_layers(2);
    t.await([&] { return t.ears.heard("peer/1: committed") && t.ears.heard("peer/2: committed"); });

    CHECK(t.ears.lines.front() == "peer/1: layer 0 committed");
    CHECK(std::count(t.ears.lines.begin(), t.ears.lines.end(), "peer/1: layer 0 committed") == 1);
    CHECK(t.ears.heard("peer/2: layer 0 scored"));
}

TEST_CASE("layers come in order; a repeated one changes nothing") {
    TableFixture t;
    t.open(1);
    CHECK(refused(t.table.layer_ready(t.caller(), kEngine, 1, t.layer(1))).message ==
          "layer 1 comes first; layer 0 is next");
    REQUIRE(t.table.layer_ready(t.caller(), kEngine, 1, t.layer(0)));
    REQUIRE(t.table.layer_ready(t.caller(), kEngine, 1, t.layer(0)));
    auto const early = refused(t.table.layer_ready(t.caller(), kEngine, 1, t.layer(2)));
    CHECK(early.code == ErrorCode::BadState);
    CHECK(early.message == "layer 2 comes after layer 0; layer 1 is next");
    auto past = t.layer(2);
    past.layer = 3;
    CHECK(refused(t.table.layer_ready(t.caller(), kEngine, 1, past)).message ==
          "layer 3 is past the model's last, 2");
}

TEST_CASE("a layer that does not fit the session is refused, naming what is wrong") {
    TableFixture t;
    t.open(1);
    auto const refusal = [&](auto const& change) {
        auto request = t.layer(0);
        change(request);
        return refused(t.table.layer_ready(t.caller(), kEngine, 1, request)).message;
    };
    CHECK(refusal([](LayerRequest& r) { r.keys.region = 99; }) == "no region 99 is registered");
    CHECK(refusal([](LayerRequest& r) {
              r.values.offset = 1U << 30U;
          }).find("values end at byte") == 0);
    CHECK(refusal([](LayerRequest& r) { r.keys.tokens = 199; }) ==
          "keys is [2, 199, 8], not [2, 200, 8]");
    CHECK(refusal([](LayerRequest& r) { r.keys.dtype = Dtype::Bf16; }) == "keys is bf16, not f32");
    CHECK(refusal([](LayerRequest& r) { r.queries->tokens = 7; }) ==
          "queries is [4, 7, 8], not [4, 8, 8]");
    CHECK(refusal([](LayerRequest& r) { r.queries.reset(); }) ==
          "there are neither queries nor scores, and dynamickv ranks tokens by them");
    CHECK(refusal([](LayerRequest& r) { r.softcap = -1; }).find("scale 0.0") == 0);
    CHECK(refusal([](LayerRequest& r) {
              r.sink_logits = {1, 2};
          }) == "sink_logits has 2 values, not 4: one per query head");
    CHECK(refusal([](LayerRequest& r) {
              r.sink_logits = {1, 2, 3, -std::numeric_limits<float>::infinity()};
          }) == "sink_logits[3] is -inf, not a finite number");
    REQUIRE(t.table.layer_ready(t.caller(), kEngine, 1, t.layer(0)));
}

TEST_CASE("blocks that the prompt does not fill, or that are not apart, are refused") {
    TableFixture t;
    t.open(1);
    test::PagedPrompt const prompt(t.prompt);
    auto const region = t.lend(prompt.memory, false).value();
    auto const refusal = [&](auto const& change) {
        auto request = TableFixture::paged_layer_in(region, prompt, 0);
        auto ids = *prompt.ids;
        change(request, ids);
        request.blocks->ids = std::make_shared<std::vector<std::int32_t> const>(std::move(ids));
        return refused(t.table.layer_ready(t.caller(), kEngine, 1, request)).message;
    };
    CHECK(refusal([](LayerRequest&, auto& ids) { ids.pop_back(); }) ==
          "keys of 200 tokens do not lie in 12 blocks of 16");
    CHECK(refusal([](LayerRequest&, auto& ids) { ids.back() = ids.front(); }) ==
          "keys lie in block 3 twice");
    CHECK(refusal([](LayerRequest&, auto& ids) { ids.back() = -1; }) == "keys lie in block -1");
    CHECK(refusal([&](LayerRequest&, auto& ids) { ids.back() = 2000; }) ==
          "keys have block 2000, which ends at byte 4097536, past the region's " +
              std::to_string(prompt.memory.bytes().size()));
    CHECK(refusal([](LayerRequest& r, auto&) { r.blocks->stride = 300; }) ==
          "keys have blocks 300 elements apart, and each of them reaches further");
    CHECK(refusal([](LayerRequest& r, auto&) { r.values.tokens = 8; }) ==
          "values of 200 tokens do not lie in 13 blocks of 8");
    CHECK(refusal([](LayerRequest& r, auto&) {
              r.blocks->stride = ~std::uint64_t{0};
          }).find("which ends at no 64-bit byte") != std::string::npos);
    // What a sidecar that does not know blocks says.
    auto unknown = TableFixture::paged_layer_in(region, prompt, 0);
    unknown.blocks.reset();
    CHECK(refused(t.table.layer_ready(t.caller(), kEngine, 1, unknown)).message ==
          "keys is [2, 16, 8], not [2, 200, 8]");
    REQUIRE(t.table.layer_ready(t.caller(), kEngine, 1,
                                TableFixture::paged_layer_in(region, prompt, 0)));
}

TEST_CASE("buffers that cannot be written to, or are too small, are refused") {
    TableFixture t;
    t.open(1);
    REQUIRE(t.table.open_session(t.caller(), kEngine,
                                 {.session = 2, .prompt_tokens = LentPrompt::kTokens}));
    CHECK(refused(t.table.layer_ready(t.caller(), kEngine, 2, t.layer(0))).message ==
          "session 0x0000000000000002 is open: it has no buffers for layers yet");
    test::EngineMemory big(1U << 20U);
    test::EngineMemory tiny(4096);
    auto const writable = t.lend(big, true).value();
    auto const readable = t.lend(big, false).value();
    auto const small = t.lend(tiny, true).value();
    auto const bind = [&](std::uint64_t staging, std::uint64_t destination) {
        return refused(t.table.bind_buffers(t.caller(), kEngine, 2, staging, destination)).message;
    };

    CHECK(bind(readable, writable) ==
          "staging region " + std::to_string(readable) + " is read-only");
    CHECK(bind(writable, small)
              .find("destination region " + std::to_string(small) + " has 4096 bytes, not ") == 0);
    CHECK(bind(writable, writable) ==
          "staging and destination are the same region " + std::to_string(writable));
    CHECK(bind(writable, 0) == "no region 0 is registered");
}

TEST_CASE("a region that shrinks under a session fails it and nothing else") {
    TableFixture t;
    t.open(1);
    REQUIRE(::ftruncate(t.prompt.memory.fd(), 4096) == 0);
    REQUIRE(t.table.layer_ready(t.caller(), kEngine, 1, t.layer(0)));

    t.await([&] { return t.ears.heard(NoticeKind::SessionFailed); });

    auto const facts = t.table.facts();
    CHECK(facts.last_error.find("was cut to 4096 while it was registered") != std::string::npos);
    CHECK(facts.errors_total == 1);
    CHECK(t.table.instances(t.now).at(0).sessions_failed == 1);
    auto const late = refused(t.table.layer_ready(t.caller(), kEngine, 1, t.layer(1)));
    CHECK(late.code == ErrorCode::BadState);
    CHECK(late.message.find(
              "session 0x0000000000000001 is failed: it takes no more layers (a region of ") == 0);
    REQUIRE(t.table.close_session(t.caller(), kEngine, 1, ""));
}

TEST_CASE("an engine may give a session up, and use the memory for something else") {
    TableFixture t;
    t.open(1);
    REQUIRE(t.table.layer_ready(t.caller(), kEngine, 1, t.layer(0)));

    REQUIRE(t.table.close_session(t.caller(), kEngine, 1, "deadline\npassed"));

    CHECK(t.ears.heard("peer/1: failed: given up by the engine: deadline?passed"));
    CHECK(t.table.facts().savings.sessions_failed == 1);
    auto const closed = t.table.sessions({.instance = kEngine}, t.now);
    REQUIRE(closed);
    CHECK(closed.value().at(0).state == SessionState::Failed);
    CHECK(refused(t.table.adopted(t.caller(), kEngine, 1, {})).message ==
          "engine 0x000000000000000b has no open session 0x0000000000000001");
}

TEST_CASE("closing a session that was refused says nothing more about it") {
    TableFixture t;
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(TableFixture::kEngine)));
    CHECK(
        refused(t.table.open_session(
                    t.caller(), kEngine,
                    {.session = 77, .prompt_tokens = 100, .wish = PolicyRequest{.name = "nosuch"}}))
            .code == ErrorCode::NotFound);
    auto const errors = t.table.facts().errors_total;

    REQUIRE(t.table.close_session(t.caller(), kEngine, 77, "policy refused"));

    CHECK(t.table.facts().errors_total == errors);
}

TEST_CASE("a prompt that is kept whole needs nothing but its end") {
    TableFixture t;
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(kEngine)));
    auto const opened =
        t.table.open_session(t.caller(), kEngine, {.session = 1, .prompt_tokens = 20});
    REQUIRE(opened);
    CHECK(!opened.value().needs.compress);
    CHECK(refused(t.table.bind_buffers(t.caller(), kEngine, 1, 0, 0)).message ==
          "session 0x0000000000000001 is open: its prompt is kept whole and needs no buffers");
    CHECK(refused(t.table.open_session(t.caller(), kEngine, {.session = 1, .prompt_tokens = 20}))
              .code == ErrorCode::AlreadyExists);

    REQUIRE(t.table.close_session(t.caller(), kEngine, 1, ""));

    auto const savings = t.table.facts().savings;
    CHECK(savings.sessions == 1);
    CHECK(savings.bytes_dropped == 0);
    CHECK(savings.bytes_full == LentPrompt::geometry().cache_bytes(20));
}

TEST_CASE("an engine may leave in the middle of a session") {
    TableFixture t;
    t.open(1);
    t.send_layers(1);

    REQUIRE(t.table.goodbye(t.caller(), kEngine));

    CHECK(t.table.facts().mapped_bytes == 0);
    CHECK(t.table.facts().gone.at(0).find("said goodbye") != std::string::npos);
    t.table.finish_work(t.now);
    t.table.tick(t.now);
}

}  // namespace
}  // namespace dkv
