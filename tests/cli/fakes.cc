#include "tests/cli/fakes.h"

namespace dkv::test {
namespace {

constexpr std::uint64_t kMiB = 1U << 20U;

class FakeController final : public sdk::Controller {
public:
    explicit FakeController(FakeSidecar& sidecar) : sidecar_(sidecar) {}

    Result<wire::StatusInfoT> status() override { return answer(sidecar_.status); }
    Result<wire::InstanceListT> instances() override { return answer(sidecar_.instances()); }
    Result<wire::SessionListT> sessions(std::uint64_t instance) override {
        sidecar_.sessions_asked_of = instance;
        return answer(sidecar_.sessions());
    }
    Result<wire::SessionListT> spans(std::uint64_t session) override {
        sidecar_.spans_asked_of = session;
        return answer(sidecar_.sessions());
    }
    Result<wire::SavingsInfoT> savings() override { return answer(sidecar_.savings); }
    Result<wire::PolicyListT> policies() override { return answer(sidecar_.policies); }
    Result<void> set_policy(std::uint64_t instance, wire::PolicyT const* policy) override {
        if (sidecar_.fail) return *sidecar_.fail;
        if (sidecar_.refuse_policy) return *sidecar_.refuse_policy;
        sidecar_.set_policies.push_back(
            {instance, policy == nullptr ? std::nullopt : std::optional(*policy)});
        return {};
    }
    Result<void> stop() override {
        if (sidecar_.fail) return *sidecar_.fail;
        ++sidecar_.stops;
        return {};
    }
    Result<void> detach(std::uint64_t instance) override {
        if (sidecar_.fail) return *sidecar_.fail;
        sidecar_.detached.push_back(instance);
        return {};
    }
    Result<void> subscribe() override {
        if (sidecar_.fail) return *sidecar_.fail;
        return {};
    }
    Result<std::optional<wire::NoticeT>> next_notice(std::chrono::milliseconds) override {
        if (sidecar_.fail) return *sidecar_.fail;
        if (sidecar_.notices.empty()) return std::optional<wire::NoticeT>();
        auto next = std::move(sidecar_.notices.front());
        sidecar_.notices.pop_front();
        if (!next) return next.error();
        return std::optional(next.value());
    }

private:
    template <class T>
    Result<T> answer(T facts) const {
        if (sidecar_.fail) return *sidecar_.fail;
        return facts;
    }

    FakeSidecar& sidecar_;
};

}  // namespace

wire::PolicyT some_policy(std::string name, std::uint32_t capacity) {
    wire::PolicyT policy;
    policy.name = std::move(name);
    policy.capacity = capacity;
    policy.window = 32;
    policy.kernel = 7;
    policy.pool = wire::Pool::Max;
    policy.reduce = wire::GroupReduce::Mean;
    policy.r_max = 10;
    policy.r_min = 0.1;
    policy.update_interval = 4;
    policy.sinks = 4;
    policy.beta = 20;
    return policy;
}

std::unique_ptr<wire::SessionInfoT> some_session(std::uint64_t id) {
    auto session = std::make_unique<wire::SessionInfoT>();
    session->instance = 0xfeedbeef;
    session->session = id;
    session->state = wire::SessionState::Adopted;
    session->policy = std::make_unique<wire::PolicyT>(some_policy("dynamickv", 512));
    session->prompt_tokens = 3584;
    session->layers_done = 2;
    session->layers = 2;
    session->kv_heads = 2;
    session->lengths = {824, 824, 200, 200};
    session->mass_kept = {0.975F, 0.5F};
    session->bytes_full = 112 * kMiB;
    session->bytes_kept = 16 * kMiB;
    session->bytes_block_table = 86 * kMiB;
    session->bytes_returned = 95 * kMiB;
    session->bytes_peak = 64 * kMiB;
    session->bytes_final = 17 * kMiB;
    session->busy_ns = 123'400'000;
    session->age_ms = 65'000;
    return session;
}

std::unique_ptr<wire::InstanceInfoT> some_instance(std::uint64_t id) {
    auto instance = std::make_unique<wire::InstanceInfoT>();
    instance->instance = id;
    instance->generation = 1;
    instance->pid = 4242;
    instance->engine = "transformers 5.23.0";
    instance->model = "SmolLM2-135M-Instruct";
    instance->device = "cpu";
    instance->geometry = std::make_unique<wire::GeometryT>();
    instance->geometry->layers = 30;
    instance->geometry->q_heads = 9;
    instance->geometry->kv_heads = 3;
    instance->geometry->head_dim = 64;
    instance->geometry->dtype = wire::Dtype::F32;
    instance->alive = true;
    instance->attached_ms = 200'000;
    instance->idle_ms = 400;
    instance->sessions_open = 1;
    instance->sessions_total = 12;
    instance->sessions_failed = 1;
    instance->mapped_bytes = 512 * kMiB;
    instance->regions = 3;
    instance->policy = std::make_unique<wire::PolicyT>(some_policy("dynamickv", 512));
    instance->policy_source = "default";
    instance->savings = std::make_unique<wire::SavingsT>(some_savings());
    return instance;
}

wire::SavingsT some_savings() {
    wire::SavingsT savings;
    savings.sessions = 12;
    savings.sessions_failed = 1;
    savings.prompt_tokens = 43008;
    savings.bytes_full = 1344 * kMiB;
    savings.bytes_dropped = 1152 * kMiB;
    savings.bytes_returned = 1140 * kMiB;
    savings.bytes_block_table = 1032 * kMiB;
    savings.bytes_peak = 64 * kMiB;
    savings.busy_ns = 1'480'000'000;
    return savings;
}

cli::doctor::Readings good_machine() {
    cli::doctor::Readings r;
    r.endpoint = "ipc:///run/user/7/dkv/dkvd.sock";
    r.cpu = {"Some CPU @ 3 GHz", {"sse2", "avx2", "avx512f", "avx512_bf16", "amx_bf16"}};
    r.cores = 8;
    r.memory_bytes = 32ULL << 30U;
    r.memory_available_bytes = 16ULL << 30U;
    r.shm_bytes = 16ULL << 30U;
    r.shm_free_bytes = 15ULL << 30U;
    r.ptrace_scope = 1;
    r.files_max = 1024;
    r.files_hard_max = 524288;
    r.memlock_bytes = 8 * kMiB;
    r.maps_max = 65530;
    r.socket = {"/run/user/7/dkv", true, true, true, true, 0700};
    r.sidecar = {"7.8.9", 1, 99, "", false};
    return r;
}

FakeSidecar FakeSidecar::running() {
    FakeSidecar sidecar;
    auto& status = sidecar.status;
    status.version = "7.8.9";
    status.protocol = 1;
    status.pid = 99;
    status.uptime_ms = 7'500'000;
    status.endpoint = "ipc:///run/user/7/dkv/dkvd.sock";
    status.backend = "cpu (avx2, 8 threads)";
    status.threads = 8;
    status.policy = std::make_unique<wire::PolicyT>(some_policy("dynamickv", 512));
    status.policy_source = "default";
    sidecar.policies.default_policy =
        std::make_unique<wire::PolicyT>(some_policy("dynamickv", 512));
    sidecar.policies.default_source = "default";
    for (auto const& [name, summary] :
         {std::pair{"fullkv", "keeps everything"},
          {"streamingllm", "first and last tokens"},
          {"dynamickv", "budgets per layer from the prompt's own attention"}}) {
        auto info = std::make_unique<wire::PolicyInfoT>();
        info->name = name;
        info->summary = summary;
        info->policy = std::make_unique<wire::PolicyT>(some_policy(name, 256));
        sidecar.policies.policies.push_back(std::move(info));
    }
    return sidecar;
}

Ran run_dkv(std::vector<std::string> arguments,
            FakeSidecar& sidecar,
            std::function<void(cli::Environment&)> const& tweak) {
    std::ostringstream out;
    std::ostringstream err;
    cli::Environment environment;
    environment.connect = [&](std::string const&, std::chrono::milliseconds,
                              sdk::KeyFiles const&) -> Result<std::unique_ptr<sdk::Controller>> {
        ++sidecar.connects;
        return std::unique_ptr<sdk::Controller>(std::make_unique<FakeController>(sidecar));
    };
    environment.add_daemon_flags = [](CLI::App& app, Config& config) {
        app.add_option("--endpoint", config.endpoint, "where to listen");
        app.add_option("--threads", config.threads, "threads");
    };
    environment.run_daemon = [](Config const&, auto const&) -> Result<void> { return {}; };
    environment.read_machine = [](std::string const&) { return good_machine(); };
    environment.catch_interrupts = [] { return [] { return false; }; };
    environment.pause = [](std::chrono::milliseconds) {};
    environment.out = &out;
    environment.err = &err;
    environment.style = {.color = false, .unicode = true, .columns = 80, .rows = 24};
    if (tweak) tweak(environment);
    int const exit_code = cli::run(std::move(arguments), environment);
    return {exit_code, out.str(), err.str()};
}

}  // namespace dkv::test
