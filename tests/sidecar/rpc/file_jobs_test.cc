// Saved caches that a sidecar compacts when a controller asks.
#include <thread>

#include <doctest/doctest.h>

#include "sidecar/rpc/server.h"
#include "tests/support/engine_memory.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

namespace dkv::rpc {
namespace {

using test::TempDir;

class LastLetter : public Outbox {
public:
    Sent send(Peer const&, std::span<std::uint8_t const> bytes) override {
        auto envelope = decode(std::as_bytes(bytes));
        REQUIRE(envelope);
        letter = std::move(envelope).value();
        return Sent::Yes;
    }
    std::unique_ptr<wire::EnvelopeT> letter;
};

struct FileServer {
    explicit FileServer(std::string const& endpoint = "ipc:///tmp/dkvd.sock", Config config = {})
        : server({.config = std::move(config), .endpoint = endpoint, .boot_id = 1},
                 metrics,
                 outbox,
                 Backends([] { return make_cpu_backend(1); }),
                 [] {}) {}

    template <class Message>
    wire::BodyUnion& ask(Message message) {
        wire::EnvelopeT envelope;
        envelope.id = 9;
        envelope.body.Set(std::move(message));
        auto const bytes = encode(envelope);
        server.on_message("peer", std::as_bytes(std::span(bytes)), 2000, sender);
        REQUIRE(outbox.letter != nullptr);
        return outbox.letter->body;
    }
    template <class Message>
    std::string refusal(Message message) {
        auto const* const failure = ask(std::move(message)).AsFailure();
        REQUIRE(failure != nullptr);
        return failure->message;
    }
    /// As a controller does: asks until it is at its end.
    wire::FileJobT result_of(wire::CompactFileT request, bool stop = false) {
        auto const* job = ask(std::move(request)).AsFileJob();
        REQUIRE(job != nullptr);
        while (!job->ended) {
            wire::GetFileJobT again;
            again.job = job->job;
            again.stop = stop;
            std::this_thread::yield();
            job = ask(again).AsFileJob();
            REQUIRE(job != nullptr);
        }
        return *job;
    }

    Sender sender = {.process = test::own_process()};
    Metrics metrics;
    LastLetter outbox;
    Server server;
};

wire::CompactFileT request_for(std::string const& input, std::string const& output) {
    wire::CompactFileT request;
    request.input = input;
    request.output = output;
    request.policy = std::make_unique<wire::PolicyT>();
    request.policy->name = "snapkv";
    request.policy->capacity = 16;
    request.policy->window = 8;
    return request;
}

}  // namespace

TEST_CASE("a sidecar compacts a file, and tells what came of it") {
    TempDir const folder;
    auto const input = test::write_random_cache(folder / "in.safetensors");
    FileServer s;

    auto const job = s.result_of(request_for(input, folder / "out.safetensors"));

    REQUIRE(job.outcome != nullptr);
    CHECK(job.failure == nullptr);
    CHECK(job.outcome->from == "dkv");
    CHECK(job.outcome->to == "dkv");
    CHECK(job.outcome->prompt_tokens == 80);
    CHECK(job.outcome->lengths == std::vector<std::uint32_t>(6, 16));
    CHECK(job.outcome->mass_kept.size() == 3);
    CHECK(job.outcome->policy->name == "snapkv");
    CHECK(job.outcome->file_bytes_after == std::filesystem::file_size(folder / "out.safetensors"));
    CHECK(s.result_of(request_for(input, folder / "out.safetensors")).outcome->already_there);
}

TEST_CASE("what a file fails with is the job's failure, not the request's") {
    TempDir const folder;
    FileServer s;
    auto const job = s.result_of(request_for(folder / "none", folder / "out"));
    REQUIRE(job.failure != nullptr);
    CHECK(job.outcome == nullptr);
    CHECK(job.failure->code == wire::ErrorCode::Io);
    CHECK(job.failure->message == folder / "none" + ": No such file or directory");
}

TEST_CASE("requests for files that make no sense are refused, naming the value") {
    FileServer s;
    CHECK(s.refusal(request_for("in", "/out")) == "input 'in' is no absolute path");
    CHECK(s.refusal(request_for("/in", "out")) == "output 'out' is no absolute path");
    auto format = request_for("/in", "/out");
    format.format = "gguf";
    CHECK(s.refusal(std::move(format)) == "no format is called \"gguf\"");
    wire::GetFileJobT unknown;
    unknown.job = 7;
    CHECK(s.refusal(unknown) == "no file job has the number 7");
    s.sender = {.key = "alice"};
    CHECK(s.refusal(request_for("/in", "/out")) ==
          "CompactFile works on files of the sidecar's machine, and is taken over ipc:// alone");
}

TEST_CASE("a file job that is told to stop before it begins leaves no output") {
    TempDir const folder;
    FileJobs jobs(8, [] { return make_cpu_backend(1); });
    offline::CompactRequest request;
    request.input = test::write_random_cache(folder / "in.safetensors");
    request.output = folder / "out";
    request.policy = {.name = "snapkv", .capacity = 16, .window = 8};
    // Behind others, so that it waits.
    std::vector<std::uint64_t> ids;
    for (int i = 0; i < 4; ++i) {
        auto const id = jobs.start(request);
        REQUIRE(id);
        REQUIRE(jobs.stop(id.value()));
        ids.push_back(id.value());
    }
    for (auto const id : ids)
        while (!jobs.facts(id).value().outcome)
            std::this_thread::yield();
    auto const last = jobs.facts(ids.back()).value();
    REQUIRE_FALSE(*last.outcome);
    CHECK(last.outcome->error().code == ErrorCode::Cancelled);
}

TEST_CASE("of file jobs that ended the oldest are forgotten for new ones; others are not") {
    TempDir const folder;
    std::atomic<bool> go = false;
    FileJobs jobs(2, [&go] {
        while (!go)
            std::this_thread::yield();
        return make_cpu_backend(1);
    });
    offline::CompactRequest request;
    request.input = folder / "none";
    request.output = folder / "out";
    auto const first = jobs.start(request).value();
    auto const second = jobs.start(request).value();
    auto const full = jobs.start(request);
    REQUIRE_FALSE(full);
    CHECK(full.error().message == "2 files are waiting, which is the limit");

    go = true;
    while (!jobs.facts(second).value().outcome)
        std::this_thread::yield();
    CHECK(jobs.start(request));
    CHECK(jobs.facts(first).error().code == ErrorCode::NotFound);
    CHECK(jobs.facts(second));
}

}  // namespace dkv::rpc
