#include "protocol/sdk/llama/cell_memory.h"

#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/mman.h>

struct ggml_tensor {
    std::string name;
    std::string op;
    std::byte* data;
    std::size_t bytes;
};

namespace dkv::llama {
namespace {

constexpr std::uint64_t kElements = 64;
constexpr std::uint64_t kRowBytes = 2 * kElements;
constexpr std::uint64_t kCells = 4096;
constexpr std::uint64_t kKept = 64;
constexpr std::uint64_t kBufferBytes = kCells * kRowBytes;
constexpr std::uint64_t kKeptBytes = kKept * kRowBytes;

Library library() {
    Library made{};
    made.ggml_get_name = [](ggml_tensor const* tensor) { return tensor->name.c_str(); };
    made.ggml_op_desc = [](ggml_tensor const* tensor) { return tensor->op.c_str(); };
    made.ggml_get_data = [](ggml_tensor const* tensor) -> void* { return tensor->data; };
    made.ggml_nbytes = [](ggml_tensor const* tensor) { return tensor->bytes; };
    return made;
}

/// A model of one layer, whose cells are all written, and a sequence that has the first ones.
struct Context {
    explicit Context(int file = -1) {
        int const kind = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
        data = static_cast<std::byte*>(
            ::mmap(nullptr, 2 * kBufferBytes, PROT_READ | PROT_WRITE, kind, file, 0));
        REQUIRE(data != MAP_FAILED);
        for (std::uint64_t i = 0; i < 2 * kBufferBytes; ++i)
            data[i] = static_cast<std::byte>(i % 251 + 1);
        layout.positions.resize(kKept);
        layout.row_elements = kElements;
        layout.key_rows.type = layout.value_rows.type = &ggml_type(Dtype::F16);
        layout.keys = {0};
        layout.values = {kKeptBytes};
        state.assign(data, data + kKeptBytes);
        state.insert(state.end(), values(), values() + kKeptBytes);
        key_node.data = data;
        value_node.data = values();
        memory.set_layers(1);
        memory.note(&key_node);
        memory.note(&value_node);
    }
    ~Context() { ::munmap(data, 2 * kBufferBytes); }

    std::byte* values() const { return data + kBufferBytes; }
    std::uint64_t give_back() const { return memory.give_back({state, layout, layers, 0, 1}); }
    bool is_written(std::byte const* at) const { return *at != std::byte{0}; }

    std::byte* data;
    Library functions = library();
    CellMemory memory{functions};
    ggml_tensor key_node{"cache_k_l0 (view)", "SET_ROWS", nullptr, kBufferBytes};
    ggml_tensor value_node{"cache_v_l0 (view)", "SET_ROWS", nullptr, kBufferBytes};
    LlamaLayout layout;
    std::vector<std::byte> state;
    std::vector<std::uint32_t> layers{0};
};

TEST_CASE("pages behind a sequence's cells go back to the system, and its rows stay") {
    Context const context;

    CHECK(context.give_back() == 2 * (kBufferBytes - kKeptBytes));
    CHECK(context.give_back() == 0);  // None of them is there any more.

    CHECK(std::equal(context.state.begin(), context.state.begin() + kKeptBytes, context.data));
    CHECK(std::equal(context.state.begin() + kKeptBytes, context.state.end(), context.values()));
    CHECK_FALSE(context.is_written(context.data + kKeptBytes));
    CHECK_FALSE(context.is_written(context.values() + kBufferBytes - 1));
}

TEST_CASE("of a transposed V the whole pages of each dimension go") {
    Context context;
    constexpr std::uint64_t kColumnBytes = 2 * kCells;
    context.layout.transposed = true;
    for (std::uint64_t element = 0; element < kElements; ++element)
        std::memcpy(context.state.data() + kKeptBytes + element * 2 * kKept,
                    context.values() + element * kColumnBytes, 2 * kKept);

    auto const page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    std::uint64_t const free_pages = kColumnBytes / page - 1;
    CHECK(context.give_back() == kBufferBytes - kKeptBytes + kElements * free_pages * page);

    for (std::uint64_t element = 0; element < kElements; ++element)
        CHECK(std::memcmp(context.values() + element * kColumnBytes,
                          context.state.data() + kKeptBytes + element * 2 * kKept, 2 * kKept) == 0);
}

TEST_CASE("nothing is touched where the buffer does not hold the sequence's rows") {
    Context context;
    context.values()[kKeptBytes - 1] ^= std::byte{1};

    CHECK(context.give_back() == 0);
    CHECK(context.is_written(context.data + kBufferBytes - 1));
}

TEST_CASE("nothing is touched where a layer's buffer was not seen") {
    Context context;
    context.value_node.op = "CPY";
    context.memory.set_layers(1);
    context.memory.note(&context.key_node);
    context.memory.note(&context.value_node);

    CHECK(context.give_back() == 0);
    CHECK(context.is_written(context.data + kBufferBytes - 1));
}

TEST_CASE("memory of a file is not given back: its pages would be read again") {
    int const file = ::memfd_create("cells", 0);
    REQUIRE(::ftruncate(file, 2 * kBufferBytes) == 0);
    {
        Context const context(file);

        CHECK(context.give_back() == 0);
        CHECK(context.is_written(context.data + kBufferBytes - 1));
    }
    ::close(file);
}

TEST_CASE("a tensor's layer is the number behind the prefix") {
    CHECK(layer_in("Qcur-12", "Qcur-") == 12U);
    CHECK(layer_in("cache_k_l3 (reshaped) (view)", "cache_k_l") == 3U);
    CHECK_FALSE(layer_in("cache_k_l3x", "cache_k_l"));
    CHECK_FALSE(layer_in("cache_k_l", "cache_k_l"));
    CHECK_FALSE(layer_in("cache_v_l3", "cache_k_l"));
}

}  // namespace
}  // namespace dkv::llama
