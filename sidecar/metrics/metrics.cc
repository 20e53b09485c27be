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

Gauge& gauge(prometheus::Registry& registry, char const* name, char const* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

/// From a tenth of a millisecond to ten seconds: a layer of a small prompt to one of a huge one.
Histogram::BucketBoundaries busy_buckets() {
    return {1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 10};
}

}  // namespace

struct Metrics::Families {
    explicit Families(prometheus::Registry& registry)
        : requests(counters(registry, "dkv_requests_total", "Requests answered")),
          lost(counters(registry, "dkv_messages_lost_total", "Messages that could not be sent")),
          sessions(counters(registry, "dkv_sessions_total", "Sessions by outcome")),
          dropped(counters(registry, "dkv_bytes_dropped_total", "Cache bytes logically dropped")
                      .Add({})),
          returned(counters(registry,
                            "dkv_bytes_returned_total",
                            "Cache bytes that engines saw the system take back")
                       .Add({})),
          busy(prometheus::BuildHistogram()
                   .Name("dkv_busy_seconds")
                   .Help("Time spent compressing, by step")
                   .Register(registry)),
          waited(prometheus::BuildHistogram()
                     .Name("dkv_wait_seconds")
                     .Help("Time spent waiting for an engine's event, by layer")
                     .Register(registry)
                     .Add({}, busy_buckets())),
          instances(gauge(registry, "dkv_instances", "Engines attached")),
          sessions_open(gauge(registry, "dkv_sessions_open", "Sessions open")),
          mapped_bytes(gauge(registry, "dkv_mapped_bytes", "Engine memory mapped here")) {}

    Family<Counter>& requests;
    Family<Counter>& lost;
    Family<Counter>& sessions;
    Counter& dropped;
    Counter& returned;
    Family<Histogram>& busy;
    Histogram& waited;
    Gauge& instances;
    Gauge& sessions_open;
    Gauge& mapped_bytes;
};

Metrics::Metrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      families_(std::make_unique<Families>(*registry_)) {}
Metrics::~Metrics() = default;

void Metrics::request(std::string_view type, std::string_view code) {
    families_->requests.Add({{"type", std::string(type)}, {"code", std::string(code)}}).Increment();
}
void Metrics::message_lost(std::string_view why) {
    families_->lost.Add({{"why", std::string(why)}}).Increment();
}
void Metrics::session(std::string_view policy, std::string_view outcome, std::string_view reason) {
    prometheus::Labels labels{{"policy", std::string(policy)}, {"outcome", std::string(outcome)}};
    if (!reason.empty()) labels.emplace("reason", reason);
    families_->sessions.Add(labels).Increment();
}
void Metrics::bytes_dropped(std::uint64_t bytes) {
    families_->dropped.Increment(static_cast<double>(bytes));
}
void Metrics::bytes_returned(std::uint64_t bytes) {
    families_->returned.Increment(static_cast<double>(bytes));
}
void Metrics::busy(std::string_view step, std::uint64_t nanoseconds) {
    families_->busy.Add({{"step", std::string(step)}}, busy_buckets())
        .Observe(static_cast<double>(nanoseconds) * 1e-9);
}
void Metrics::waited(std::uint64_t nanoseconds) {
    families_->waited.Observe(static_cast<double>(nanoseconds) * 1e-9);
}
void Metrics::instances(std::uint32_t count) {
    families_->instances.Set(count);
}
void Metrics::sessions_open(std::uint32_t count) {
    families_->sessions_open.Set(count);
}
void Metrics::mapped_bytes(std::uint64_t bytes) {
    families_->mapped_bytes.Set(static_cast<double>(bytes));
}

std::string render(Metrics const& metrics) {
    return prometheus::TextSerializer().Serialize(metrics.registry()->Collect());
}

}  // namespace dkv
