# What every target of dkv shares: warnings, sanitizers, include root.

add_library(dkv_options INTERFACE)
target_include_directories(dkv_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(dkv_options INTERFACE SPDLOG_FMT_EXTERNAL)
target_compile_options(dkv_options INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow
    $<$<COMPILE_LANGUAGE:CXX>:-Wconversion -Wnon-virtual-dtor -Woverloaded-virtual>
    # g++ 12 sees overlapping copies in std::string + std::string at -O3 (GCC bug 105651).
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>,$<CONFIG:Release>>:-Wno-restrict>
    $<$<BOOL:${DKV_WERROR}>:-Werror>)
# g++ collects its garbage from 128 MiB on, a tenth of a compilation's time; now from 512 MiB on.
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:--param=ggc-min-heapsize=524288>)
endif()
# Most of dkv is glue, which -O3 makes larger and no faster; code that computes asks for it (dkv_computes).
string(REPLACE "-O3" "-O2" CMAKE_CXX_FLAGS_RELEASE "${CMAKE_CXX_FLAGS_RELEASE}")
# What a fault in memory can do is bounded: addresses are bound at start and then read-only, a smashed
# stack or a length that was wrong ends the process. tests/e2e/test_hardening.py looks at what was built.
if(NOT DKV_SANITIZE)
    add_compile_options(
        $<$<COMPILE_LANGUAGE:C,CXX>:-fstack-protector-strong>
        $<$<AND:$<COMPILE_LANGUAGE:C,CXX>,$<STREQUAL:${CMAKE_SYSTEM_PROCESSOR},x86_64>>:-fcf-protection>
        $<$<AND:$<COMPILE_LANGUAGE:C,CXX>,$<CONFIG:Release>>:-D_FORTIFY_SOURCE=3>)
    add_link_options(-Wl,-z,relro,-z,now)
endif()
if(DKV_SANITIZE)
    # Also for the shared library: whoever loads it into another process preloads the runtime.
    add_compile_options(-fsanitize=${DKV_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${DKV_SANITIZE})
    # These two are about an eighth of a compilation. The address sanitizer reports a null pointer that is read or
    # written, and an object that was freed.
    if(DKV_SANITIZE MATCHES undefined)
        add_compile_options(-fno-sanitize=null,vptr)
    endif()
endif()

# dkv_computes(NAME): sanitizers' builds optimise nothing else, since compiling costs them more than running.
function(dkv_computes name)
    if(DKV_SANITIZE)
        target_compile_options(${name} PRIVATE -O1)
    elseif(CMAKE_BUILD_TYPE STREQUAL Release)
        target_compile_options(${name} PRIVATE -O3)
    endif()
endfunction()

# dkv_fuzzed(NAME): what libFuzzer runs. Where nothing is inlined, each of std's functions has counters of its own, and a
# second has a twentieth of the inputs.
function(dkv_fuzzed name)
    if(DKV_FUZZ)
        target_compile_options(${name} PRIVATE -O1)
    endif()
endfunction()

# dkv_front(NAME): glue that reads flags and prints, once a run. CLI11's templates take a third less to
# compile with -O1. It casts no bytes to wider types, and checking alignment is about a seventh of its compilation.
function(dkv_front name)
    if(DKV_SANITIZE MATCHES undefined)
        target_compile_options(${name} PRIVATE -fno-sanitize=alignment)
    endif()
    if(CMAKE_BUILD_TYPE STREQUAL Release)
        target_compile_options(${name} PRIVATE -O1)
    endif()
endfunction()

# dkv_vector_code(file.cc …): without optimisation it is a hundred times slower, and a debug build must still
# keep up with an engine. Under sanitizers -O3 costs a minute a file.
function(dkv_vector_code)
    if(NOT DKV_SANITIZE)
        set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS -O3)
    endif()
endfunction()

# dkv_unity(NAME [FILES]): several files as one (8), because the headers cost more than the code. Not in
# debug builds, which are for changing one file at a time, nor with -DCMAKE_UNITY_BUILD=OFF. Libraries and tests have it
# from dkv_library and dkv_test.
function(dkv_unity name)
    if((DKV_SANITIZE OR CMAKE_BUILD_TYPE STREQUAL Release) AND (CMAKE_UNITY_BUILD OR NOT DEFINED CMAKE_UNITY_BUILD))
        set(files 8 ${ARGN})
        list(GET files -1 files)
        set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${files})
    endif()
endfunction()

# dkv_library(NAME dependency …): one static library per line of tools/tidy/layers.txt, made of the
# .cc files of the current folder; the linker checks the same law as tools/tidy/tidy.py.
function(dkv_library name)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
    add_library(${name} STATIC ${sources})
    target_link_libraries(${name} PUBLIC dkv_options ${ARGN})
    dkv_unity(${name})
endfunction()

# dkv_test_code(NAME): doctest's macros cost two thirds of a test's compilation when they are optimised. Tests that
# compute say -O1.
function(dkv_test_code name)
    if(CMAKE_BUILD_TYPE STREQUAL Release OR DKV_FUZZ)
        target_compile_options(${name} PRIVATE -O0 -U_FORTIFY_SOURCE)
    endif()
    dkv_unity(${name})
endfunction()

# dkv_test(NAME dependency …): one doctest program made of the *_test.cc files of the current folder,
# each of its cases a test of its own.
function(dkv_test name)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_test.cc)
    add_executable(${name} ${sources})
    target_link_libraries(${name} PRIVATE dkv_options dkv_test_main ${ARGN} dkv_gpu_tested)
    dkv_test_code(${name})
    doctest_discover_tests(${name} TEST_PREFIX "${name}: ")
endfunction()

# dkv_emulated_twin(NAME): the same objects linked as a program of the same name in emulated/bin: its GPU
# is tools/cuda_emu. For end-to-end tests, never installed.
function(dkv_emulated_twin name)
    if(NOT DKV_HAS_EMULATION OR DKV_SANITIZE)
        return()
    endif()
    get_target_property(output ${name} OUTPUT_NAME)
    if(NOT output)
        set(output ${name})
    endif()
    get_target_property(links ${name} LINK_LIBRARIES)
    list(TRANSFORM links REPLACE "^dkv_gpu$" dkv_gpu_emulated)
    add_executable(${name}_emulated $<TARGET_OBJECTS:${name}>)
    target_link_libraries(${name}_emulated PRIVATE ${links})
    set_target_properties(${name}_emulated PROPERTIES OUTPUT_NAME ${output}
        RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/emulated/bin)
endfunction()
