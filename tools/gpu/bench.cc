// dkv_gpu_bench [--tiny] [--filter=OP]: what the device is, and one line for every op and shape:
//
//   device   name, uuid, compute capability, memory, multiprocessors, what this was built with
//   copy     bytes a second, device to device, read and written together
//   op       name, model, dtype, tokens, seconds, bytes
//
// Tab-separated, for tools/gpu/gpu_test.py. --tiny: shapes that the emulation is done with at once.
#include <cstdio>
#include <string>
#include <string_view>

#include "protocol/cuda/device.h"
#include "tools/gpu/measure.h"

namespace {

constexpr int kNoDevice = 77;

int fail(dkv::Error const& error) {
    bool const absent =
        error.code == dkv::ErrorCode::Unavailable || error.code == dkv::ErrorCode::Unsupported;
    std::fprintf(stderr, "%s%s\n", absent ? "" : "dkv_gpu_bench: ", error.message.c_str());
    return absent ? kNoDevice : 1;
}

dkv::gpu::Options options_for(bool tiny) {
    using dkv::Dtype;
    dkv::gpu::Options options;
    if (tiny) {
        options.shapes = {{"tiny", 4, 2, 64, Dtype::F16, 256}, {"tiny", 4, 2, 64, Dtype::F32, 64}};
        return options;
    }
    options.runs = 20;
    options.cold_bytes = std::uint64_t{512} << 20U;
    for (Dtype const dtype : {Dtype::Bf16, Dtype::F16, Dtype::F32})
        for (std::uint32_t const tokens : {4096U, 32768U, 131072U}) {
            options.shapes.push_back({"smollm2-135m", 9, 3, 64, dtype, tokens});
            options.shapes.push_back({"llama-3-8b", 32, 8, 128, dtype, tokens});
        }
    return options;
}

}  // namespace

int main(int argc, char** argv) {
    bool tiny = false;
    std::string filter;
    for (int i = 1; i < argc; ++i) {
        std::string_view const argument = argv[i];
        if (argument == "--tiny") {
            tiny = true;
        } else if (argument.starts_with("--filter=")) {
            filter = argument.substr(9);
        } else {
            std::fprintf(stderr, "usage: dkv_gpu_bench [--tiny] [--filter=OP]\n");
            return 2;
        }
    }

    auto const devices = dkv::cuda::devices();
    if (!devices) return fail(devices.error());
    auto const& device = devices.value().front();
    std::printf("device\t%s\t%s\t%d.%d\t%llu\t%u\t%s\n", device.name.c_str(), device.uuid.c_str(),
                device.major, device.minor, static_cast<unsigned long long>(device.bytes),
                device.multiprocessors, std::string(dkv::cuda::built_with()).c_str());

    auto const copy = dkv::gpu::copy_rate(tiny ? 1U << 20U : 1U << 30U, tiny ? 1 : 5);
    if (!copy) return fail(copy.error());
    std::printf("copy\t%.6g\n", copy.value());
    auto options = options_for(tiny);
    options.filter = filter;
    auto const measured = dkv::gpu::measure(options);
    if (!measured) return fail(measured.error());
    for (auto const& one : measured.value())
        std::printf("op\t%s\t%s\t%s\t%u\t%.6g\t%.17g\n", one.op.c_str(), one.shape.model.c_str(),
                    std::string(name_of(one.shape.dtype)).c_str(), one.shape.tokens, one.seconds,
                    one.bytes);
    return 0;
}
