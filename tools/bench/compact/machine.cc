#include "tools/bench/compact/machine.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

#include <sys/resource.h>

#include "protocol/base/unique_fd.h"

namespace dkv::bench {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20U;

double anonymous_now() {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;)
        if (word == "RssAnon:") {
            double kib = 0;
            status >> kib;
            return kib / 1024;
        }
    return 0;
}

}  // namespace

Result<std::size_t> read_file(std::filesystem::path const& path) {
    UniqueFd const file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) return Error{ErrorCode::Io, path.string() + ": " + std::strerror(errno)};
    std::size_t const size = std::filesystem::file_size(path);
    std::atomic<std::size_t> next = 0;
    std::atomic<std::size_t> total = 0;
    auto const work = [&] {
        std::vector<char> buffer(kBufferBytes);
        for (std::size_t at = next.fetch_add(kBufferBytes); at < size;
             at = next.fetch_add(kBufferBytes)) {
            auto const got =
                ::pread(file.get(), buffer.data(), buffer.size(), static_cast<off_t>(at));
            if (got > 0) total += static_cast<std::size_t>(got);
        }
    };
    {
        std::vector<std::jthread> threads;
        for (unsigned i = 1; i < std::max(1U, std::thread::hardware_concurrency()); ++i)
            threads.emplace_back(work);
        work();
    }
    if (total != size) return Error{ErrorCode::Io, path.string() + " was not read to its end"};
    return total.load();
}

double cpu_seconds() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    auto const seconds = [](timeval const& time) {
        return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
    };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

PeakMemory::PeakMemory() : begin_(anonymous_now()) {
    thread_ = std::thread([this] {
        while (!stop_) {
            peak_ = std::max(peak_.load(), anonymous_now());
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    });
}

PeakMemory::~PeakMemory() {
    stop_ = true;
    thread_.join();
}

double PeakMemory::anonymous_mib() const {
    return std::max(0.0, std::max(peak_.load(), anonymous_now()) - begin_);
}

}  // namespace dkv::bench
