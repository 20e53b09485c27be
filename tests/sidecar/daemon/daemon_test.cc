// A whole daemon on a real socket, and an engine made by hand in this process.
#include "sidecar/daemon.h"

#include <algorithm>
#include <cstring>

#include <doctest/doctest.h>

#include "protocol/base/kv_layout.h"
#include "protocol/base/version.h"
#include "tests/sidecar/daemon/running.h"
#include "tests/support/lent_prompt.h"

namespace dkv {
namespace {

using test::Client;
using test::EngineMemory;
using test::LentPrompt;
using test::RunningDaemon;
using wire::Body;

constexpr std::uint64_t kEngine = 0xabc;

/// An engine that does one prompt, step by step.
class HandMadeEngine {
public:
    explicit HandMadeEngine(std::string const& endpoint) : client(endpoint) {
        wire::HelloT hello;
        hello.instance = kEngine;
        hello.generation = 1;
        hello.pid = test::own_pid();
        hello.engine = "by hand";
        hello.model = "tiny";
        hello.geometry = std::make_unique<wire::GeometryT>();
        hello.geometry->layers = LentPrompt::kLayers;
        hello.geometry->q_heads = LentPrompt::kQHeads;
        hello.geometry->kv_heads = LentPrompt::kKvHeads;
        hello.geometry->head_dim = LentPrompt::kDim;
        hello.geometry->dtype = wire::Dtype::F32;
        REQUIRE(client.ask(std::move(hello))->body.type == Body::Welcome);
        source_ = lend(prompt.memory, false);
    }

    void open(std::uint64_t session, char const* policy, bool progressive) {
        session_ = session;
        wire::OpenSessionT open;
        open.instance = kEngine;
        open.session = session;
        open.prompt_tokens = LentPrompt::kTokens;
        open.progressive = progressive;
        open.policy = std::make_unique<wire::PolicyT>();
        open.policy->name = policy;
        open.policy->capacity = 32;
        open.policy->window = LentPrompt::kWindow;
        auto const reply = client.ask(std::move(open));
        REQUIRE(reply->body.type == Body::SessionOpened);
        opened = *reply->body.AsSessionOpened();
        REQUIRE(opened.compress);

        wire::BindBuffersT bind;
        bind.instance = kEngine;
        bind.session = session;
        if (opened.staging_bytes > 0) {
            staging = std::make_unique<EngineMemory>(opened.staging_bytes);
            bind.staging_region = lend(*staging, true);
        }
        destination = std::make_unique<EngineMemory>(opened.destination_bytes);
        bind.destination_region = lend(*destination, true);
        REQUIRE(client.ask(std::move(bind))->body.type == Body::Done);
    }

    void send_layers() {
        for (std::uint32_t layer = 0; layer < LentPrompt::kLayers; ++layer) {
            wire::LayerReadyT ready;
            ready.instance = kEngine;
            ready.session = session_;
            ready.layer = layer;
            ready.keys =
                rows(LentPrompt::keys_offset(layer), LentPrompt::kKvHeads, LentPrompt::kTokens);
            ready.values =
                rows(LentPrompt::values_offset(layer), LentPrompt::kKvHeads, LentPrompt::kTokens);
            if (opened.window > 0)
                ready.queries = rows(LentPrompt::queries_offset(layer), LentPrompt::kQHeads,
                                     LentPrompt::kWindow);
            REQUIRE(client.ask(std::move(ready))->body.type == Body::Done);
        }
    }

    /// Listens until the destination is complete; where each layer begins is in `places`.
    wire::CommittedT await_commit() {
        places.assign(LentPrompt::kLayers, 0);
        while (true) {
            auto const event = client.next_event();
            REQUIRE(event->body.type != Body::SessionFailed);
            if (auto const* const progress = event->body.AsLayerProgress();
                progress != nullptr && progress->stage == wire::LayerStage::Committed)
                places.at(progress->layer) = progress->destination_offset;
            if (auto const* const committed = event->body.AsCommitted()) return *committed;
        }
    }

    /// Whether the destination holds, for every head, its positions in order, the window last, and
    /// with each the bytes that the source has there.
    void check_destination(wire::CommittedT const& committed) const {
        for (std::uint32_t layer = 0; layer < LentPrompt::kLayers; ++layer) {
            auto const lengths = std::span(committed.lengths)
                                     .subspan(layer * LentPrompt::kKvHeads, LentPrompt::kKvHeads);
            auto const packed = packed_layer(LentPrompt::geometry(), lengths, places[layer]);
            auto const* const positions = destination->at<std::int32_t>(packed.positions_offset);
            for (std::uint32_t head = 0; head < LentPrompt::kKvHeads; ++head) {
                auto const begin = packed.head_rows[head];
                auto const end = packed.head_rows[head + 1];
                REQUIRE(end - begin >= LentPrompt::kWindow);
                CHECK(positions[end - LentPrompt::kWindow] ==
                      static_cast<std::int32_t>(LentPrompt::kTokens - LentPrompt::kWindow));
                CHECK(std::adjacent_find(positions + begin, positions + end,
                                         std::greater_equal<>()) == positions + end);
                for (std::uint32_t row = begin; row < end; ++row)
                    check_row(packed, layer, head, row, static_cast<std::uint32_t>(positions[row]));
            }
        }
    }

    LentPrompt prompt;
    Client client;
    wire::SessionOpenedT opened;
    std::unique_ptr<EngineMemory> staging;
    std::unique_ptr<EngineMemory> destination;
    std::vector<std::uint64_t> places;

private:
    std::uint64_t lend(EngineMemory const& memory, bool writable) {
        wire::RegisterRegionT region;
        region.instance = kEngine;
        wire::MemfdT memfd;
        memfd.pid = test::own_pid();
        memfd.fd = memory.fd();
        memfd.inode = memory.inode();
        region.source.Set(std::move(memfd));
        region.bytes = memory.bytes().size();
        region.writable = writable;
        auto const reply = client.ask(std::move(region));
        REQUIRE(reply->body.type == Body::RegionRegistered);
        return reply->body.AsRegionRegistered()->region;
    }
    std::unique_ptr<wire::RowsT> rows(std::uint64_t offset,
                                      std::uint32_t heads,
                                      std::uint32_t tokens) const {
        auto rows = std::make_unique<wire::RowsT>();
        rows->region = source_;
        rows->offset = offset;
        rows->dtype = wire::Dtype::F32;
        rows->heads = heads;
        rows->tokens = tokens;
        rows->head_dim = LentPrompt::kDim;
        rows->head_stride = std::uint64_t{tokens} * LentPrompt::kDim;
        rows->token_stride = LentPrompt::kDim;
        rows->dim_stride = 1;
        return rows;
    }
    void check_row(PackedLayer const& packed,
                   std::uint32_t layer,
                   std::uint32_t head,
                   std::uint32_t row,
                   std::uint32_t token) const {
        auto const at = row * LentPrompt::geometry().row_bytes();
        CHECK(prompt.is_row(LentPrompt::keys_offset(layer), head, token,
                            destination->at<std::byte>(packed.keys_offset + at)));
        CHECK(prompt.is_row(LentPrompt::values_offset(layer), head, token,
                            destination->at<std::byte>(packed.values_offset + at)));
    }

    std::uint64_t source_ = 0;
    std::uint64_t session_ = 0;
};

TEST_CASE("a prompt is compressed through a daemon, whatever the policy") {
    RunningDaemon daemon;
    HandMadeEngine engine(daemon.endpoint);
    std::uint64_t session = 0;
    for (auto const* const policy : {"dynamickv", "snapkv", "pyramidkv", "streamingllm", "knorm"}) {
        for (bool const progressive : {true, false}) {
            CAPTURE(policy);
            CAPTURE(progressive);
            engine.open(++session, policy, progressive);
            engine.send_layers();
            auto const committed = engine.await_commit();

            std::uint64_t kept = 0;
            for (auto const length : committed.lengths)
                kept += length;
            CHECK(kept == 32 * LentPrompt::kLayers * LentPrompt::kKvHeads);
            CHECK(committed.bytes_full == LentPrompt::geometry().cache_bytes(LentPrompt::kTokens));
            CHECK(committed.bytes_kept < committed.bytes_full / 4);
            CHECK(committed.busy_ns > 0);
            for (auto const mass : committed.mass_kept)
                CHECK((mass > 0 && mass <= 1.001F));
            engine.check_destination(committed);

            wire::AdoptedT adopted;
            adopted.instance = kEngine;
            adopted.session = session;
            adopted.bytes_returned = 1000;
            CHECK(engine.client.ask(std::move(adopted))->body.type == Body::Done);
            wire::CloseSessionT close;
            close.instance = kEngine;
            close.session = session;
            CHECK(engine.client.ask(std::move(close))->body.type == Body::Done);
        }
    }
    Client controller(daemon.endpoint);
    auto const savings = controller.ask(wire::GetSavingsT());
    REQUIRE(savings->body.type == Body::SavingsInfo);
    CHECK(savings->body.AsSavingsInfo()->total->sessions == 10);
    CHECK(savings->body.AsSavingsInfo()->total->bytes_returned == 10000);
    CHECK(savings->body.AsSavingsInfo()->sessions.size() == 10);
}

TEST_CASE("a controller watches a session, then stops the daemon") {
    RunningDaemon daemon;
    Client controller(daemon.endpoint);
    CHECK(controller.ask(wire::SubscribeT())->body.type == Body::Done);
    HandMadeEngine engine(daemon.endpoint);
    engine.open(1, "dynamickv", true);
    engine.send_layers();

    std::vector<std::string> kinds;
    while (kinds.empty() || kinds.back() != "session_committed") {
        auto const event = controller.next_event();
        REQUIRE(event->body.type == Body::Notice);
        kinds.push_back(event->body.AsNotice()->kind);
    }
    CHECK(kinds[0] == "instance_attached");
    CHECK(kinds[1] == "session_opened");
    CHECK(kinds[2] == "layer");

    wire::StopT stop;
    stop.boot_id = controller.ask(wire::GetStatusT())->boot_id;
    CHECK(controller.ask(stop)->body.type == Body::Done);
    CHECK(controller.next_event()->body.AsNotice()->kind == "stopping");
}

TEST_CASE("a second daemon at the same endpoint is refused") {
    RunningDaemon daemon;
    Config config;
    config.endpoint = daemon.endpoint;

    auto const second = Daemon::start(config);

    REQUIRE(!second);
    CHECK(second.error().code == ErrorCode::AlreadyExists);
    CHECK(second.error().message.starts_with("a sidecar already listens at " + daemon.endpoint +
                                             ": dkvd " + kVersion + ", process "));
}

}  // namespace
}  // namespace dkv
