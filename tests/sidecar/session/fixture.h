// A table with a fake clock and ears, and an engine that lends a real prompt to it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "sidecar/session/table.h"
#include "tests/support/lent_prompt.h"
#include "tests/support/paged_prompt.h"
#include "tests/support/results.h"
#include "tests/support/wakes.h"

namespace dkv::test {

/// Writes down what it hears, a line each.
class Ears : public Listener {
public:
    void layer_progress(Peer const& engine,
                        std::uint64_t session,
                        LayerProgress const& progress) override {
        static constexpr char const* kStages[] = {"scored", "staged", "trimmed", "committed"};
        add(engine, session,
            "layer " + std::to_string(progress.layer) + " " +
                kStages[static_cast<unsigned>(progress.stage)]);
    }
    void planned(Peer const& engine,
                 std::uint64_t session,
                 std::vector<std::uint32_t> const& /*lengths*/) override {
        add(engine, session, "planned");
    }
    void committed(Peer const& engine,
                   std::uint64_t session,
                   JobOutcome const& outcome,
                   SpentTime spent) override {
        last_outcome = outcome;
        last_busy_ns = spent.busy;
        add(engine, session, "committed");
    }
    void session_failed(Peer const& engine, std::uint64_t session, Error const& error) override {
        add(engine, session, "failed: " + error.message);
    }
    void region_registered(Asker const& asker, Result<std::uint64_t> const& region) override {
        answers.push_back(
            std::string(asker.name) + " " + std::to_string(asker.request) + ": " +
            (region ? "region " + std::to_string(region.value()) : region.error().message));
    }
    void done(Asker const& asker, Result<void> const& result) override {
        answers.push_back(std::string(asker.name) + " " + std::to_string(asker.request) + ": " +
                          (result ? "done" : result.error().message));
    }
    void notice(Notice const& notice) override { notices.push_back(notice); }

    bool heard(std::string const& line) const {
        return std::find(lines.begin(), lines.end(), line) != lines.end();
    }
    bool heard(NoticeKind kind) const {
        return std::any_of(notices.begin(), notices.end(),
                           [&](Notice const& notice) { return notice.kind == kind; });
    }

    std::vector<std::string> lines;
    std::vector<std::string> answers;  ///< Those that came late.
    std::vector<Notice> notices;
    JobOutcome last_outcome;
    std::uint64_t last_busy_ns = 0;

private:
    void add(Peer const& engine, std::uint64_t session, std::string const& what) {
        lines.push_back(engine + "/" + std::to_string(session) + ": " + what);
    }
};

/// A table of any backends, its clock and its ears; its loop runs while a test waits.
struct RunningTable {
    static constexpr std::uint64_t kEngine = 11;

    RunningTable(Config settings, Backends backends)
        : config(std::move(settings)),
          table(config, metrics, ears, std::move(backends), [this] { wakes.ring(); }) {}

    static Config small_config() {
        Config config;
        config.policy.name = "dynamickv";  // The one with every step: staged, trimmed, packed.
        config.policy.capacity = 32;
        config.policy.window = LentPrompt::kWindow;
        config.heartbeat_ms = 100;
        return config;
    }
    static EngineHello hello_of(std::uint64_t instance, std::uint32_t pid = 0) {
        return {.instance = instance,
                .generation = 1,
                .group = 0,
                .pid = pid,
                .engine = "test 1.0",
                .model = "tiny",
                .device = "cpu",
                .geometry = LentPrompt::geometry()};
    }
    static RowsAt rows_at(std::uint64_t region,
                          std::uint64_t offset,
                          std::uint32_t heads,
                          std::uint32_t tokens) {
        return {.region = region,
                .offset = offset,
                .dtype = Dtype::F32,
                .heads = heads,
                .tokens = tokens,
                .head_dim = LentPrompt::kDim,
                .head_stride = std::uint64_t{tokens} * LentPrompt::kDim,
                .token_stride = LentPrompt::kDim,
                .dim_stride = 1};
    }
    /// A layer of the prompt that is lent as `region`.
    static LayerRequest layer_in(std::uint64_t region, std::uint32_t index) {
        LayerRequest request;
        request.layer = index;
        request.keys = rows_at(region, LentPrompt::keys_offset(index), LentPrompt::kKvHeads,
                               LentPrompt::kTokens);
        request.values = rows_at(region, LentPrompt::values_offset(index), LentPrompt::kKvHeads,
                                 LentPrompt::kTokens);
        request.queries = rows_at(region, LentPrompt::queries_offset(index), LentPrompt::kQHeads,
                                  LentPrompt::kWindow);
        return request;
    }
    /// A layer of the same prompt in blocks, lent as `region`.
    static LayerRequest paged_layer_in(std::uint64_t region,
                                       PagedPrompt const& prompt,
                                       std::uint32_t index) {
        LayerRequest request = layer_in(region, index);
        request.queries->offset = PagedPrompt::queries_offset(index);
        request.keys.offset = PagedPrompt::keys_offset(index);
        request.values.offset = PagedPrompt::values_offset(index);
        request.keys.tokens = request.values.tokens = PagedPrompt::kBlockTokens;
        request.keys.head_stride = request.values.head_stride = PagedPrompt::kHeadStride;
        request.keys.token_stride = 1;
        request.keys.dim_stride = PagedPrompt::kBlockTokens;
        request.blocks = BlocksAt{.ids = prompt.ids, .stride = PagedPrompt::kBlockStride};
        return request;
    }
    /// Lets the loop's part run, as often as the workers wake it, until `done`.
    void await(std::function<bool()> const& done) {
        table.finish_work(now);
        while (!done()) {
            wakes.wait();
            table.finish_work(now);
        }
    }

    Config config;
    Millis now = 1000;
    PeerCredentials process = own_process();  ///< Behind every caller.
    Metrics metrics;
    Ears ears;
    Wakes wakes;
    Table table;
};

struct TableFixture : RunningTable {
    explicit TableFixture(Config settings = small_config(), MakeBackend make = {})
        : RunningTable(std::move(settings),
                       Backends(make ? std::move(make) : [] { return make_cpu_backend(1); })) {}

    Caller caller() const { return {"peer", now, 0, process}; }
    Result<std::uint64_t> lend(EngineMemory const& memory, bool writable) {
        auto const answer = DKV_TRY(table.register_region(
            caller(), kEngine, MemfdSource{own_pid(), memory.fd(), memory.inode()},
            memory.bytes().size(), writable));
        return std::get<std::uint64_t>(answer);
    }
    LayerRequest layer(std::uint32_t index) const { return layer_in(source, index); }
    /// Hello, the source's region, and a session with its buffers bound.
    void open(std::uint64_t session, OpenRequest request = {}) {
        if (source == 0) {
            REQUIRE(table.hello(caller(), hello_of(kEngine)));
            source = lend(prompt.memory, false).value();
        }
        request.session = session;
        request.prompt_tokens = LentPrompt::kTokens;
        auto const opened = table.open_session(caller(), kEngine, request);
        REQUIRE(opened);
        auto const& needs = opened.value().needs;
        REQUIRE(needs.compress);
        staging = std::make_unique<EngineMemory>(std::max<std::uint64_t>(needs.staging_bytes, 1));
        destination = std::make_unique<EngineMemory>(needs.destination_bytes);
        auto const staging_region = needs.staging_bytes == 0 ? 0 : lend(*staging, true).value();
        REQUIRE(table.bind_buffers(caller(), kEngine, session, staging_region,
                                   lend(*destination, true).value()));
    }
    void send_layers(std::uint64_t session) {
        for (std::uint32_t index = 0; index < LentPrompt::kLayers; ++index)
            REQUIRE(table.layer_ready(caller(), kEngine, session, layer(index)));
    }
    LentPrompt prompt;
    std::uint64_t source = 0;
    std::unique_ptr<EngineMemory> staging;
    std::unique_ptr<EngineMemory> destination;
};

inline constexpr auto kEngine = TableFixture::kEngine;

template <class T>
Error refused(Result<T> const& result) {
    REQUIRE(!result);
    return result.error();
}

}  // namespace dkv::test
