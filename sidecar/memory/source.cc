#include "sidecar/memory/source.h"

namespace dkv {
namespace {

template <class... Case>
struct Cases : Case... {
    using Case::operator()...;
};
template <class... Case>
Cases(Case...) -> Cases<Case...>;  // For clang before 17.

}  // namespace

std::string describe(RegionSource const& source) {
    auto const range = [](auto const& of) {
        return " at byte " + std::to_string(of.offset) + " of " +
               std::to_string(of.allocation_bytes);
    };
    return std::visit(
        Cases{[](PosixShmSource const& shm) { return "shared memory '" + shm.name + "'"; },
              [](MemfdSource const& memfd) {
                  return "memfd " + std::to_string(memfd.fd) + " of process " +
                         std::to_string(memfd.pid);
              },
              [&](CudaIpcSource const& ipc) { return "CUDA memory by IPC handle" + range(ipc); },
              [&](CudaVmmSource const& vmm) {
                  return "CUDA memory by descriptor, ticket " + std::to_string(vmm.ticket) +
                         range(vmm);
              },
              [&](CudaPoolSource const& pool) {
                  return "CUDA memory of a pool, ticket " + std::to_string(pool.ticket) +
                         range(pool);
              }},
        source);
}

bool is_device_memory(RegionSource const& source) noexcept {
    return std::holds_alternative<CudaIpcSource>(source) ||
           std::holds_alternative<CudaVmmSource>(source) ||
           std::holds_alternative<CudaPoolSource>(source);
}

}  // namespace dkv
