#include "sidecar/session/backends.h"

#include <fmt/format.h>

namespace dkv {
namespace {

/// What is left of a backend that could not be made: it says why, to everybody.
class RefusingBackend final : public Backend {
public:
    explicit RefusingBackend(Error why) : why_(std::move(why)) {}
    std::string_view name() const noexcept override { return why_.message; }
    Result<std::unique_ptr<BackendBuffer>> allocate(std::size_t /*bytes*/) override { return why_; }
    Result<void> upload(std::span<std::byte const>, std::span<std::byte>) override { return why_; }
    Result<void> download(std::span<std::byte const>, std::span<std::byte>) override {
        return why_;
    }
    Result<void> score(ScoreArgs const&) override { return why_; }
    Result<void> accumulate(AccumulateArgs const&) override { return why_; }
    Result<void> key_score(KeyScoreArgs const&) override { return why_; }
    Result<void> pool(PoolArgs const&) override { return why_; }
    Result<void> select(SelectArgs const&) override { return why_; }
    Result<void> sum(SumArgs const&) override { return why_; }
    Result<void> surrogate(SurrogateArgs const&) override { return why_; }
    Result<void> tally(TallyArgs const&) override { return why_; }
    Result<void> gather(GatherArgs const&) override { return why_; }
    Result<void> synchronize() override { return why_; }

private:
    Error why_;
};

std::unique_ptr<Backend> make_on(std::string const& uuid) {
    auto made = make_cuda_backend({.device = uuid});
    if (made) return std::move(made).value();
    return std::make_unique<RefusingBackend>(
        Error{made.error().code, "device " + uuid + ": " + made.error().message});
}

std::string name_of(cuda::Device const& device) {
    return fmt::format("cuda ({}, sm_{}{})", device.name, device.major, device.minor);
}

}  // namespace

Backends::Backends(MakeBackend cpu, std::string why)
    : cpu_(std::move(cpu)), cpu_name_(cpu_()->name()), name_(cpu_name_), note_(std::move(why)) {}

Result<Backends> Backends::find(Config const& config, bool required) {
    Backends backends([threads = config.threads] { return make_cpu_backend(threads); });
    if (config.backend == "cpu") {
        backends.note_ = "the sidecar was started with --backend cpu";
        return backends;
    }
    auto devices = cuda::devices();
    if (!devices) {
        if (config.backend == "cuda")
            return Error{devices.error().code, "--backend cuda: " + devices.error().message};
        if (required)
            return Error{devices.error().code, "DKV_REQUIRE_CUDA: " + devices.error().message};
        backends.note_ = devices.error().message;
        return backends;
    }
    backends.devices_ = std::move(devices).value();
    backends.name_.clear();
    for (auto const& device : backends.devices_)
        backends.name_ += name_of(device) + ", ";
    backends.name_ += backends.cpu_name_;
    return backends;
}

Result<Backends::Chosen> Backends::for_engine(std::string_view device) const {
    if (device.empty() || device == "cpu") return Chosen{cpu_name_, Place::Host, cpu_};
    DKV_TRY(check(device));
    std::string known;
    for (auto const& one : devices_) {
        if (one.uuid == device)
            return Chosen{name_of(one), Place::Device, [uuid = one.uuid] { return make_on(uuid); }};
        known += (known.empty() ? "" : ", ") + one.uuid;
    }
    // Not to be tried again: a GPU does not come while a sidecar runs.
    auto const why = devices_.empty() ? note_ : "it has " + known;
    return Error{ErrorCode::Unsupported,
                 fmt::format("this sidecar has no device '{}': {}", device, why)};
}

bool Backends::lose(std::string const& device, std::string const& why) {
    if (!lost_.try_emplace(device, why).second) return false;
    note_ += (note_.empty() ? "" : "; ") + check(device).error().message;
    return true;
}

Result<void> Backends::check(std::string_view device) const {
    auto const found = lost_.find(device);
    if (found == lost_.end()) return {};
    return Error{ErrorCode::Unsupported,
                 fmt::format("device {} is lost to this sidecar, which has to be started again: {}",
                             device, found->second)};
}

}  // namespace dkv
