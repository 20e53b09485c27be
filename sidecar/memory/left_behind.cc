#include "sidecar/memory/left_behind.h"

#include <fcntl.h>
#include <filesystem>
#include <string>
#include <unistd.h>

#include <sys/file.h>
#include <sys/stat.h>

#include "protocol/base/unique_fd.h"

namespace dkv {
namespace {

constexpr auto kFolder = "/dev/shm";
constexpr auto kPrefix = "dkv-";

bool is_held(std::filesystem::path const& path, struct stat& info) noexcept {
    UniqueFd const file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    return !file || ::fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode) ||
           info.st_uid != ::geteuid() || ::flock(file.get(), LOCK_EX | LOCK_NB) != 0;
}

}  // namespace

LeftBehind unlink_left_behind() noexcept {
    LeftBehind found;
    std::error_code problem;
    for (auto const& entry : std::filesystem::directory_iterator(kFolder, problem)) {
        struct stat info {};
        if (!entry.path().filename().string().starts_with(kPrefix) || is_held(entry.path(), info))
            continue;
        if (::unlink(entry.path().c_str()) != 0) continue;
        ++found.objects;
        found.bytes += static_cast<std::uint64_t>(info.st_blocks) * 512U;
    }
    return found;
}

}  // namespace dkv
