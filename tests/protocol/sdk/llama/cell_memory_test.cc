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

// Whole pages of up to 64 KiB.
constexpr std::uint64_t kElements = 64;
constexpr std::uint64_t kRowBytes = 2 * kElements;
constexpr std::uint64_t kKept = 512;
constexpr std::uint64_t kCells = 32'768;  // Of one stream.
constexpr std::uint64_t kKeptBytes = kKept * kRowBytes;
constexpr std::uint64_t kStreamBytes = kCells * kRowBytes;
constexpr std::uint64_t kColumnBytes = 2 * kCells;

std::uint64_t page_bytes() {
    return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

Library library() {
    Library made{};
    made.ggml_get_name = [](ggml_tensor const* tensor) { return tensor->name.c_str(); };
    made.ggml_op_desc = [](ggml_tensor const* tensor) { return tensor->op.c_str(); };
    made.ggml_get_data = [](ggml_tensor const* tensor) -> void* { return tensor->data; };
    made.ggml_nbytes = [](ggml_tensor const* tensor) { return tensor->bytes; };
    return made;
}

/// A model of one layer, all of whose cells are written, and a sequence that has a stream's first
/// ones.
struct Context {
    explicit Context(std::uint32_t streams = 1,
                     std::uint32_t stream = 0,
                     bool transposed = false,
                     int file = -1)
        : bytes(streams * kStreamBytes), begin(stream * kStreamBytes) {
        int const kind = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE;
        keys = static_cast<std::byte*>(
            ::mmap(nullptr, 2 * bytes, PROT_READ | PROT_WRITE, kind, file, 0));
        REQUIRE(keys != MAP_FAILED);
        values = keys + bytes;
        for (std::uint64_t i = 0; i < 2 * bytes; ++i)
            keys[i] = static_cast<std::byte>(i % 251 + 1);
        lay_state(streams, stream, transposed);
        key_node.data = keys;
        value_node.data = values;
        key_node.bytes = value_node.bytes = bytes;
        memory.set_layers(1);
        memory.note(&key_node);
        memory.note(&value_node);
    }
    ~Context() { ::munmap(keys, 2 * bytes); }

    /// As llama.cpp writes it, as far as it is read here: streams, no cells of those before, K and
    /// V.
    void lay_state(std::uint32_t streams, std::uint32_t stream, bool transposed) {
        auto const put = [&](void const* from, std::uint64_t count) {
            auto const* const data = static_cast<std::byte const*>(from);
            state.insert(state.end(), data, data + count);
        };
        put(&streams, sizeof streams);
        layout.count_offset = (stream + 1) * sizeof(std::uint32_t);
        state.resize(layout.count_offset + sizeof(std::uint32_t));
        layout.positions.resize(kKept);
        layout.row_elements = kElements;
        layout.transposed = transposed;
        layout.key_rows.type = layout.value_rows.type = &ggml_type(Dtype::F16);
        layout.keys = {state.size()};
        put(keys + begin, kKeptBytes);
        layout.values = {state.size()};
        for (std::uint64_t row = 0; row < (transposed ? kElements : 1); ++row)
            put(values + begin + row * kColumnBytes, transposed ? 2 * kKept : kKeptBytes);
    }

    Returned give_back() const { return memory.give_back({state, layout, layers, 2 * kKept}); }
    /// The bytes of K and V that differ from what was written.
    std::uint64_t changed(std::uint64_t from, std::uint64_t to) const {
        std::uint64_t count = 0;
        for (std::byte const* const part : {keys, values})
            for (std::uint64_t i = from; i < to; ++i)
                count += part[i] != static_cast<std::byte>(
                                        (static_cast<std::uint64_t>(part - keys) + i) % 251 + 1);
        return count;
    }

    std::uint64_t bytes;
    std::uint64_t begin;  ///< Of the sequence's stream.
    std::byte* keys;
    std::byte* values;
    Library functions = library();
    CellMemory memory{functions};
    ggml_tensor key_node{"cache_k_l0 (view)", "SET_ROWS", nullptr, 0};
    ggml_tensor value_node{"cache_v_l0 (view)", "SET_ROWS", nullptr, 0};
    LlamaLayout layout;
    std::vector<std::byte> state;
    std::vector<std::uint32_t> layers{0};
};

TEST_CASE("pages behind a sequence's cells go back to the system, and its rows stay") {
    Context const context;

    auto const returned = context.give_back();

    CHECK(returned.bytes == 2 * (kStreamBytes - kKeptBytes));
    CHECK(returned.bytes_before == 2 * kKeptBytes);  // It had twice as many cells.
    CHECK(context.give_back().bytes == 0);           // None of them is there any more.
    CHECK(context.changed(0, kKeptBytes) == 0);
    CHECK(context.changed(kKeptBytes, kStreamBytes) == returned.bytes);
}

TEST_CASE("of a transposed V the whole pages of each dimension go") {
    Context const context(1, 0, true);
    std::uint64_t const free_bytes = kColumnBytes - page_bytes();

    CHECK(context.give_back().bytes == kStreamBytes - kKeptBytes + kElements * free_bytes);

    for (std::uint64_t row = 0; row < kElements; ++row)
        CHECK(std::memcmp(context.values + row * kColumnBytes,
                          context.state.data() + context.layout.values[0] + row * 2 * kKept,
                          2 * kKept) == 0);
}

TEST_CASE("a sequence with a stream of its own has its pages there, whatever lies in the others") {
    for (bool const transposed : {false, true}) {
        CAPTURE(transposed);
        Context const context(2, 1, transposed);
        // The same rows were stored in the first stream before.
        std::memcpy(context.keys, context.keys + kStreamBytes, kStreamBytes);
        std::memcpy(context.values, context.values + kStreamBytes, kStreamBytes);

        auto const returned = context.give_back();

        std::uint64_t const of_values =
            transposed ? kElements * (kColumnBytes - page_bytes()) : kStreamBytes - kKeptBytes;
        CHECK(returned.bytes == kStreamBytes - kKeptBytes + of_values);
        CHECK(context.changed(kStreamBytes, kStreamBytes + 2 * kKept) == 0);
        CHECK(*(context.keys + kStreamBytes - 1) != std::byte{0});
        CHECK(*(context.keys + 2 * kStreamBytes - 1) == std::byte{0});
    }
}

TEST_CASE("nothing is touched where the buffer does not begin with the sequence's rows") {
    Context const context;
    context.values[kKeptBytes - 1] ^= std::byte{1};

    CHECK(context.give_back().bytes == 0);
    CHECK(context.changed(kKeptBytes, kStreamBytes) == 0);
}

TEST_CASE("nothing is touched where a layer's buffer was not seen") {
    Context context;
    context.value_node.op = "CPY";
    context.memory.set_layers(1);
    context.memory.note(&context.key_node);
    context.memory.note(&context.value_node);

    CHECK(context.give_back().bytes == 0);
    CHECK(context.changed(0, kStreamBytes) == 0);
}

TEST_CASE("memory of a file is not given back: its pages would be read again") {
    int const file = ::memfd_create("cells", 0);
    REQUIRE(::ftruncate(file, 2 * kStreamBytes) == 0);
    {
        Context const context(1, 0, false, file);

        CHECK(context.give_back().bytes == 0);
        CHECK(context.changed(0, kStreamBytes) == 0);
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
