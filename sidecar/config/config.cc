#include "sidecar/config/config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include <CLI/CLI.hpp>

#include "protocol/base/endpoint.h"
#include "sidecar/config/policy_flags.h"

namespace dkv {
namespace {

constexpr std::array<char const*, 6> kLogLevels{"trace", "debug", "info", "warn", "error", "off"};
constexpr std::array<char const*, 2> kLogFormats{"text", "json"};
constexpr std::array<char const*, 3> kBackends{"auto", "cpu", "cuda"};
constexpr std::uint32_t kEventTimeoutMaxMs = 600'000;
constexpr std::uint32_t kDrainMaxMs = 3'600'000;
constexpr std::uint32_t kHeartbeatMinMs = 10;
constexpr std::uint32_t kHeartbeatMaxMs = 600'000;
constexpr unsigned kThreadsMax = 1024;

Error wrong(std::string message) {
    return {ErrorCode::InvalidArgument, std::move(message)};
}

bool is_loopback(std::string_view host) {
    return host == "localhost" || host == "[::1]" || host.starts_with("127.");
}

Result<void> check_listen(Config const& config) {
    auto const endpoint = config.endpoint.empty() ? default_endpoint() : config.endpoint;
    DKV_TRY(check_endpoint(endpoint));
    if (endpoint.starts_with("inproc://"))
        return Error{ErrorCode::Unsupported,
                     "--endpoint '" + endpoint + "' cannot be reached from another process"};
    if (!endpoint.starts_with("tcp://")) return {};
    auto const host = std::string_view(endpoint).substr(6, endpoint.rfind(':') - 6);
    if (is_loopback(host)) return {};
    return wrong("--endpoint '" + endpoint +
                 "' is open to other machines, and engines attach over ipc:// alone; for "
                 "controllers with keys: --control " +
                 endpoint);
}

Result<void> check_control(Config const& config) {
    if (config.control.empty()) {
        if (!config.secret_key_file.empty())
            return wrong("--secret-key is for --control, which is not given");
        if (!config.clients_folder.empty())
            return wrong("--clients is for --control, which is not given");
        return {};
    }
    if (!config.control.starts_with("tcp://") || !check_endpoint(config.control))
        return wrong("--control '" + config.control + "' is not tcp://HOST:PORT");
    return {};
}

Result<void> check_metrics(std::string const& address) {
    if (address.empty()) return {};
    auto const colon = address.rfind(':');
    auto const port = std::string_view(address).substr(colon == std::string::npos ? 0 : colon + 1);
    unsigned number = 0;
    auto const [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
    if (colon == 0 || error != std::errc{} || end != port.data() + port.size() || number == 0 ||
        number > 65535)
        return wrong("--metrics '" + address + "' is neither HOST:PORT nor PORT");
    return {};
}

Result<void> check_limits(Limits const& limits) {
    struct Named {
        char const* name;
        std::uint32_t value;
    };
    for (Named const limit : {Named{"instances_max", limits.instances_max},
                              {"sessions_max", limits.sessions_max},
                              {"regions_max", limits.regions_max},
                              {"tokens_max", limits.tokens_max},
                              {"jobs_queued_max", limits.jobs_queued_max},
                              {"subscribers_max", limits.subscribers_max}})
        if (limit.value == 0) return wrong(std::string("limit ") + limit.name + " is 0");
    if (limits.message_bytes_max < 1024)
        return wrong("limit message_bytes_max is " + std::to_string(limits.message_bytes_max) +
                     ", below 1024");
    return {};
}

}  // namespace

void add_flags(CLI::App& app, Config& config) {
    app.add_option("--endpoint", config.endpoint,
                   "where to listen for engines and controllers: ipc://PATH [DKV_ENDPOINT, else a "
                   "socket of this user]")
        ->envname("DKV_ENDPOINT");
    app.add_option("--control", config.control,
                   "also listen for controllers of other machines, which prove a key: "
                   "tcp://HOST:PORT")
        ->type_name("ENDPOINT");
    app.add_option("--secret-key", config.secret_key_file,
                   "of --control: the sidecar's key pair [dkv.key_secret where dkv keys puts it]")
        ->type_name("FILE");
    app.add_option("--clients", config.clients_folder,
                   "of --control: the controllers' public keys, NAME.key each [clients beside it]")
        ->type_name("FOLDER");
    app.add_option("--policy", config.policy.name, "policy of engines that ask for none")
        ->capture_default_str();
    add_policy_flags(app, config.policy);
    app.add_option("--backend", config.backend,
                   "auto: GPUs where there are any; cpu; cuda: without one it does not start "
                   "[DKV_BACKEND]")
        ->envname("DKV_BACKEND")
        ->capture_default_str();
    app.add_option("--event-timeout-ms", config.event_timeout_ms,
                   "how long the event of a layer on a GPU is waited for")
        ->capture_default_str();
    app.add_option("--threads", config.threads, "threads of the CPU backend; 0: every core")
        ->capture_default_str();
    app.add_option("--heartbeat-ms", config.heartbeat_ms, "how often engines say that they live")
        ->capture_default_str();
    app.add_option("--metrics", config.metrics_address,
                   "serve Prometheus metrics at ADDRESS, for example 127.0.0.1:9464 or 9464")
        ->option_text("ADDRESS");
    app.add_option("--log-level", config.log_level, "trace, debug, info, warn, error or off")
        ->capture_default_str();
    app.add_option("--log-format", config.log_format, "text, or json: an object a line")
        ->capture_default_str();
    app.add_option("--drain-ms", config.drain_ms,
                   "after SIGTERM: how long prompts that are being compressed are waited for")
        ->capture_default_str();
    app.add_option("--config", config.config_file,
                   "read flags that are not given from this TOML file; SIGHUP reads it again")
        ->type_name("FILE");
}

Result<void> check(Config const& config) {
    DKV_TRY(check_listen(config));
    DKV_TRY(check_control(config));
    DKV_TRY(resolve(config.policy));
    if (std::find(kBackends.begin(), kBackends.end(), config.backend) == kBackends.end())
        return wrong("--backend '" + config.backend + "' is none of auto, cpu, cuda");
    if (config.event_timeout_ms == 0 || config.event_timeout_ms > kEventTimeoutMaxMs)
        return wrong("--event-timeout-ms " + std::to_string(config.event_timeout_ms) +
                     " is outside 1 … " + std::to_string(kEventTimeoutMaxMs));
    if (config.threads > kThreadsMax)
        return wrong("--threads " + std::to_string(config.threads) + " is above " +
                     std::to_string(kThreadsMax));
    if (config.heartbeat_ms < kHeartbeatMinMs || config.heartbeat_ms > kHeartbeatMaxMs)
        return wrong("--heartbeat-ms " + std::to_string(config.heartbeat_ms) + " is outside " +
                     std::to_string(kHeartbeatMinMs) + " … " + std::to_string(kHeartbeatMaxMs));
    DKV_TRY(check_metrics(config.metrics_address));
    if (std::find(kLogLevels.begin(), kLogLevels.end(), config.log_level) == kLogLevels.end())
        return wrong("--log-level '" + config.log_level +
                     "' is none of trace, debug, info, warn, error, off");
    if (std::find(kLogFormats.begin(), kLogFormats.end(), config.log_format) == kLogFormats.end())
        return wrong("--log-format '" + config.log_format + "' is none of text, json");
    if (config.drain_ms > kDrainMaxMs)
        return wrong("--drain-ms " + std::to_string(config.drain_ms) + " is above " +
                     std::to_string(kDrainMaxMs));
    return check_limits(config.limits);
}

}  // namespace dkv
