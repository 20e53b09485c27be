#pragma once

#include <memory>
#include <string>

#include "protocol/base/result.h"
#include "sidecar/metrics/health.h"
#include "sidecar/metrics/metrics.h"

namespace dkv {

/// Serves http://ADDRESS/metrics, /healthz and /readyz from threads of its own until this goes.
class MetricsServer {
public:
    virtual ~MetricsServer() = default;
    /// "9464" alone means loopback. Both outlive the server.
    /// Errors: Io when the address cannot be listened at.
    static Result<std::unique_ptr<MetricsServer>> start(std::string const& address,
                                                        Metrics const& metrics,
                                                        Health const& health);
};

}  // namespace dkv
