#include "protocol/base/guarded_memory.h"

#include <csignal>
#include <cstring>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "protocol/base/unique_fd.h"

namespace dkv {
namespace {

/// Two pages of a file that is cut to one: a touch of the second is a SIGBUS.
class CutFile {
public:
    CutFile() : file_(::memfd_create("dkv-test", MFD_CLOEXEC)) {
        REQUIRE(::ftruncate(file_.get(), static_cast<off_t>(2 * page())) == 0);
        data_ = static_cast<char*>(
            ::mmap(nullptr, 2 * page(), PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0));
        REQUIRE(data_ != MAP_FAILED);
        std::memset(data_, 'a', 2 * page());
        REQUIRE(::ftruncate(file_.get(), static_cast<off_t>(page())) == 0);
    }
    CutFile(CutFile const&) = delete;
    CutFile& operator=(CutFile const&) = delete;
    ~CutFile() { ::munmap(data_, 2 * page()); }

    static std::size_t page() { return static_cast<std::size_t>(::getpagesize()); }
    char volatile* data() const { return data_; }

private:
    UniqueFd file_;
    char* data_ = nullptr;
};

TEST_CASE(
    "a missing page of guarded memory reads as zeros, takes what is written, and is told of") {
    survive_missing_pages();
    CutFile one;
    CutFile other;
    auto const guarded = GuardedMemory::over(const_cast<char*>(one.data()), 2 * CutFile::page());
    auto const whole = GuardedMemory::over(const_cast<char*>(other.data()), 2 * CutFile::page());
    REQUIRE(guarded);
    REQUIRE(whole);
    CHECK(one.data()[0] == 'a');
    CHECK(guarded.value().is_whole());

    CHECK(one.data()[CutFile::page()] == 0);
    one.data()[CutFile::page() + 1] = 'b';

    CHECK(!guarded.value().is_whole());
    CHECK(whole.value().is_whole());
    CHECK(other.data()[0] == 'a');
}

TEST_CASE("a page that is missing elsewhere ends the process, as without a guard") {
    pid_t const child = ::fork();
    if (child == 0) {
        survive_missing_pages();
        CutFile file;
        { auto const over = GuardedMemory::over(const_cast<char*>(file.data()), 1); }
        [[maybe_unused]] char const byte = file.data()[CutFile::page()];
        ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);

    CHECK(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == SIGBUS);
}

}  // namespace
}  // namespace dkv
