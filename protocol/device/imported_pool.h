// Another process's memory pool, imported once for all pointers of it. For files that include
// CUDA's headers only.
#pragma once

#include <memory>

#include "protocol/base/unique_fd.h"
#include "protocol/device/cuda_try.h"
#include "protocol/device/registry.h"

namespace dkv::cuda {

class ImportedPool {
public:
    /// The pool behind the descriptor, for `user`'s instance and generation. Called with the
    /// registry's lock held, as the end of every share is. Errors: Device.
    static Result<std::shared_ptr<ImportedPool>> of(UniqueFd const& file, MappingKey const& user);

    ImportedPool(ImportedPool const&) = delete;
    ImportedPool& operator=(ImportedPool const&) = delete;
    ~ImportedPool();
    cudaMemPool_t get() const noexcept { return pool_; }

private:
    ImportedPool() = default;
    cudaMemPool_t pool_ = nullptr;
    int device_ = 0;
    UniqueFd file_;
};

}  // namespace dkv::cuda
