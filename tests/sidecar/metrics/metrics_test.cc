#include "sidecar/metrics/metrics.h"

#include <doctest/doctest.h>

#include "sidecar/metrics/exposer.h"
#include "tests/support/results.h"

namespace dkv {
namespace {

bool has_line(std::string const& text, std::string const& line) {
    return text.find("\n" + line + "\n") != std::string::npos;
}

TEST_CASE("metrics are rendered as Prometheus reads them") {
    Metrics metrics;
    metrics.request("Hello", "ok");
    metrics.request("Hello", "ok");
    metrics.request("OpenSession", "invalid_argument");
    metrics.session("dynamickv", "adopted");
    metrics.session("snapkv", "failed", "limit_exceeded");
    metrics.bytes_dropped(1000);
    metrics.bytes_returned(900);
    metrics.busy("layer", 2'000'000);
    metrics.instances(3);
    metrics.sessions_open(2);
    metrics.mapped_bytes(4096);
    metrics.message_lost("full");

    auto const text = render(metrics);

    CHECK(has_line(text, R"(dkv_requests_total{code="ok",type="Hello"} 2)"));
    CHECK(has_line(text, R"(dkv_requests_total{code="invalid_argument",type="OpenSession"} 1)"));
    CHECK(has_line(text, R"(dkv_sessions_total{outcome="adopted",policy="dynamickv"} 1)"));
    CHECK(has_line(
        text, R"(dkv_sessions_total{outcome="failed",policy="snapkv",reason="limit_exceeded"} 1)"));
    CHECK(has_line(text, "dkv_bytes_dropped_total 1000"));
    CHECK(has_line(text, "dkv_bytes_returned_total 900"));
    CHECK(has_line(text, R"(dkv_busy_seconds_bucket{step="layer",le="0.001"} 0)"));
    CHECK(has_line(text, R"(dkv_busy_seconds_bucket{step="layer",le="0.0025"} 1)"));
    CHECK(has_line(text, "dkv_instances 3"));
    CHECK(has_line(text, "dkv_sessions_open 2"));
    CHECK(has_line(text, "dkv_mapped_bytes 4096"));
    CHECK(has_line(text, R"(dkv_messages_lost_total{why="full"} 1)"));
}

TEST_CASE("an address that cannot be listened at is refused") {
    Metrics metrics;

    auto const server = MetricsServer::start("192.0.2.1:9464", metrics);

    REQUIRE(!server);
    CHECK(server.error().code == ErrorCode::Io);
    CHECK(server.error().message.find("cannot serve metrics at 192.0.2.1:9464: ") == 0);
}

}  // namespace
}  // namespace dkv
