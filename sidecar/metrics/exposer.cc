#include "sidecar/metrics/exposer.h"

#include <exception>
#include <prometheus/exposer.h>
#include <prometheus/registry.h>
#include <string>
#include <vector>

namespace dkv {
namespace {

class PrometheusServer final : public MetricsServer {
public:
    PrometheusServer(std::string const& address, Metrics const& metrics)
        : registry_(metrics.registry()), exposer_(options(address)) {
        exposer_.RegisterCollectable(registry_);
    }

private:
    /// A connection that asks nothing keeps a thread: there are several, and each lets go of it
    /// soon.
    static std::vector<std::string> options(std::string const& address) {
        return {"listening_ports",    address, "num_threads",           "4",
                "request_timeout_ms", "2000",  "keep_alive_timeout_ms", "500"};
    }

    std::shared_ptr<prometheus::Registry> registry_;
    prometheus::Exposer exposer_;
};

}  // namespace

Result<std::unique_ptr<MetricsServer>> MetricsServer::start(std::string const& address,
                                                            Metrics const& metrics) {
    auto const where = address.find(':') == std::string::npos ? "127.0.0.1:" + address : address;
    // The HTTP server throws where it cannot listen.
    try {
        return std::unique_ptr<MetricsServer>(std::make_unique<PrometheusServer>(where, metrics));
    } catch (std::exception const& error) {
        return Error{ErrorCode::Io, "cannot serve metrics at " + where + ": " + error.what()};
    }
}

}  // namespace dkv
