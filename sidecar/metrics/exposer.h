#pragma once

#include <memory>
#include <string>

#include "protocol/base/result.h"
#include "sidecar/metrics/metrics.h"

namespace dkv {

/// Serves http://ADDRESS/metrics from a thread of its own until this goes.
class MetricsServer {
public:
    virtual ~MetricsServer() = default;
    /// "9464" alone means loopback. Errors: Io when the address cannot be listened at.
    static Result<std::unique_ptr<MetricsServer>> start(std::string const& address,
                                                        Metrics const& metrics);
};

}  // namespace dkv
