// Rows farther apart than 32 bits can say: a layer of a long prompt is more than 4 GiB. No such
// memory is needed for it, but two small buffers whose addresses are that far apart.
#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <sys/mman.h>

#include "tests/support/backends.h"
#include "tests/support/rows.h"

using namespace dkv;
using test::Rows;

namespace {

constexpr std::size_t kBufferBytes = std::size_t{64} << 20U;
constexpr std::size_t kGapBytes = kBufferBytes;  // No hole is left that a buffer would fit into.
constexpr std::size_t kGaps = 96;
constexpr std::ptrdiff_t kFarApart = std::ptrdiff_t{5} << 30U;
constexpr std::uint32_t kDim = 64;

/// Addresses that nobody else is given.
class Gap {
public:
    Gap() : data_(::mmap(nullptr, kGapBytes, PROT_NONE, kFlags, -1, 0)) {}
    ~Gap() {
        if (data_ != MAP_FAILED) ::munmap(data_, kGapBytes);
    }
    Gap(Gap const&) = delete;
    Gap& operator=(Gap const&) = delete;

private:
    static constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* data_;
};

/// Two buffers of a backend, far apart where it maps memory as the C library does.
struct FarApart {
    explicit FarApart(Backend& backend) {
        for (auto& buffer : buffers) {
            auto made = backend.allocate(kBufferBytes);
            REQUIRE(made);
            buffer = std::move(made).value();
            for (std::size_t i = 0; i < kGaps; ++i)
                gaps.push_back(std::make_unique<Gap>());
        }
        low = std::min(buffers[0]->bytes().data(), buffers[1]->bytes().data());
        high = std::max(buffers[0]->bytes().data(), buffers[1]->bytes().data());
        next = high + kBufferBytes / 2;
    }
    /// Of what lies behind the rows: between the two is nobody's place.
    std::span<std::byte> take(std::size_t bytes) {
        std::byte* const begin = next;
        next += (bytes + 255) / 256 * 256;
        if (next > high + kBufferBytes) next = high + kBufferBytes / 2;
        return {begin, bytes};
    }
    std::uint64_t distance(Dtype dtype) const {
        return static_cast<std::uint64_t>(high - low) / bytes_of(dtype);
    }
    std::vector<std::unique_ptr<Gap>> gaps;
    std::array<std::unique_ptr<BackendBuffer>, 2> buffers;
    std::byte* low = nullptr;
    std::byte* high = nullptr;
    std::byte* next = nullptr;
};

/// An array in the backend's memory.
template <class T>
class Array {
public:
    Array(Backend& backend, FarApart& memory, std::span<T const> host)
        : backend_(backend), bytes_(memory.take(host.size_bytes())) {
        REQUIRE(backend.upload(std::as_bytes(host), bytes_));
    }
    T* data() const { return reinterpret_cast<T*>(bytes_.data()); }
    std::span<T> span() const { return {data(), bytes_.size() / sizeof(T)}; }
    std::vector<T> fetch() const {
        std::vector<T> host(span().size());
        REQUIRE(backend_.download(bytes_, std::as_writable_bytes(std::span(host))));
        return host;
    }

private:
    Backend& backend_;
    std::span<std::byte> bytes_;
};

/// Whole numbers: their sums of squares are exact in any order.
float number(std::uint32_t head, std::uint32_t token, std::uint32_t dim) {
    return static_cast<float>((head * 7 + token * 3 + dim) % 9) - 4;
}

/// What gather, score and key_score make of keys.
struct Made {
    std::vector<std::byte> rows;
    std::vector<float> scores;
    std::vector<float> norms;
    bool operator==(Made const&) const = default;
};

Made make(Backend& backend, FarApart& memory, RowsView const& keys) {
    std::vector<std::uint32_t> const lengths(keys.heads, keys.tokens);
    std::vector<std::uint64_t> offsets;
    std::vector<std::int32_t> every;
    for (std::uint32_t head = 0; head < keys.heads; ++head) {
        offsets.push_back(every.size() * keys.row_bytes());
        for (std::uint32_t token = 0; token < keys.tokens; ++token)
            every.push_back(static_cast<std::int32_t>(token));
    }
    Array<std::int32_t> const ids(backend, memory, every);
    Array<std::byte> const rows(backend, memory,
                                std::vector<std::byte>(every.size() * keys.row_bytes()));
    REQUIRE(backend.gather({keys, ids.span(), lengths, rows.span(), offsets}));

    Rows host(keys.dtype, keys.heads, 1, kDim);
    host.fill([](auto head, auto, auto dim) { return number(1, head, dim) / 8; });
    Array<std::byte> const copy(backend, memory, std::span(host.bytes));
    RowsView queries = host.view;
    queries.data = copy.data();
    queries.place = keys.place;
    Array<float> const scores(backend, memory, std::vector<float>(keys.heads * (keys.tokens - 1)));
    Array<float> const norms(backend, memory, std::vector<float>(keys.heads * keys.tokens));
    REQUIRE(backend.score({.queries = queries, .keys = keys, .scores = scores.span(), .mass = {}}));
    REQUIRE(backend.key_score({keys, norms.span(), 0, KeyMeasure::Norm}));
    return {rows.fetch(), scores.fetch(), norms.fetch()};
}

void check_far(Backend& backend, FarApart& memory, RowsView far) {
    Rows host(far.dtype, far.heads, far.tokens, kDim);
    host.fill(number);
    std::uint64_t const bytes = host.view.row_bytes();
    for (std::uint32_t head = 0; head < far.heads; ++head)
        for (std::uint32_t token = 0; token < far.tokens; ++token)
            REQUIRE(
                backend.upload({host.view.row(head, token), bytes}, {far.row(head, token), bytes}));
    Array<std::byte> const copy(backend, memory, std::span(host.bytes));
    RowsView near = host.view;
    near.data = copy.data();
    near.place = far.place;
    Array<std::int32_t> const table(backend, memory, std::span(far.blocks, far.paged() ? 2 : 0));
    if (far.paged()) far.blocks = table.data();

    CHECK(make(backend, memory, far) == make(backend, memory, near));
}

void check_all(Backend& backend, Place place) {
    FarApart memory(backend);
    if (backend.name().find("emulated") != std::string_view::npos)
        REQUIRE(memory.high - memory.low >= kFarApart);
    for (Dtype const dtype : {Dtype::F32, Dtype::F16}) {
        for (std::size_t const skew : {std::size_t{0}, bytes_of(dtype)}) {
            INFO(backend.name(), ", ", name_of(dtype), ", ", skew, " bytes off");
            std::uint64_t const apart = memory.distance(dtype);
            RowsView heads = dense_rows(memory.low + skew, dtype, 2, 5, kDim);
            heads.place = place;
            heads.head_stride = apart;
            check_far(backend, memory, heads);

            RowsView tokens = dense_rows(memory.low + skew, dtype, 2, 2, kDim);
            tokens.place = place;
            tokens.token_stride = apart;
            tokens.head_stride = kDim;
            check_far(backend, memory, tokens);

            std::array<std::int32_t, 2> const table{1, 0};
            RowsView blocks = dense_rows(memory.low + skew, dtype, 2, 5, kDim);
            blocks.place = place;
            blocks.token_stride = 2 * kDim;
            blocks.head_stride = kDim;
            blocks.blocks = table.data();
            blocks.block_tokens = 3;
            blocks.block_count = 2;
            blocks.block_stride = apart;
            check_far(backend, memory, blocks);
        }
    }
}

}  // namespace

TEST_CASE("rows may be gigabytes apart: heads, tokens, and blocks of a paged cache") {
    check_all(*make_cpu_backend(1), Place::Host);
    if (auto const device = test::device()) check_all(*device, Place::Device);
}
