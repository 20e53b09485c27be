// A device that is lost: everything on it fails, with this and each later call, until this process
// ends. The engines' own processes are not affected, and keep their full caches.
#include <spdlog/spdlog.h>

#include "sidecar/session/table.h"

namespace dkv {
namespace {

Error const* error_in(WorkReport const& report) {
    if (auto const* const error = std::get_if<Error>(&report.what)) return error;
    if (auto const* const opened = std::get_if<RegionOpened>(&report.what))
        return opened->region ? nullptr : &opened->region.error();
    if (auto const* const done = std::get_if<RequestDone>(&report.what))
        return done->result ? nullptr : &done->result.error();
    return nullptr;
}

}  // namespace

void Table::look_after_device(WorkReport const& report) {
    auto const* const error = error_in(report);
    if (error == nullptr || error->code != ErrorCode::Device) return;
    auto const found = instances_.find(report.instance);
    if (found == instances_.end() || found->second.backend.place == Place::Host) return;
    auto const& device = found->second.hello.device;
    if (!backends_.check(device)) return;
    found->second.strand->post([this, device, instance = report.instance](Backend&) {
        auto const alive = cuda::check_alive(device);
        if (alive) return;
        reports_.post({.instance = instance,
                       .generation = 0,
                       .session = 0,
                       .spent = {},
                       .what = DeviceLost{device, alive.error()}});
    });
}

void Table::apply(DeviceLost const& lost, std::uint64_t instance, Millis now) {
    if (!backends_.lose(lost.device, lost.why.message)) return;
    Error const error = backends_.check(lost.device).error();
    spdlog::error("{}", error.message);
    count_error(instance, error);
    for (auto& [id, engine] : instances_) {
        if (engine.hello.device != lost.device) continue;
        for (auto& [number, session] : engine.sessions)
            fail_session(engine, session, error, now);
    }
}

}  // namespace dkv
