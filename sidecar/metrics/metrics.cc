#include "sidecar/metrics/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

namespace dkv {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;

Family<Counter>& counters(prometheus::Registry& registry, char const* name, char const* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}
Family<Gauge>& gauges(prometheus::Registry& registry, char const* name, char const* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}
Family<Histogram>& histograms(prometheus::Registry& registry, char const* name, char const* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

/// From ten microseconds to ten seconds: a layer of a small prompt to one of a huge one.
Histogram::BucketBoundaries stage_buckets() {
    return {1e-5, 2.5e-5, 1e-4, 2.5e-4, 1e-3, 2.5e-3, 1e-2, 2.5e-2, 0.1, 0.25, 1, 2.5, 10};
}

/// Most sessions keep nearly all: fine steps towards 1.
Histogram::BucketBoundaries mass_buckets() {
    return {0.25, 0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1};
}

}  // namespace

struct Metrics::Families {
    explicit Families(prometheus::Registry& registry)
        : build(gauges(registry, "dkv_build_info", "1, with what runs here as labels")),
          requests(counters(registry, "dkv_requests_total", "Requests answered")),
          errors(counters(registry, "dkv_errors_total", "Requests and sessions that failed")),
          lost(counters(registry, "dkv_messages_lost_total", "Messages that could not be sent")),
          sessions(counters(registry, "dkv_sessions_total", "Sessions by outcome")),
          fail_opens(counters(registry,
                              "dkv_fail_opens_total",
                              "Prompts that stay whole though they were to be compressed")),
          dropped(counters(registry, "dkv_bytes_dropped_total", "Cache bytes logically dropped")
                      .Add({})),
          returned(counters(registry,
                            "dkv_bytes_returned_total",
                            "Cache bytes that engines saw the system take back")
                       .Add({})),
          pool(counters(registry,
                        "dkv_bytes_pool_total",
                        "Cache bytes of blocks that went back to engines' own pools")
                   .Add({})),
          peak(gauges(registry,
                      "dkv_session_peak_bytes",
                      "Largest cache of any session during its prefill, as its engine saw it")
                   .Add({})),
          mass(histograms(registry,
                          "dkv_mass_kept_ratio",
                          "Share of the window's attention on kept tokens, by session")
                   .Add({}, mass_buckets())),
          stages(histograms(registry, "dkv_stage_seconds", "Time of a stage, by layer")),
          uptime(gauges(registry, "dkv_uptime_seconds", "Time since the sidecar started").Add({})),
          instances(gauges(registry, "dkv_instances", "Engines attached").Add({})),
          sessions_open(gauges(registry, "dkv_sessions_open", "Sessions open, by state")),
          jobs_queued(gauges(registry,
                             "dkv_jobs_queued",
                             "Layers and requests that wait for engines' workers")
                          .Add({})),
          mapped_bytes(gauges(registry, "dkv_mapped_bytes", "Engine memory mapped here").Add({})),
          ready(gauges(registry, "dkv_ready", "1: /readyz says yes").Add({})) {
        // Series that are not there cannot be alerted on.
        for (auto const stage : kStages)
            stages.Add({{"stage", std::string(name_of(stage))}}, stage_buckets());
        for (auto const* const why : {"full", "gone"})
            lost.Add({{"why", why}});
    }

    Family<Gauge>& build;
    Family<Counter>& requests;
    Family<Counter>& errors;
    Family<Counter>& lost;
    Family<Counter>& sessions;
    Family<Counter>& fail_opens;
    Counter& dropped;
    Counter& returned;
    Counter& pool;
    Gauge& peak;
    Histogram& mass;
    Family<Histogram>& stages;
    Gauge& uptime;
    Gauge& instances;
    Family<Gauge>& sessions_open;
    Gauge& jobs_queued;
    Gauge& mapped_bytes;
    Gauge& ready;
};

Metrics::Metrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      families_(std::make_unique<Families>(*registry_)) {}
Metrics::~Metrics() = default;

void Metrics::build(std::string_view version, std::uint32_t protocol, std::string_view backend) {
    families_->build
        .Add({{"version", std::string(version)},
              {"protocol", std::to_string(protocol)},
              {"backend", std::string(backend)}})
        .Set(1);
}
void Metrics::request(std::string_view type, std::string_view code) {
    families_->requests.Add({{"type", std::string(type)}, {"code", std::string(code)}}).Increment();
}
void Metrics::error(std::string_view code) {
    families_->errors.Add({{"code", std::string(code)}}).Increment();
}
void Metrics::message_lost(std::string_view why) {
    families_->lost.Add({{"why", std::string(why)}}).Increment();
}
void Metrics::session(std::string_view policy, std::string_view outcome) {
    families_->sessions.Add({{"policy", std::string(policy)}, {"outcome", std::string(outcome)}})
        .Increment();
}
void Metrics::fail_open(std::string_view reason) {
    families_->fail_opens.Add({{"reason", std::string(reason)}}).Increment();
}
void Metrics::bytes_dropped(std::uint64_t bytes) {
    families_->dropped.Increment(static_cast<double>(bytes));
}
void Metrics::bytes_returned(std::uint64_t bytes) {
    families_->returned.Increment(static_cast<double>(bytes));
}
void Metrics::bytes_pool(std::uint64_t bytes) {
    families_->pool.Increment(static_cast<double>(bytes));
}
void Metrics::bytes_peak(std::uint64_t largest) {
    families_->peak.Set(static_cast<double>(largest));
}
void Metrics::mass_kept(double share) {
    families_->mass.Observe(share);
}
void Metrics::stage(Stage stage, std::uint64_t nanoseconds) {
    families_->stages.Add({{"stage", std::string(name_of(stage))}}, stage_buckets())
        .Observe(static_cast<double>(nanoseconds) * 1e-9);
}
void Metrics::uptime(double seconds) {
    families_->uptime.Set(seconds);
}
void Metrics::instances(std::uint32_t count) {
    families_->instances.Set(count);
}
void Metrics::sessions_open(std::string_view state, std::uint32_t count) {
    families_->sessions_open.Add({{"state", std::string(state)}}).Set(count);
}
void Metrics::jobs_queued(std::size_t count) {
    families_->jobs_queued.Set(static_cast<double>(count));
}
void Metrics::mapped_bytes(std::uint64_t bytes) {
    families_->mapped_bytes.Set(static_cast<double>(bytes));
}
void Metrics::ready(bool is_ready) {
    families_->ready.Set(is_ready ? 1 : 0);
}

std::string render(Metrics const& metrics) {
    return prometheus::TextSerializer().Serialize(metrics.registry()->Collect());
}

}  // namespace dkv
