// What an operator can set, with its defaults, and the limits of everything that grows.
#pragma once

#include <cstdint>
#include <string>

#include "protocol/base/result.h"
#include "sidecar/policy/params.h"

namespace CLI {
class App;
}

namespace dkv {

/// Everything that can grow has its bound here, and a test that reaches it.
struct Limits {
    std::uint32_t instances_max = 256;
    std::uint32_t instances_per_process_max = 192;  ///< Room is left for other processes.
    std::uint32_t connections_max = 1024;      ///< Open at once; fewer where descriptors are few.
    std::uint32_t sessions_max = 1024;         ///< Open at once, over all instances.
    std::uint32_t regions_max = 8192;          ///< Mapped at once, per instance.
    std::uint32_t regions_in_all_max = 16384;  ///< Fewer where the system allows few mappings.
    /// Regions that can shrink cost a descriptor each; fewer of them where descriptors are few.
    std::uint32_t region_descriptors_max = 8192;
    std::uint32_t region_descriptors_per_engine_max = 4096;
    std::uint32_t message_bytes_max = 4U << 20U;
    std::uint32_t tokens_max = 4U << 20U;  ///< Of one prompt.
    std::uint32_t heads_total_max = 1U
                                    << 18U;  ///< layers * kv_heads: a plan has to fit in a message.
    std::uint32_t sessions_remembered_max =
        256;                                 ///< Closed sessions that `dkv sessions` still shows.
    std::uint32_t gone_remembered_max = 16;  ///< Engines that went away.
    std::uint32_t jobs_queued_max = 4096;    ///< Per instance.
    std::uint32_t subscribers_max = 64;      ///< Controllers that watch.
    std::uint32_t text_bytes_max = 200;  ///< Of a name or a reason that a peer sends for people.
};

struct Config {
    std::string endpoint;         ///< Empty: default_endpoint().
    std::string control;          ///< tcp:// for controllers elsewhere, with keys; empty: none.
    std::string secret_key_file;  ///< Of control; empty: dkv.key_secret in keys::folder().
    std::string clients_folder;   ///< Of control; empty: clients/ beside that file.
    PolicyRequest policy{.name = "auto"};
    std::string backend =
        "auto";            ///< "auto": GPUs where there are any; "cpu"; "cuda": or no start.
    unsigned threads = 0;  ///< Of the CPU backend; 0: every core.
    std::uint32_t event_timeout_ms = 10'000;  ///< How long a layer's event is waited for.
    std::uint32_t heartbeat_ms = 1000;
    std::string metrics_address;    ///< "127.0.0.1:9464", or "9464" for loopback; empty: none.
    std::uint32_t drain_ms = 5000;  ///< How long open sessions are waited for after SIGTERM.
    std::string log_level = "info";
    std::string log_format = "text";  ///< "text" or "json": an object a line.
    std::string config_file;          ///< TOML; empty: none.
    Limits limits;
};

/// Adds dkvd's flags to `app`; `dkv serve` has the same ones. `config` must outlive the parse.
void add_flags(CLI::App& app, Config& config);

/// Errors: InvalidArgument (NotFound for a policy, Unsupported for an inproc endpoint), naming the
/// flag and the value.
Result<void> check(Config const& config);

}  // namespace dkv
