// The metrics that Prometheus reads. Passed down by reference: none are global.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "sidecar/metrics/stages.h"

namespace prometheus {
class Registry;
}

namespace dkv {

/// Safe from any thread.
class Metrics {
public:
    Metrics();
    ~Metrics();

    /// What runs here; once.
    void build(std::string_view version, std::uint32_t protocol, std::string_view backend);
    /// A request was answered. `type` is the message's, `code` is "ok" or an error's name.
    void request(std::string_view type, std::string_view code);
    /// A request or a session failed; `code` is the error's name.
    void error(std::string_view code);
    /// A message could not be sent: the peer reads too slowly, or went away.
    void message_lost(std::string_view why);
    /// A session of this policy was "committed", "adopted", kept "whole", or "failed".
    void session(std::string_view policy, std::string_view outcome);
    /// A prompt that was to be compressed stays whole: an error's name, or "engine_gone".
    void fail_open(std::string_view reason);
    void bytes_dropped(std::uint64_t bytes);
    void bytes_returned(std::uint64_t bytes);
    /// Of blocks that went back to an engine's own pool, apart from bytes_returned().
    void bytes_pool(std::uint64_t bytes);
    void bytes_peak(std::uint64_t largest);
    /// Share of the window's attention on kept tokens, of one session.
    void mass_kept(double share);
    /// Time in one stage of one layer.
    void stage(Stage stage, std::uint64_t nanoseconds);
    void uptime(double seconds);
    void instances(std::uint32_t count);
    void sessions_open(std::string_view state, std::uint32_t count);
    void jobs_queued(std::size_t count);
    void mapped_bytes(std::uint64_t bytes);
    void ready(bool is_ready);

    std::shared_ptr<prometheus::Registry> registry() const noexcept { return registry_; }

private:
    struct Families;
    std::shared_ptr<prometheus::Registry> registry_;
    std::unique_ptr<Families> families_;
};

/// Prometheus' text format of what `metrics` holds now.
std::string render(Metrics const& metrics);

}  // namespace dkv
