// Which backend works for whom: the CPU for engines whose cache is the host's, a GPU for those
// whose cache is that GPU's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "protocol/device/device.h"
#include "sidecar/config/config.h"

namespace dkv {

using MakeBackend = std::function<std::unique_ptr<Backend>()>;

class Backends {
public:
    /// By `config.backend`: "auto" takes the GPUs there are, "cpu" none. `required`: a GPU there
    /// has to be (DKV_REQUIRE_CUDA), unless it is "cpu". Errors: those of cuda::devices(), where a
    /// GPU is required or the backend is "cuda".
    static Result<Backends> find(Config const& config, bool required);

    /// The CPU alone, for `why`.
    explicit Backends(MakeBackend cpu, std::string why = {});

    struct Chosen {
        std::string name;  ///< For people.
        Place place = Place::Host;
        MakeBackend make;  ///< Called by the thread that will use it. Gives a backend in any case:
                           ///< one that could not be made refuses everything, and says why.
    };
    /// Errors: Unsupported for a device that is not there, or is lost, and why.
    Result<Chosen> for_engine(std::string_view device) const;

    /// From now on no engine gets that device: a process that lost one does not get it back. False:
    /// it was lost before.
    bool lose(std::string const& device, std::string const& why);
    /// Errors: Unsupported, and why, for a device that is lost.
    Result<void> check(std::string_view device) const;

    MakeBackend const& cpu() const noexcept { return cpu_; }
    /// "cuda (NVIDIA H100, sm_90), cpu (avx512_bf16, 8 threads)"
    std::string const& name() const noexcept { return name_; }
    /// Why there is no GPU in it, or which is lost; empty: nothing to say.
    std::string const& note() const noexcept { return note_; }

private:
    MakeBackend cpu_;
    std::string cpu_name_;
    std::vector<cuda::Device> devices_;
    std::string name_;
    std::string note_;
    std::map<std::string, std::string, std::less<>> lost_;  ///< By UUID: why.
};

}  // namespace dkv
