# CUDA, three ways, chosen where a program is linked; nothing above protocol/cuda and kernels/cuda
# knows which it got:
#
#   dkv_gpu            what is shipped: compiled by nvcc, or, without a toolkit, refusals
#   dkv_gpu_emulated   the same sources compiled by the C++ compiler, run by tools/cuda_emu
#   dkv_gpu_tested     what tests link: emulated where CUDA's headers are, else dkv_gpu
#
# The toolkit is looked for in DKV_CUDA_TOOLKIT, the repository's .venv (tools/dev/install_deps.sh
# puts a pinned one there), CUDA_HOME and /usr/local/cuda.

set(DKV_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (when nvcc is found), ON or OFF")
set(DKV_CUDA_TOOLKIT "" CACHE PATH "CUDA toolkit; empty: looked for")
set(DKV_CUDA_ARCHITECTURES 80 86 89 90 100 120 CACHE STRING "Compute capabilities to compile for")

file(GLOB from_pypi ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cu13)
set(dkv_cuda_root "")
foreach(candidate "${DKV_CUDA_TOOLKIT}" ${from_pypi} "$ENV{CUDA_HOME}" /usr/local/cuda)
    if(NOT dkv_cuda_root AND NOT candidate STREQUAL "" AND EXISTS ${candidate}/include/cuda_runtime_api.h)
        set(dkv_cuda_root ${candidate})
    endif()
endforeach()
find_package(Boost 1.74 QUIET COMPONENTS context)

set(DKV_HAS_NVCC OFF)
if(dkv_cuda_root AND EXISTS ${dkv_cuda_root}/bin/nvcc AND NOT DKV_CUDA STREQUAL OFF AND NOT DKV_SANITIZE)
    set(DKV_HAS_NVCC ON)
endif()
if(DKV_CUDA STREQUAL ON AND NOT DKV_HAS_NVCC)
    message(FATAL_ERROR "DKV_CUDA is ON, and no nvcc was found; set DKV_CUDA_TOOLKIT")
endif()
set(DKV_HAS_EMULATION OFF)
if(dkv_cuda_root AND Boost_FOUND AND NOT DKV_CUDA STREQUAL OFF)
    set(DKV_HAS_EMULATION ON)
endif()
if(DKV_HAS_NVCC)
    message(STATUS "CUDA: ${dkv_cuda_root}, compiled for ${DKV_CUDA_ARCHITECTURES}")
else()
    message(STATUS "CUDA: left out of what is shipped (dkvd --backend cuda, libdkv_cuda); emulation: ${DKV_HAS_EMULATION}")
endif()

# Compiles .cu files with nvcc into OBJECTS; what ptxas says goes to NAME.ptxas beside each.
function(dkv_nvcc objects)
    set(result)
    set(targets)
    foreach(architecture ${DKV_CUDA_ARCHITECTURES})
        list(APPEND targets -gencode arch=compute_${architecture},code=sm_${architecture})
    endforeach()
    list(GET DKV_CUDA_ARCHITECTURES -1 newest)
    list(APPEND targets -gencode arch=compute_${newest},code=compute_${newest})
    foreach(source ${ARGN})
        get_filename_component(stem ${source} NAME_WE)
        set(object ${CMAKE_CURRENT_BINARY_DIR}/${stem}.o)
        add_custom_command(OUTPUT ${object}
            COMMAND ${dkv_cuda_root}/bin/nvcc -c ${source} -o ${object} -MD -MF ${object}.d -std=c++20 -O3
                --threads 2 -lineinfo -Xcompiler=-fPIC,-Wall,-Wextra -Werror all-warnings
                -I ${PROJECT_SOURCE_DIR} ${targets} -Xptxas -v 2> ${CMAKE_CURRENT_BINARY_DIR}/${stem}.ptxas
                || (cat ${CMAKE_CURRENT_BINARY_DIR}/${stem}.ptxas && false)
            DEPENDS ${source} DEPFILE ${object}.d VERBATIM COMMENT "nvcc ${stem}.cu")
        list(APPEND result ${object})
    endforeach()
    set(${objects} ${result} PARENT_SCOPE)
endfunction()

# dkv_cuda_library(NAME [DEVICE file.cu …] HOST file.cc … NONE file.cc … LINK target …): NAME as it is
# shipped (nvcc, or NONE without a toolkit) and NAME_emulated.
function(dkv_cuda_library name)
    cmake_parse_arguments(part "" "" "DEVICE;HOST;NONE;LINK" ${ARGN})
    if(DKV_HAS_NVCC)
        dkv_nvcc(objects ${part_DEVICE})
        add_library(${name} STATIC ${part_HOST} ${objects})
        set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
        target_include_directories(${name} SYSTEM PRIVATE ${dkv_cuda_root}/include)
        target_link_libraries(${name} PUBLIC dkv_options ${part_LINK} PRIVATE
            ${dkv_cuda_root}/lib/libcudart_static.a rt Threads::Threads ${CMAKE_DL_LIBS})
    else()
        add_library(${name} STATIC ${part_NONE})
        target_link_libraries(${name} PUBLIC dkv_options ${part_LINK})
    endif()
    if(DKV_HAS_EMULATION)
        add_library(${name}_emulated STATIC ${part_HOST} ${part_DEVICE})
        set_source_files_properties(${part_DEVICE} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
        set(links)
        foreach(link ${part_LINK})
            if(TARGET ${link}_emulated)
                list(APPEND links ${link}_emulated)
            else()
                list(APPEND links ${link})
            endif()
        endforeach()
        target_link_libraries(${name}_emulated PUBLIC dkv_options ${links} dkv_cuda_emu)
        # Kernels compute: optimised always. Lanes share memory as other types than they wrote.
        target_compile_options(${name}_emulated PRIVATE $<IF:$<BOOL:${DKV_SANITIZE}>,-O1,-O2>
            -fno-strict-aliasing -Wno-unknown-pragmas -Wno-conversion -Wno-pedantic)
    endif()
endfunction()
