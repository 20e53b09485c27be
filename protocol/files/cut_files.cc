#include "protocol/files/cut_files.h"

#include <csignal>
#include <cstdint>
#include <unistd.h>

#include <sys/mman.h>

namespace dkv {
namespace {

/// Calls what a handler may call: mmap() is a system call and nothing else.
void on_bus_error(int /*number*/, siginfo_t* info, void* /*context*/) {
    auto const page = static_cast<std::uintptr_t>(::getpagesize());
    auto const at = reinterpret_cast<std::uintptr_t>(info->si_addr) / page * page;
    if (info->si_code == BUS_ADRERR && at != 0 &&
        ::mmap(reinterpret_cast<void*>(at), page, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED)
        return;
    std::signal(SIGBUS, SIG_DFL);  // It comes again, and ends the process.
}

}  // namespace

void survive_cut_files() {
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace dkv
