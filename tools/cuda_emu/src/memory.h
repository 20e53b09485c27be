// Every range of memory that the emulated device knows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "tools/cuda_emu/src/runtime.h"

namespace cudaemu {

enum class Kind {
    Device,        // cudaMalloc
    Pool,          // cudaMallocAsync
    Imported,      // cudaIpcOpenMemHandle
    PoolImported,  // cudaMemPoolImportPointer
    Vmm,           // cuMemMap
    Host,          // cudaMallocHost
    Registered,    // cudaHostRegister
    Managed,       // cudaMallocManaged
};

/// A file of device memory, closed with its last mapping.
class MemoryFile {
public:
    /// Null when the operating system refuses.
    static std::shared_ptr<MemoryFile> create(std::size_t bytes);
    /// The same; the descriptor tells its receiver on which device it is.
    static std::shared_ptr<MemoryFile> create_on(int ordinal, std::size_t bytes);
    static std::shared_ptr<MemoryFile> adopt(int descriptor);
    ~MemoryFile();
    MemoryFile(MemoryFile const&) = delete;
    MemoryFile& operator=(MemoryFile const&) = delete;
    int descriptor() const { return descriptor_; }
    struct Home {
        int ordinal = -1;  ///< As this process counts devices; -1: it does not see that one.
        int ordinal_of_maker = 0;
    };
    Home home() const;

private:
    explicit MemoryFile(int descriptor) : descriptor_(descriptor) {}
    int descriptor_;
};

/// What cuMemCreate made; lives while it is held or mapped.
struct VmmHandle {
    std::shared_ptr<MemoryFile> file;
    std::size_t bytes = 0;
    CUmemAllocationProp properties{};
    int device = 0;  ///< As this process counts them.
    bool imported = false;
    unsigned held = 0;
    ~VmmHandle();
};

struct Allocation {
    Kind kind = Kind::Device;
    std::byte* base = nullptr;
    std::size_t bytes = 0;
    int device = 0;
    std::uint64_t id = 0;
    // The mapping, guard pages and all.
    std::byte* map = nullptr;
    std::size_t map_bytes = 0;
    std::shared_ptr<MemoryFile> file;
    std::size_t file_offset = 0;
    unsigned opened = 0;  // Imported: how often.
    std::string handle;   // Imported: by what.
    CUmemPoolHandle_st* pool = nullptr;
    bool free_queued = false;  // cudaFreeAsync is on its way.
    int protection = 3;        // PROT_READ | PROT_WRITE; VMM: what cuMemSetAccess gave.
    std::shared_ptr<VmmHandle> vmm;

    bool on_device() const { return kind <= Kind::Vmm; }
};

/// By base address.
std::map<std::byte*, Allocation>& allocations();
/// The one that holds `address`; null when there is none.
Allocation* find(void const* address);
Allocation* find_base(void const* base);
/// [address, address + bytes) lies in allocations that touch each other (VMM's may) and are alive.
bool is_covered(void const* address, std::size_t bytes);

/// Maps `bytes` of a file between guard pages, its end against the second one; poisoned around.
/// False when the operating system refuses.
bool map_file(std::shared_ptr<MemoryFile> file,
              std::size_t offset,
              std::size_t bytes,
              Allocation& allocation);
/// Unmaps it and forgets it.
void release_allocation(Allocation& allocation);
/// A pool's memory, to the pool; of a pool that was destroyed meanwhile, the last takes it along.
void give_back(Allocation& allocation);
Allocation& insert(Allocation allocation);
std::size_t page_bytes();
std::size_t rounded(std::size_t bytes, std::size_t multiple);

bool is_exportable(CUmemPoolHandle_st const& pool);

/// Device memory in use by this process.
std::size_t& used_bytes(int ordinal);
bool fits(int ordinal, std::size_t bytes);

/// While one lives, device memory is accessible, whatever CUDAEMU_HOST_ACCESS says. Under the lock.
class DeviceAccess {
public:
    DeviceAccess();
    ~DeviceAccess();
    DeviceAccess(DeviceAccess const&) = delete;
    DeviceAccess& operator=(DeviceAccess const&) = delete;
};
/// Gives one allocation the protection of the moment.
void protect(Allocation const& allocation);

}  // namespace cudaemu
