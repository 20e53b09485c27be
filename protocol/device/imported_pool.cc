#include "protocol/device/imported_pool.h"

#include <cerrno>
#include <fcntl.h>
#include <map>

#include "protocol/device/device_guard.h"

namespace dkv::cuda {
namespace {

using Pools = std::multimap<MappingKey, std::weak_ptr<ImportedPool>>;

/// Under the registry's lock, as long as it lives.
Pools& pools() {
    static Pools& all = *new Pools;
    return all;
}

}  // namespace

Result<std::shared_ptr<ImportedPool>> ImportedPool::of(UniqueFd const& file,
                                                       MappingKey const& user) {
    MappingKey key = user;
    key.handle = {};  // That of one pointer.
    std::erase_if(pools(), [](auto const& entry) { return entry.second.expired(); });
    auto const [begin, end] = pools().equal_range(key);
    for (auto entry = begin; entry != end; ++entry)
        if (auto known = entry->second.lock(); is_same_file(known->file_.get(), file.get()))
            return known;

    std::shared_ptr<ImportedPool> pool(new ImportedPool);
    pool->device_ = key.device;
    pool->file_ = UniqueFd(::fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
    auto* const handle = reinterpret_cast<void*>(static_cast<std::uintptr_t>(file.get()));
    DKV_CUDA_TRY(cudaMemPoolImportFromShareableHandle(&pool->pool_, handle,
                                                      cudaMemHandleTypePosixFileDescriptor, 0));
    pools().emplace(key, pool);
    return pool;
}

ImportedPool::~ImportedPool() {
    if (pool_ == nullptr) return;
    auto const guard = DeviceGuard::enter(device_);
    static_cast<void>(cudaMemPoolDestroy(pool_));
    static_cast<void>(cudaGetLastError());
}

}  // namespace dkv::cuda
