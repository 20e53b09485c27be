#include "sidecar/memory/region.h"

#include <cstring>
#include <fcntl.h>

#include <doctest/doctest.h>

#include "tests/support/child_process.h"
#include "tests/support/engine_memory.h"
#include "tests/support/results.h"

namespace dkv {
namespace {

using test::EngineMemory;

MemfdSource source_of(EngineMemory const& memory) {
    return {.pid = test::own_pid(), .fd = memory.fd(), .inode = memory.inode()};
}

Error refusal(RegionSource const& source, std::uint64_t bytes, bool writable = false) {
    auto const region = attach(source, bytes, writable);
    REQUIRE(!region);
    return region.error();
}

/// A named object that goes with the test.
class NamedShm {
public:
    explicit NamedShm(std::size_t bytes) : name_("/dkv-test-" + std::to_string(::getpid())) {
        fd_ = UniqueFd(::shm_open(name_.c_str(), O_CREAT | O_RDWR, 0600));
        REQUIRE(::ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0);
    }
    ~NamedShm() { ::shm_unlink(name_.c_str()); }
    std::string const& name() const { return name_; }
    int fd() const { return fd_.get(); }

private:
    std::string name_;
    UniqueFd fd_;
};

TEST_CASE("attach maps a memfd of another process without a copy") {
    EngineMemory memory(8192);
    auto const region = attach(source_of(memory), 8192, false);

    REQUIRE(region);
    *memory.at<int>(4096) = 42;
    int seen = 0;
    std::memcpy(&seen, region.value()->bytes().data() + 4096, sizeof(seen));
    CHECK(seen == 42);
    CHECK(!region.value()->writable());
}

TEST_CASE("attach maps a writable region so that the engine sees what is written") {
    EngineMemory memory(4096);
    auto const region = attach(source_of(memory), 4096, true);

    REQUIRE(region);
    region.value()->bytes()[7] = std::byte{9};
    CHECK(memory.bytes()[7] == std::byte{9});
}

TEST_CASE("attach maps named shared memory, and unlinking the name changes nothing") {
    NamedShm shm(4096);
    auto const region = attach(PosixShmSource{shm.name()}, 4096, false);
    REQUIRE(region);

    ::shm_unlink(shm.name().c_str());
    std::byte const seven{7};
    REQUIRE(::pwrite(shm.fd(), &seven, 1, 100) == 1);

    CHECK(region.value()->bytes()[100] == seven);
    CHECK(refusal(PosixShmSource{shm.name()}, 4096).code == ErrorCode::NotFound);
}

TEST_CASE("attach refuses what is not there") {
    auto const shm = refusal(PosixShmSource{"/dkv-no-such-object"}, 4096);
    CHECK(shm.code == ErrorCode::NotFound);
    CHECK(shm.message == "shared memory '/dkv-no-such-object' does not exist");

    auto const fd = refusal(MemfdSource{.pid = test::own_pid(), .fd = 99999, .inode = 1}, 4096);
    CHECK(fd.code == ErrorCode::NotFound);
    CHECK(fd.message.find("memfd 99999 of process ") == 0);
}

TEST_CASE("attach refuses the memory of a process that is dead") {
    test::ChildProcess child;
    child.kill();

    auto const error = refusal(MemfdSource{.pid = child.pid(), .fd = 3, .inode = 1}, 4096);

    CHECK(error.code == ErrorCode::NotFound);
}

TEST_CASE("attach refuses a region that is smaller than it was said to be") {
    EngineMemory memory(4096);
    auto const error = refusal(source_of(memory), 4097);

    CHECK(error.code == ErrorCode::InvalidArgument);
    CHECK(error.message.find("has 4096 bytes, not 4097") != std::string::npos);
}

TEST_CASE("attach refuses a descriptor that was used again for another file") {
    EngineMemory memory(4096);
    auto source = source_of(memory);
    source.inode += 1;

    auto const error = refusal(source, 4096);

    CHECK(error.code == ErrorCode::InvalidArgument);
    CHECK(error.message.find("is not the file with inode ") != std::string::npos);
}

TEST_CASE("attach refuses memory that is not shared") {
    int pipes[2];
    REQUIRE(::pipe(pipes) == 0);
    UniqueFd const read_end(pipes[0]);
    UniqueFd const write_end(pipes[1]);
    UniqueFd const program(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    struct stat info {};
    REQUIRE(::fstat(program.get(), &info) == 0);

    auto const pipe =
        refusal(MemfdSource{.pid = test::own_pid(), .fd = read_end.get(), .inode = 1}, 1);
    auto const file =
        refusal(MemfdSource{.pid = test::own_pid(), .fd = program.get(), .inode = info.st_ino}, 1);

    CHECK(pipe.code == ErrorCode::InvalidArgument);
    CHECK(pipe.message.find("is not shared memory") != std::string::npos);
    CHECK(file.code == ErrorCode::InvalidArgument);
    CHECK(file.message.find("is not shared memory") != std::string::npos);
}

TEST_CASE("attach refuses names and sizes that cannot be") {
    CHECK(refusal(PosixShmSource{"no-slash"}, 1).code == ErrorCode::InvalidArgument);
    CHECK(refusal(PosixShmSource{"/a/../b"}, 1).code == ErrorCode::InvalidArgument);
    CHECK(refusal(PosixShmSource{"/.."}, 1).code == ErrorCode::InvalidArgument);
    CHECK(refusal(PosixShmSource{""}, 1).code == ErrorCode::InvalidArgument);
    CHECK(refusal(MemfdSource{.pid = 0, .fd = 1, .inode = 1}, 1).code ==
          ErrorCode::InvalidArgument);
    CHECK(refusal(MemfdSource{.pid = test::own_pid(), .fd = -1, .inode = 1}, 1).code ==
          ErrorCode::InvalidArgument);
    EngineMemory memory(4096);
    CHECK(refusal(source_of(memory), 0).code == ErrorCode::InvalidArgument);
    CHECK(refusal(source_of(memory), ~std::uint64_t{0}).code == ErrorCode::InvalidArgument);
}

TEST_CASE("attach refuses to write to memory that is sealed against it") {
    EngineMemory memory(4096, MFD_ALLOW_SEALING);
    REQUIRE(::fcntl(memory.fd(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0);

    CHECK(refusal(source_of(memory), 4096, true).code == ErrorCode::Io);
    CHECK(attach(source_of(memory), 4096, false));
}

TEST_CASE("check_whole notices a region that its engine cut") {
    EngineMemory memory(8192);
    auto const region = attach(source_of(memory), 8192, false);
    REQUIRE(region);
    REQUIRE(region.value()->check_whole());

    REQUIRE(::ftruncate(memory.fd(), 4096) == 0);

    auto const checked = region.value()->check_whole();
    REQUIRE(!checked);
    CHECK(checked.error().message ==
          "a region of 8192 bytes was cut to 4096 while it was registered");
}

TEST_CASE("drop keeps the bytes") {
    constexpr std::size_t kBytes = 12288;
    EngineMemory memory(kBytes);
    auto const region = attach(source_of(memory), kBytes, false);
    REQUIRE(region);
    memory.bytes()[5000] = std::byte{1};
    CHECK(region.value()->bytes()[5000] == std::byte{1});

    region.value()->drop(4500, 1000);
    region.value()->drop_all();
    region.value()->drop(1 << 20, 5);

    CHECK(region.value()->bytes()[5000] == std::byte{1});
}

}  // namespace
}  // namespace dkv
