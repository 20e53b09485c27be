// The metrics that Prometheus reads. Passed down by reference: none are global.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace prometheus {
class Registry;
}

namespace dkv {

/// Safe from any thread.
class Metrics {
public:
    Metrics();
    ~Metrics();

    /// A request was answered. `type` is the message's, `code` is "ok" or an error's name.
    void request(std::string_view type, std::string_view code);
    /// A message could not be sent: the peer reads too slowly, or went away.
    void message_lost(std::string_view why);
    /// A session of this policy was "committed", "adopted", kept "whole", or "failed", which has a
    /// reason: an error's name, or "engine_gone".
    void session(std::string_view policy, std::string_view outcome, std::string_view reason = {});
    void bytes_dropped(std::uint64_t bytes);
    void bytes_returned(std::uint64_t bytes);
    /// Time in the pipeline: "open", "layer", "pack".
    void busy(std::string_view step, std::uint64_t nanoseconds);
    /// Time spent waiting for an engine's event, apart from busy().
    void waited(std::uint64_t nanoseconds);
    void instances(std::uint32_t count);
    void sessions_open(std::uint32_t count);
    void mapped_bytes(std::uint64_t bytes);

    std::shared_ptr<prometheus::Registry> registry() const noexcept { return registry_; }

private:
    struct Families;
    std::shared_ptr<prometheus::Registry> registry_;
    std::unique_ptr<Families> families_;
};

/// Prometheus' text format of what `metrics` holds now.
std::string render(Metrics const& metrics);

}  // namespace dkv
