#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace dkv {

/// Elements in a backend's memory, owned.
template <class T>
class BackendArray {
public:
    BackendArray() = default;

    static Result<BackendArray> create(Backend& backend, std::size_t count) {
        BackendArray array;
        array.buffer_ = DKV_TRY(backend.allocate(count * sizeof(T)));
        array.elements_ = {reinterpret_cast<T*>(array.buffer_->bytes().data()), count};
        return array;
    }

    std::span<T> elements() const noexcept { return elements_; }
    bool empty() const noexcept { return elements_.empty(); }

private:
    std::unique_ptr<BackendBuffer> buffer_;
    std::span<T> elements_;
};

/// A copy of `source` in the host's memory, there when this returns.
template <class T>
Result<std::vector<T>> download(Backend& backend, std::span<T const> source) {
    std::vector<T> target(source.size());
    DKV_TRY(backend.download(std::as_bytes(source), std::as_writable_bytes(std::span(target))));
    return target;
}

}  // namespace dkv
