#include "tools/cuda_emu/src/memory.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/resource.h>

#include "tools/cuda_emu/src/sanitizers.h"

namespace cudaemu {
namespace {

constexpr std::size_t kAlignment = 256;

unsigned accesses = 0;  // NOLINT: of the one device, under its lock.

void raise_descriptor_limit() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;  // Each cudaMalloc holds a descriptor.
    static_cast<void>(::setrlimit(RLIMIT_NOFILE, &limit));
}

struct sigaction previous_action;  // NOLINT: a signal handler has no other place.

// Says which pointer it was before the usual end. Only for CUDAEMU_HOST_ACCESS=trap.
void on_fault(int signal, siginfo_t* info, void* /*context*/) {
    auto* const address = static_cast<std::byte*>(info->si_addr);
    std::array<char, 160> text{};
    // The lock may be held: a look without it, by a program that is about to end.
    if (Allocation const* const found = find(address))
        std::snprintf(text.data(), text.size(),
                      "cudaemu: the host touches device memory: byte %zu of %zu at %p\n",
                      static_cast<std::size_t>(address - found->base), found->bytes,
                      static_cast<void*>(found->base));
    static_cast<void>(!::write(STDERR_FILENO, text.data(), std::strlen(text.data())));
    ::sigaction(signal, &previous_action, nullptr);  // Returning faults again, into that one.
}

void install_trap() {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    ::sigaction(SIGSEGV, &action, &previous_action);
}

}  // namespace

std::size_t page_bytes() {
    static auto const bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    return bytes;
}

std::size_t rounded(std::size_t bytes, std::size_t multiple) {
    return (bytes + multiple - 1) / multiple * multiple;
}

std::shared_ptr<MemoryFile> MemoryFile::create(std::size_t bytes) {
    return create_on(current_device(), bytes);
}

std::shared_ptr<MemoryFile> MemoryFile::create_on(int ordinal, std::size_t bytes) {
    static bool const raised = (raise_descriptor_limit(), true);
    static_cast<void>(raised);
    auto const name =
        "cudaemu:" + std::to_string(device(ordinal).physical) + ":" + std::to_string(ordinal);
    int const descriptor = ::memfd_create(name.c_str(), MFD_CLOEXEC);
    if (descriptor < 0) return nullptr;
    std::shared_ptr<MemoryFile> file(new MemoryFile(descriptor));
    if (::ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) return nullptr;
    return file;
}

MemoryFile::Home MemoryFile::home() const {
    auto const path = "/proc/self/fd/" + std::to_string(descriptor_);
    std::array<char, 64> name{};
    unsigned physical = 0;
    Home home;
    if (::readlink(path.c_str(), name.data(), name.size() - 1) < 0 ||
        std::sscanf(name.data(), "/memfd:cudaemu:%u:%d", &physical, &home.ordinal_of_maker) != 2)
        return home;
    for (int ordinal = 0; ordinal < device_count(); ++ordinal)
        if (device(ordinal).physical == physical) home.ordinal = ordinal;
    return home;
}

std::shared_ptr<MemoryFile> MemoryFile::adopt(int descriptor) {
    return std::shared_ptr<MemoryFile>(new MemoryFile(descriptor));
}

MemoryFile::~MemoryFile() {
    ::close(descriptor_);
}

std::map<std::byte*, Allocation>& allocations() {
    static auto& all = *new std::map<std::byte*, Allocation>;
    return all;
}

Allocation* find(void const* address) {
    auto& all = allocations();
    auto* const byte = static_cast<std::byte*>(const_cast<void*>(address));
    auto after = all.upper_bound(byte);
    if (after == all.begin()) return nullptr;
    Allocation& candidate = std::prev(after)->second;
    return byte < candidate.base + candidate.bytes ? &candidate : nullptr;
}

Allocation* find_base(void const* base) {
    auto const found = allocations().find(static_cast<std::byte*>(const_cast<void*>(base)));
    return found == allocations().end() ? nullptr : &found->second;
}

bool is_covered(void const* address, std::size_t bytes) {
    auto const* byte = static_cast<std::byte const*>(address);
    while (true) {
        Allocation const* const part = find(byte);
        if (part == nullptr || part->free_queued) return false;
        auto const rest = static_cast<std::size_t>(part->base + part->bytes - byte);
        if (bytes <= rest) return true;
        bytes -= rest;
        byte += rest;
    }
}

bool map_file(std::shared_ptr<MemoryFile> file,
              std::size_t offset,
              std::size_t bytes,
              Allocation& allocation) {
    std::size_t const page = page_bytes();
    std::size_t const body = rounded(bytes, page);
    void* const reserved = ::mmap(nullptr, body + 2 * page, PROT_NONE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return false;
    auto* const map = static_cast<std::byte*>(reserved);
    if (::mmap(map + page, body, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file->descriptor(),
               static_cast<off_t>(offset)) == MAP_FAILED) {
        ::munmap(map, body + 2 * page);
        return false;
    }
    allocation.map = map;
    allocation.map_bytes = body + 2 * page;
    allocation.file = std::move(file);
    allocation.file_offset = offset;
    allocation.bytes = bytes;
    allocation.base = map + page + (body - rounded(bytes, kAlignment));
    poison(map + page, static_cast<std::size_t>(allocation.base - map) - page);
    poison(allocation.base + bytes,
           static_cast<std::size_t>(map + page + body - allocation.base) - bytes);
    return true;
}

Allocation& insert(Allocation allocation) {
    static std::uint64_t next_id = 0;
    static bool const trapping = traps_host_access() ? (install_trap(), true) : false;
    static_cast<void>(trapping);
    allocation.id = ++next_id;
    Allocation& kept = allocations()[allocation.base] = std::move(allocation);
    protect(kept);
    return kept;
}

void release_allocation(Allocation& allocation) {
    if (allocation.map != nullptr) {
        unpoison(allocation.map, allocation.map_bytes);
        ::munmap(allocation.map, allocation.map_bytes);
    }
    if (allocation.kind == Kind::Device || allocation.kind == Kind::Pool)
        used_bytes(allocation.device) -= allocation.bytes;
    allocations().erase(allocation.base);
}

std::size_t& used_bytes(int ordinal) {
    static std::array<std::size_t, 16> used{};
    return used[static_cast<std::size_t>(ordinal)];
}

bool fits(int ordinal, std::size_t bytes) {
    return bytes <= device(ordinal).bytes && used_bytes(ordinal) <= device(ordinal).bytes - bytes;
}

void protect(Allocation const& allocation) {
    if (!allocation.on_device()) return;
    bool const open = accesses != 0 || !traps_host_access();
    int const protection = open ? allocation.protection : PROT_NONE;
    if (allocation.kind == Kind::Vmm)
        ::mprotect(allocation.base, allocation.bytes, protection);
    else
        ::mprotect(allocation.map + page_bytes(), allocation.map_bytes - 2 * page_bytes(),
                   protection);
}

DeviceAccess::DeviceAccess() {
    if (accesses++ != 0 || !traps_host_access()) return;
    for (auto const& [base, allocation] : allocations())
        protect(allocation);
}

DeviceAccess::~DeviceAccess() {
    if (--accesses != 0 || !traps_host_access()) return;
    for (auto const& [base, allocation] : allocations())
        protect(allocation);
}

}  // namespace cudaemu
