#include "sidecar/memory/left_behind.h"

#include <fcntl.h>
#include <string>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/file.h>
#include <sys/mman.h>

#include "protocol/base/unique_fd.h"

namespace dkv {
namespace {

struct NamedMemory {
    explicit NamedMemory(std::string const& suffix)
        : name("/dkv-" + std::to_string(::getpid()) + "-" + suffix),
          file(::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) {
        REQUIRE(::posix_fallocate(file.get(), 0, 8192) == 0);
    }
    ~NamedMemory() { ::shm_unlink(name.c_str()); }
    bool exists() const {
        UniqueFd const found(::shm_open(name.c_str(), O_RDONLY | O_CLOEXEC, 0));
        return static_cast<bool>(found);
    }

    std::string name;
    UniqueFd file;
};

TEST_CASE("a name that no process holds goes; one that an engine holds stays") {
    NamedMemory left("left");
    NamedMemory held("held");
    left.file.reset();
    REQUIRE(::flock(held.file.get(), LOCK_SH) == 0);

    auto const found = unlink_left_behind();

    CHECK(found.objects >= 1);
    CHECK(found.bytes >= 8192);
    CHECK_FALSE(left.exists());
    CHECK(held.exists());
}

}  // namespace
}  // namespace dkv
