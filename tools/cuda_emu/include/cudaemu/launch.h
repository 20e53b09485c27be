// Launches with their argument types: the runtime's own templates erase them.
#pragma once

#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

namespace cudaemu {

cudaError_t launch(cudaLaunchConfig_t const& config,
                   void const* kernel,
                   std::function<void()> body);
cudaError_t set_attribute(void const* kernel, cudaFuncAttribute attribute, int value);
cudaError_t get_attributes(void const* kernel, cudaFuncAttributes* result);
cudaError_t occupancy(void const* kernel, int* blocks, int threads, std::size_t shared_bytes);
cudaError_t copy_symbol(void* to, void const* from, std::size_t bytes, cudaStream_t handle);

/// What nvcc refuses, or what goes wrong on a device without a word: parameters are copied bytes,
/// of which drivers take 4 KiB everywhere.
template <class... Parameters>
constexpr void check_parameters() {
    static_assert((!std::is_reference_v<Parameters> && ...),
                  "a kernel's parameter is a reference to the host's memory");
    static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                  "a kernel's parameter cannot be copied as bytes");
    static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel has parameters of over 4 KiB");
}

template <class... Parameters, std::size_t... Index>
cudaError_t launch_unpacked(cudaLaunchConfig_t const& config,
                            void (*kernel)(Parameters...),
                            void** arguments,
                            std::index_sequence<Index...> /*unused*/) {
    check_parameters<Parameters...>();
    std::tuple<std::decay_t<Parameters>...> const values(
        *static_cast<std::decay_t<Parameters>*>(arguments[Index])...);
    return launch(config, reinterpret_cast<void const*>(kernel),
                  [kernel, values]() { std::apply(kernel, values); });
}

}  // namespace cudaemu

/// Dynamic shared memory, instead of `extern __shared__ type name[]`.
#define EXTERN_SHARED(type, name) \
    type* const name = reinterpret_cast<type*>(::cudaemu::dynamic_shared())

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(cudaLaunchConfig_t const* config,
                               void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    cudaemu::check_parameters<Parameters...>();
    std::tuple<std::decay_t<Parameters>...> const values(std::forward<Arguments>(arguments)...);
    return cudaemu::launch(*config, reinterpret_cast<void const*>(kernel),
                           [kernel, values]() { std::apply(kernel, values); });
}
template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...),
                             dim3 grid,
                             dim3 block,
                             void** arguments,
                             std::size_t shared_bytes = 0,
                             cudaStream_t stream = nullptr) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaemu::launch_unpacked(config, kernel, arguments,
                                    std::index_sequence_for<Parameters...>{});
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
    return cudaemu::set_attribute(reinterpret_cast<void const*>(kernel), attribute, value);
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel* kernel) {
    return cudaemu::get_attributes(reinterpret_cast<void const*>(kernel), attributes);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks,
                                                          Kernel* kernel,
                                                          int threads,
                                                          std::size_t shared_bytes) {
    return cudaemu::occupancy(reinterpret_cast<void const*>(kernel), blocks, threads, shared_bytes);
}
template <class T>
cudaError_t cudaMemcpyToSymbol(T& symbol,
                               void const* source,
                               std::size_t bytes,
                               std::size_t offset = 0,
                               cudaMemcpyKind /*kind*/ = cudaMemcpyHostToDevice) {
    return cudaemu::copy_symbol(reinterpret_cast<char*>(&symbol) + offset, source, bytes, nullptr);
}
template <class T>
cudaError_t cudaMemcpyFromSymbol(void* target,
                                 T const& symbol,
                                 std::size_t bytes,
                                 std::size_t offset = 0,
                                 cudaMemcpyKind /*kind*/ = cudaMemcpyDeviceToHost) {
    return cudaemu::copy_symbol(target, reinterpret_cast<char const*>(&symbol) + offset, bytes,
                                nullptr);
}
