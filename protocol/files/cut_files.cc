#include "protocol/files/cut_files.h"

#include <csignal>
#include <cstdint>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/syscall.h>

namespace dkv {
namespace {

/// A system call, and no library's function around it, is what a handler may call.
void on_bus_error(int /*number*/, siginfo_t* info, void* /*context*/) {
    auto const page = static_cast<std::uintptr_t>(::getpagesize());
    auto const at = reinterpret_cast<std::uintptr_t>(info->si_addr) / page * page;
    if (info->si_code == BUS_ADRERR && at != 0 &&
        ::syscall(SYS_mmap, at, page, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != -1)
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
