# DKV_KERNELS_ONLY: the kernels, the sharing of device memory, and what tries them on a device
# (tools/gpu/gpu_test.py). Wants a compiler, a CUDA toolkit, TBB, Highway and doctest, nothing else.
enable_testing()
find_package(doctest REQUIRED)
include(${doctest_DIR}/doctest.cmake)
add_library(dkv_test_main OBJECT tests/main.cc)
target_link_libraries(dkv_test_main PRIVATE dkv_options)

if(DKV_HAS_EMULATION)
    add_subdirectory(tools/cuda_emu)
endif()
add_subdirectory(protocol/base)
add_subdirectory(protocol/device)
add_subdirectory(kernels)
add_subdirectory(tests/support)
add_subdirectory(tests/kernels)
add_subdirectory(tests/kernels/primitives)
add_subdirectory(tools/gpu)
