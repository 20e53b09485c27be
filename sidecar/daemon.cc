#include "sidecar/daemon.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <unistd.h>
#include <utility>

#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include "kernels/backend.h"
#include "protocol/base/endpoint.h"
#include "protocol/base/version.h"
#include "sidecar/config/config_file.h"
#include "sidecar/log_sink.h"
#include "sidecar/memory/left_behind.h"
#include "sidecar/metrics/http_server.h"
#include "sidecar/metrics/metrics.h"
#include "sidecar/rpc/server.h"
#include "sidecar/supervisor.h"
#include "sidecar/transport/connection_gate.h"
#include "sidecar/transport/fd_socket.h"
#include "sidecar/transport/transport.h"

namespace dkv {
namespace {

constexpr std::uint32_t kTickMs = 500;
/// Of answers and events that their peers have not read yet.
constexpr std::int64_t kBytesOutInAllMax = 256 << 20;

std::uint64_t random_id() {
    std::random_device source;
    std::uint64_t id = 0;
    while (id == 0)
        id = std::uint64_t{source()} << 32U | source();
    return id;
}

std::uint64_t wall_ms() {
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                          std::chrono::system_clock::now().time_since_epoch())
                                          .count());
}

class DaemonImpl final : public Daemon, private TransportHandler, private rpc::Outbox {
public:
    DaemonImpl(Config const& config,
               Backends backends,
               std::unique_ptr<Transport> transport,
               ReadConfig again)
        : again_(std::move(again)),
          drain_ms_(config.drain_ms),
          transport_(std::move(transport)),
          server_({.config = config,
                   .endpoint = transport_->endpoint(),
                   .boot_id = random_id(),
                   .started_at = started_at_,
                   .wall_offset_ms = wall_ms() - steady_ms()},
                  metrics_,
                  *this,
                  std::move(backends),
                  [this] { transport_->wake(); }) {
        metrics_.build(kVersion, kProtocolVersion, server_.backend());
    }

    Result<void> serve_metrics(std::string const& address) {
        metrics_server_ = DKV_TRY(MetricsServer::start(address, metrics_, health_));
        return {};
    }

    /// Only memory of a GPU comes by descriptor.
    Result<void> take_descriptors() {
        fd_socket_ = DKV_TRY(FdSocket::listen(
            transport_->endpoint(),
            [this](std::uint64_t instance, std::uint64_t ticket, UniqueFd file) {
                return server_.descriptors().put(instance, ticket, std::move(file));
            }));
        if (fd_socket_ != nullptr) server_.offer_descriptors(fd_socket_->path());
        return {};
    }

    Result<void> run() override {
        look(steady_ms(), Health::State::Serving);
        supervisor_.ready(where());
        auto result = transport_->run(*this, server_.death_fd());
        supervisor_.stopping();
        server_.say_stopping(steady_ms());
        return result;
    }
    void stop() noexcept override { transport_->stop(); }
    void drain() noexcept override {
        if (drain_asked_.exchange(true)) return transport_->stop();
        transport_->wake();
    }
    void reload() noexcept override {
        reload_asked_ = true;
        transport_->wake();
    }
    void say_where() const {
        spdlog::info("dkvd {} listens at {}", kVersion, transport_->endpoint());
        if (auto const control = transport_->control_endpoint(); !control.empty())
            spdlog::info("controllers with keys: {}", control);
        if (transport_->endpoint().starts_with("tcp://"))
            spdlog::warn(
                "{} serves no engine and no command: engines need --endpoint ipc://PATH, "
                "controllers elsewhere --control tcp://HOST:PORT",
                transport_->endpoint());
    }

private:
    void on_message(PeerId const& peer,
                    std::span<std::byte const> bytes,
                    std::uint64_t now) override {
        server_.on_message(peer, bytes, now, transport_->sender());
        if (server_.stopping()) transport_->stop();
        stop_when_drained(now);
    }
    void on_wake(std::uint64_t now) override {
        server_.on_wake(now);
        if (drain_asked_ && health_.state() != Health::State::Draining) begin_to_drain(now);
        if (reload_asked_.exchange(false)) {
            supervisor_.reloading();
            read_config_again();
            supervisor_.ready(where());
        }
        stop_when_drained(now);
    }
    void on_tick(std::uint64_t now) override {
        server_.on_tick(now);
        look(now, health_.state());
        supervisor_.alive(now);
        stop_when_drained(now);
    }

    std::string where() const { return "listens at " + transport_->endpoint(); }

    void begin_to_drain(std::uint64_t now) {
        server_.drain();
        supervisor_.stopping();
        look(now, Health::State::Draining);
        drain_until_ = now + drain_ms_;
        if (auto const open = server_.sessions_in_work(); open > 0)
            spdlog::info("draining: {} open sessions have {} ms to end", open, drain_ms_);
    }

    void stop_when_drained(std::uint64_t now) {
        if (health_.state() != Health::State::Draining) return;
        auto const open = server_.sessions_in_work();
        if (open > 0 && now < drain_until_) return;
        if (open > 0 && !std::exchange(gave_up_, true))
            spdlog::warn(
                "draining: {} sessions are still open after {} ms; their engines go on "
                "uncompressed",
                open, drain_ms_);
        transport_->stop();
    }

    void read_config_again() {
        if (!again_) return;
        if (server_.config().config_file.empty())
            return spdlog::warn("SIGHUP: dkvd was started without --config: nothing is read again");
        auto const config = again_();
        if (!config)
            return spdlog::error("the configuration is not reloaded, the old one stays: {}",
                                 config.error().message);
        if (auto const fixed = fixed_changes(server_.config(), config.value()); !fixed.empty())
            return spdlog::error(
                "the configuration is not reloaded, the old one stays: {} cannot change while dkvd "
                "runs: restart it",
                fmt::join(fixed, ", "));
        drain_ms_ = config.value().drain_ms;
        spdlog::set_level(spdlog::level::from_str(config.value().log_level));
        server_.reconfigure(config.value());
        spdlog::info("the configuration is reloaded");
    }

    void look(std::uint64_t now, Health::State state) {
        health_.tick(now);
        health_.set(state);
        metrics_.uptime(static_cast<double>(now - started_at_) * 1e-3);
        metrics_.ready(health_.why_not_ready(now).empty());
    }

    Sent send(Peer const& peer, std::span<std::uint8_t const> bytes) override {
        switch (transport_->send(peer, bytes)) {
            case SendResult::Sent: return Sent::Yes;
            case SendResult::Full: return Sent::Full;
            case SendResult::Gone: return Sent::Gone;
        }
        return Sent::Gone;
    }

    Supervisor supervisor_ = Supervisor::from_environment();
    ReadConfig const again_;
    std::atomic<bool> drain_asked_ = false;
    std::atomic<bool> reload_asked_ = false;
    std::uint64_t drain_ms_;
    std::uint64_t drain_until_ = 0;
    bool gave_up_ = false;
    std::uint64_t const started_at_ = steady_ms();
    Metrics metrics_;
    Health health_;
    std::unique_ptr<MetricsServer> metrics_server_;
    std::unique_ptr<Transport> transport_;
    rpc::Server server_;
    std::unique_ptr<FdSocket> fd_socket_;  // Last: its thread brings what it takes to the server.
};

/// Regions that can shrink, and pidfds, cost a descriptor each: take as many as there are.
void raise_file_limit() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
}

std::size_t descriptors_open() {
    std::error_code ignored;
    auto const all = std::filesystem::directory_iterator("/proc/self/fd", ignored);
    return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

/// Divides the descriptors that are left among connections and engines' regions, and keeps some for
/// the sidecar's own work: without one, it could neither answer nor refuse.
void divide_descriptors(Limits& limits) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    auto const most = std::min<std::size_t>(limit.rlim_cur, std::numeric_limits<int>::max());
    auto const free = most - std::min(most, descriptors_open());
    auto const kept = std::clamp<std::size_t>(free / 4, 4, 64);
    auto const share = static_cast<std::uint32_t>(
        std::min<std::size_t>((free - std::min(free, kept)) / 2, limits.region_descriptors_max));
    limits.connections_max = std::clamp<std::uint32_t>(share, 1, limits.connections_max);
    limits.region_descriptors_max = share;
    limits.region_descriptors_per_engine_max =
        std::min(limits.region_descriptors_per_engine_max, std::max(1U, share / 2));
    // What is a message's limit is also that of a message in many frames, of which nothing is
    // handled before the last has come.
    bound_connections({.connections_max = limits.connections_max,
                       .descriptors_end = static_cast<int>(most - std::min(most, kept)),
                       .bytes_in_max = std::int64_t{limits.message_bytes_max} * 3 / 2,
                       .bytes_out_max = std::int64_t{limits.message_bytes_max} * 4,
                       .bytes_out_in_all_max = kBytesOutInAllMax});
}

/// Every region of an engine is a mapping; half of what the system allows is for the sidecar's own
/// threads and memory.
void divide_mappings(Limits& limits) {
    std::uint32_t most = 0;
    if (std::ifstream("/proc/sys/vm/max_map_count") >> most)
        limits.regions_in_all_max = std::clamp(most / 2, 1U, limits.regions_in_all_max);
}

/// The daemon that signals stop. A handler sees nothing but globals.
std::atomic<Daemon*> signalled = nullptr;

void on_signal(int number) {
    auto* const daemon = signalled.load();
    if (daemon == nullptr) return;
    if (number == SIGHUP) return daemon->reload();
    if (number == SIGTERM) return daemon->drain();
    daemon->stop();
}

/// `reloads`: SIGHUP does not end the process.
void set_signal_handler(void (*handler)(int), bool reloads) {
    struct sigaction action {};
    action.sa_handler = handler;
    ::sigemptyset(&action.sa_mask);
    for (int const number : {SIGINT, SIGTERM})
        ::sigaction(number, &action, nullptr);
    if (reloads) ::sigaction(SIGHUP, &action, nullptr);
}

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::start(Config const& config, ReadConfig again) {
    DKV_TRY(check(config));
    auto const* const required = std::getenv("DKV_REQUIRE_CUDA");
    auto backends =
        DKV_TRY(Backends::find(config, required != nullptr && std::string_view(required) == "1"));
    auto transport = DKV_TRY(Transport::listen(
        {.endpoint = config.endpoint.empty() ? default_endpoint() : config.endpoint,
         .message_bytes_max = config.limits.message_bytes_max,
         .tick_ms = std::min(kTickMs, config.heartbeat_ms),
         .control = {.endpoint = config.control,
                     .secret_key_file = config.secret_key_file,
                     .clients_folder = config.clients_folder}}));
    if (backends.note().empty())
        spdlog::info("backend: {}", backends.name());
    else
        spdlog::info("backend: {}; {}", backends.name(), backends.note());
    bool const has_gpu = backends.note().empty();
    Config divided = config;
    divide_descriptors(divided.limits);
    divide_mappings(divided.limits);
    auto daemon = std::make_unique<DaemonImpl>(divided, std::move(backends), std::move(transport),
                                               std::move(again));
    if (has_gpu)
        if (auto const taken = daemon->take_descriptors(); !taken)
            spdlog::warn("memory that only a descriptor names cannot be lent: {}",
                         taken.error().message);
    if (!config.metrics_address.empty()) DKV_TRY(daemon->serve_metrics(config.metrics_address));
    daemon->say_where();
    return std::unique_ptr<Daemon>(std::move(daemon));
}

Result<void> run_daemon(Config const& config, ReadConfig const& again) {
    DKV_TRY(check(config));
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "dkvd", make_log_sink(config.log_format == "json" ? LogFormat::Json : LogFormat::Text)));
    spdlog::set_level(spdlog::level::from_str(config.log_level));
    std::signal(SIGPIPE, SIG_IGN);  // Of a stderr that is not read any more.
    raise_file_limit();
    if (auto const left = unlink_left_behind(); left.objects > 0)
        spdlog::info("{} names in /dev/shm that killed engines had left are gone, {} bytes",
                     left.objects, left.bytes);

    auto const daemon = DKV_TRY(Daemon::start(config, again));
    if (::geteuid() == 0)
        spdlog::warn(
            "running as root: what reaches this process reaches the whole machine; an engine needs "
            "a sidecar of its own user");
    signalled = daemon.get();
    // At a terminal, without a file, SIGHUP says that the terminal was closed.
    bool const reloads = !config.config_file.empty() || ::isatty(STDIN_FILENO) != 1;
    set_signal_handler(on_signal, reloads);
    auto result = daemon->run();
    set_signal_handler(SIG_DFL, reloads);
    signalled = nullptr;
    spdlog::info("dkvd stops");
    return result;
}

}  // namespace dkv
