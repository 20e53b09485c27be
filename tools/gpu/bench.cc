// dkv_gpu_bench [--device] [--tiny] [--filter=OP]: what the device is, and one line for every op
// and shape, as soon as it is measured:
//
//   device  name, uuid, compute capability, memory, multiprocessors, clock in Hz, bytes a second
//           that its memory's clock makes, bytes of L2, what this was built with
//   copy    bytes a second, device to device, read and written together; before the ops and behind
//   op      name, model, dtype, tokens, seconds (median, least, most), runs, bytes
//
// Tab-separated, for tools/gpu/gpu_test.py. --device: that line alone. --tiny: shapes that the
// emulation and compute-sanitizer are done with at once.
#include <cstdio>
#include <string>
#include <string_view>

#include "protocol/device/device.h"
#include "tools/gpu/measure.h"

namespace {

constexpr int kNoDevice = 77;

struct Arguments {
    bool device = false;
    bool tiny = false;
    std::string filter;
};

int fail(dkv::Error const& error) {
    bool const absent =
        error.code == dkv::ErrorCode::Unavailable || error.code == dkv::ErrorCode::Unsupported;
    std::fprintf(stderr, "%s%s (built with %s)\n",
                 absent ? "" : "dkv_gpu_bench: ", error.message.c_str(),
                 std::string(dkv::cuda::built_with()).c_str());
    return absent ? kNoDevice : 1;
}

/// tools/gpu/roofline.py has the same shapes.
dkv::gpu::Options options_for(bool tiny) {
    using dkv::Dtype;
    dkv::gpu::Options options;
    if (tiny) {
        options.shapes = {{"tiny", 2, 4, 2, 64, Dtype::Bf16, 256},
                          {"tiny", 2, 4, 2, 64, Dtype::F32, 64}};
        options.runs = 2;
        options.cold_bytes = std::uint64_t{256} << 10U;
        options.copy_bytes = std::uint64_t{1} << 20U;
        return options;
    }
    options.runs = 20;
    options.cold_bytes = std::uint64_t{1} << 29U;
    options.copy_bytes = std::uint64_t{1} << 30U;
    options.warm_seconds = 0.5;
    for (Dtype const dtype : {Dtype::Bf16, Dtype::F16, Dtype::F32})
        for (std::uint32_t const tokens : {4096U, 32768U, 131072U}) {
            options.shapes.push_back({"smollm2-135m", 30, 9, 3, 64, dtype, tokens});
            options.shapes.push_back({"llama-3-8b", 32, 32, 8, 128, dtype, tokens});
        }
    return options;
}

void print(dkv::gpu::Measured const& one, unsigned runs) {
    std::printf("op\t%s\t%s\t%s\t%u\t%.9g\t%.9g\t%.9g\t%u\t%.17g\n", one.op.c_str(),
                one.shape.model.c_str(), std::string(name_of(one.shape.dtype)).c_str(),
                one.shape.tokens, one.seconds.median, one.seconds.least, one.seconds.most, runs,
                one.bytes);
    std::fflush(stdout);
}

dkv::Result<void> print_device() {
    auto const devices = DKV_TRY(dkv::cuda::devices());
    auto const& device = devices.front();
    auto const peaks = DKV_TRY(dkv::gpu::peaks());
    std::printf("device\t%s\t%s\t%d.%d\t%llu\t%u\t%.9g\t%.9g\t%llu\t%s\n", device.name.c_str(),
                device.uuid.c_str(), device.major, device.minor,
                static_cast<unsigned long long>(device.bytes), device.multiprocessors,
                peaks.clock_hz, peaks.memory_bytes_per_second,
                static_cast<unsigned long long>(peaks.l2_bytes),
                std::string(dkv::cuda::built_with()).c_str());
    std::fflush(stdout);
    return {};
}

dkv::Result<void> print_copy(dkv::gpu::Options const& options) {
    std::printf("copy\t%.9g\n", DKV_TRY(dkv::gpu::copy_rate(options)));
    std::fflush(stdout);
    return {};
}

dkv::Result<void> run(Arguments const& arguments) {
    DKV_TRY(print_device());
    if (arguments.device) return {};
    auto options = options_for(arguments.tiny);
    options.filter = arguments.filter;
    DKV_TRY(print_copy(options));
    DKV_TRY(dkv::gpu::measure(options, [&](auto const& one) { print(one, options.runs); }));
    return print_copy(options);
}

}  // namespace

int main(int argc, char** argv) {
    Arguments arguments;
    for (int i = 1; i < argc; ++i) {
        std::string_view const argument = argv[i];
        if (argument == "--device") {
            arguments.device = true;
        } else if (argument == "--tiny") {
            arguments.tiny = true;
        } else if (argument.starts_with("--filter=")) {
            arguments.filter = argument.substr(9);
        } else {
            std::fprintf(stderr, "usage: dkv_gpu_bench [--device] [--tiny] [--filter=OP]\n");
            return 2;
        }
    }
    auto const done = run(arguments);
    return done ? 0 : fail(done.error());
}
