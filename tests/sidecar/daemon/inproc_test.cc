// Memory of kind inproc: an address, which is good for the daemon's own process and for no other.
#include <array>
#include <cstdio>
#include <string>
#include <unistd.h>

#include <sys/wait.h>

#include "protocol/base/unique_fd.h"
#include "protocol/device/device.h"
#include "protocol/device/memory.h"
#include "tests/sidecar/daemon/running.h"

namespace dkv::test {
namespace {

using wire::Body;

constexpr std::uint64_t kEngine = 0xdef;

wire::HelloT hello(std::uint64_t instance, std::string const& device) {
    wire::HelloT hello;
    hello.instance = instance;
    hello.generation = 1;
    hello.engine = "by hand";
    hello.device = device;
    hello.geometry = std::make_unique<wire::GeometryT>();
    hello.geometry->layers = 1;
    hello.geometry->q_heads = 1;
    hello.geometry->kv_heads = 1;
    hello.geometry->head_dim = 8;
    hello.geometry->dtype = wire::Dtype::F32;
    return hello;
}

/// What becomes of `bytes` at `address`: the failure's message, or "registered".
std::string claim(std::string const& endpoint,
                  std::uint64_t instance,
                  std::string const& device,
                  std::uint64_t address,
                  std::uint64_t bytes) {
    Client client(endpoint);
    auto const welcome = client.ask(hello(instance, device));
    if (auto const* const failure = welcome->body.AsFailure()) return failure->message;
    wire::RegisterRegionT region;
    region.instance = instance;
    wire::InprocT own;
    own.address = address;
    region.source.Set(std::move(own));
    region.bytes = bytes;
    auto const reply = client.ask(std::move(region));
    auto const* const failure = reply->body.AsFailure();
    return failure != nullptr ? failure->message : "registered";
}

/// A second process, forked while this one has no threads: it claims what it is told to.
class Impostor {
public:
    Impostor() {
        std::array<int, 2> to{};
        std::array<int, 2> from{};
        REQUIRE(::pipe(to.data()) == 0);
        REQUIRE(::pipe(from.data()) == 0);
        pid_ = ::fork();
        if (pid_ == 0) {
            ::close(to[1]);  // Or it would wait for itself where nothing is asked of it.
            obey(to[0], from[1]);
        }
        ::close(to[0]);
        ::close(from[1]);
        to_ = UniqueFd(to[1]);
        from_ = UniqueFd(from[0]);
    }
    Impostor(Impostor const&) = delete;
    Impostor& operator=(Impostor const&) = delete;
    ~Impostor() {
        to_.reset();
        ::waitpid(pid_, nullptr, 0);
    }
    std::string claims(std::string const& endpoint, std::string const& device, void const* data) {
        auto const address = std::to_string(reinterpret_cast<std::uintptr_t>(data));
        auto const line = endpoint + " " + device + " " + address;
        REQUIRE(::write(to_.get(), line.data(), line.size()) > 0);
        return read_some(from_.get());
    }

private:
    static std::string read_some(int from) {
        std::array<char, 1024> text{};
        auto const bytes = ::read(from, text.data(), text.size());
        return {text.data(), bytes > 0 ? static_cast<std::size_t>(bytes) : 0};
    }
    [[noreturn]] static void obey(int from, int to) {
        std::array<char, 512> endpoint{};
        std::array<char, 64> device{};
        unsigned long long address = 0;
        std::string answer = "nothing";
        auto const line = read_some(from);
        if (std::sscanf(line.c_str(), "%511s %63s %llu", endpoint.data(), device.data(),
                        &address) == 3) {
            try {
                answer = claim(endpoint.data(), kEngine + 1, device.data(), address, 64);
            } catch (...) {  // doctest's: it is not to go on with the tests here.
                answer = "no answer";
            }
        }
        [[maybe_unused]] auto const written = ::write(to, answer.data(), answer.size());
        ::_exit(0);
    }

    pid_t pid_ = 0;
    UniqueFd to_;
    UniqueFd from_;
};

TEST_CASE("this process's memory is this process's to lend, and nobody else's: on the host") {
    Impostor impostor;
    RunningDaemon daemon;
    std::array<std::byte, 64> own{};
    auto const address = std::to_string(reinterpret_cast<std::uintptr_t>(own.data()));

    CHECK(claim(daemon.endpoint, kEngine, "cpu", reinterpret_cast<std::uintptr_t>(own.data()),
                own.size()) == "registered");
    CHECK(impostor.claims(daemon.endpoint, "cpu", own.data()) ==
          "this process's memory at " + address + ": the engine is another process");
}

TEST_CASE("this process's memory is this process's to lend, and nobody else's: on a device") {
    Impostor impostor;  // Before CUDA is called: what is forked behind that has no CUDA.
    auto const devices = cuda::devices();
    if (!devices) {
        MESSAGE("skipped: " << devices.error().message);
        return;
    }
    auto const uuid = devices.value().front().uuid;
    REQUIRE(cuda::use_device(uuid));
    auto const own = cuda::allocate_device_memory(64).value();
    auto const* const data = own->bytes().data();
    auto const address = std::to_string(reinterpret_cast<std::uintptr_t>(data));
    RunningDaemon daemon;

    CHECK(claim(daemon.endpoint, kEngine, uuid, reinterpret_cast<std::uintptr_t>(data), 64) ==
          "registered");
    CHECK(impostor.claims(daemon.endpoint, uuid, data) ==
          "this process's memory at " + address + ": the engine is another process");
}

}  // namespace
}  // namespace dkv::test
