#include "sidecar/metrics/metrics.h"

#include <doctest/doctest.h>

#include "sidecar/metrics/http_server.h"
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
    metrics.session("snapkv", "failed");
    metrics.fail_open("limit_exceeded");
    metrics.error("limit_exceeded");
    metrics.build("1.2.3", 1, "cpu");
    metrics.bytes_pool(800);
    metrics.bytes_peak(5000);
    metrics.mass_kept(0.96);
    metrics.uptime(12.5);
    metrics.jobs_queued(7);
    metrics.ready(true);
    metrics.bytes_dropped(1000);
    metrics.bytes_returned(900);
    metrics.stage(Stage::Score, 2'000'000);
    metrics.instances(3);
    metrics.sessions_open("prefill", 2);
    metrics.mapped_bytes(4096);
    metrics.message_lost("full");

    auto const text = render(metrics);

    CHECK(has_line(text, R"(dkv_requests_total{code="ok",type="Hello"} 2)"));
    CHECK(has_line(text, R"(dkv_requests_total{code="invalid_argument",type="OpenSession"} 1)"));
    CHECK(has_line(text, R"(dkv_sessions_total{outcome="adopted",policy="dynamickv"} 1)"));
    CHECK(has_line(text, R"(dkv_sessions_total{outcome="failed",policy="snapkv"} 1)"));
    CHECK(has_line(text, R"(dkv_fail_opens_total{reason="limit_exceeded"} 1)"));
    CHECK(has_line(text, R"(dkv_errors_total{code="limit_exceeded"} 1)"));
    CHECK(has_line(text, R"(dkv_build_info{backend="cpu",protocol="1",version="1.2.3"} 1)"));
    CHECK(has_line(text, "dkv_bytes_pool_total 800"));
    CHECK(has_line(text, "dkv_session_peak_bytes 5000"));
    CHECK(has_line(text, R"(dkv_mass_kept_ratio_bucket{le="0.95"} 0)"));
    CHECK(has_line(text, R"(dkv_mass_kept_ratio_bucket{le="0.97"} 1)"));
    CHECK(has_line(text, "dkv_uptime_seconds 12.5"));
    CHECK(has_line(text, "dkv_jobs_queued 7"));
    CHECK(has_line(text, "dkv_ready 1"));
    CHECK(has_line(text, "dkv_bytes_dropped_total 1000"));
    CHECK(has_line(text, "dkv_bytes_returned_total 900"));
    CHECK(has_line(text, R"(dkv_stage_seconds_bucket{stage="score",le="0.001"} 0)"));
    CHECK(has_line(text, R"(dkv_stage_seconds_bucket{stage="score",le="0.0025"} 1)"));
    CHECK(has_line(text, "dkv_instances 3"));
    CHECK(has_line(text, R"(dkv_sessions_open{state="prefill"} 2)"));
    CHECK(has_line(text, R"(dkv_stage_seconds_count{stage="wait"} 0)"));
    CHECK(has_line(text, "dkv_mapped_bytes 4096"));
    CHECK(has_line(text, R"(dkv_messages_lost_total{why="full"} 1)"));
}

TEST_CASE("a sidecar is ready while it serves and its loop turns, and says why it is not") {
    Health health;
    CHECK(health.why_not_ready(5).starts_with("starting: "));
    CHECK(health.why_dead(60'000).empty());

    health.set(Health::State::Serving);
    health.tick(1000);
    CHECK(health.why_not_ready(1000 + Health::kSilenceMax).empty());
    CHECK(health.why_not_ready(13'000) == "hung: the loop has not turned for 12 s");
    CHECK(health.why_dead(13'000) == "hung: the loop has not turned for 12 s");

    health.set(Health::State::Draining);
    health.tick(13'000);
    CHECK(health.why_not_ready(13'000).starts_with("draining: "));
    CHECK(health.why_dead(13'000).empty());
}

TEST_CASE("an address that cannot be listened at is refused") {
    Metrics metrics;
    Health health;

    auto const server = MetricsServer::start("192.0.2.1:9464", metrics, health);

    REQUIRE(!server);
    CHECK(server.error().code == ErrorCode::Io);
    CHECK(server.error().message.find("cannot serve metrics at 192.0.2.1:9464: ") == 0);
}

}  // namespace
}  // namespace dkv
