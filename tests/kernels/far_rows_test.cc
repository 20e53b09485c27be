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

constexpr std::size_t kGap = std::size_t{5} << 30U;
constexpr std::size_t kBufferBytes = std::size_t{4} << 20U;
constexpr std::uint32_t kDim = 64;

/// Addresses that nobody else is given.
class Gap {
public:
    Gap() : data_(::mmap(nullptr, kGap, PROT_NONE, kFlags, -1, 0)) {}
    ~Gap() {
        if (data_ != MAP_FAILED) ::munmap(data_, kGap);
    }
    Gap(Gap const&) = delete;
    Gap& operator=(Gap const&) = delete;

private:
    static constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* data_;
};

/// The two of several buffers of a backend that are farthest apart.
struct FarApart {
    explicit FarApart(Backend& backend) {
        for (int tries = 0; tries < 8 && high - low < static_cast<std::ptrdiff_t>(kGap); ++tries) {
            auto made = backend.allocate(kBufferBytes);
            REQUIRE(made);
            std::byte* const data = made.value()->bytes().data();
            buffers.push_back(std::move(made).value());
            low = buffers.size() == 1 ? data : std::min(low, data);
            high = std::max(high, data);
            gaps.push_back(std::make_unique<Gap>());
        }
    }
    std::uint64_t distance(Dtype dtype) const {
        return static_cast<std::uint64_t>(high - low) / bytes_of(dtype);
    }
    std::vector<std::unique_ptr<Gap>> gaps;  // Kept: nothing is to lie between the two.
    std::vector<std::unique_ptr<BackendBuffer>> buffers;
    std::byte* low = nullptr;
    std::byte* high = nullptr;
};

/// An array in the backend's memory.
template <class T>
class Array {
public:
    Array(Backend& backend, std::span<T const> host) : backend_(backend), count_(host.size()) {
        auto made = backend.allocate(host.size_bytes());
        REQUIRE(made);
        buffer_ = std::move(made).value();
        REQUIRE(backend.upload(std::as_bytes(host), buffer_->bytes()));
    }
    T* data() const { return reinterpret_cast<T*>(buffer_->bytes().data()); }
    std::span<T> span() const { return {data(), count_}; }
    std::vector<T> fetch() const {
        std::vector<T> host(count_);
        REQUIRE(backend_.download(buffer_->bytes(), std::as_writable_bytes(std::span(host))));
        return host;
    }

private:
    Backend& backend_;
    std::size_t count_;
    std::unique_ptr<BackendBuffer> buffer_;
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

Made make(Backend& backend, RowsView const& keys) {
    std::vector<std::uint32_t> const lengths(keys.heads, keys.tokens);
    std::vector<std::uint64_t> offsets;
    std::vector<std::int32_t> every;
    for (std::uint32_t head = 0; head < keys.heads; ++head) {
        offsets.push_back(every.size() * keys.row_bytes());
        for (std::uint32_t token = 0; token < keys.tokens; ++token)
            every.push_back(static_cast<std::int32_t>(token));
    }
    Array<std::int32_t> const ids(backend, every);
    Array<std::byte> const rows(backend, std::vector<std::byte>(every.size() * keys.row_bytes()));
    REQUIRE(backend.gather({keys, ids.span(), lengths, rows.span(), offsets}));

    Rows host(keys.dtype, keys.heads, 1, kDim);
    host.fill([](auto head, auto, auto dim) { return number(1, head, dim) / 8; });
    Array<std::byte> const memory(backend, std::span(host.bytes));
    RowsView queries = host.view;
    queries.data = memory.data();
    queries.place = keys.place;
    Array<float> const scores(backend, std::vector<float>(keys.heads * (keys.tokens - 1)));
    Array<float> const norms(backend, std::vector<float>(keys.heads * keys.tokens));
    REQUIRE(backend.score(
        {.queries = queries, .keys = keys, .scores = scores.span(), .mass = {}, .lse = {}}));
    REQUIRE(backend.key_score({keys, norms.span(), 0, KeyMeasure::Norm}));
    return {rows.fetch(), scores.fetch(), norms.fetch()};
}

void check_far(Backend& backend, RowsView far) {
    Rows host(far.dtype, far.heads, far.tokens, kDim);
    host.fill(number);
    std::uint64_t const bytes = host.view.row_bytes();
    for (std::uint32_t head = 0; head < far.heads; ++head)
        for (std::uint32_t token = 0; token < far.tokens; ++token)
            REQUIRE(
                backend.upload({host.view.row(head, token), bytes}, {far.row(head, token), bytes}));
    Array<std::byte> const memory(backend, std::span(host.bytes));
    RowsView near = host.view;
    near.data = memory.data();
    near.place = far.place;
    Array<std::int32_t> const table(backend, std::span(far.blocks, far.paged() ? 2 : 0));
    if (far.paged()) far.blocks = table.data();

    CHECK(make(backend, far) == make(backend, near));
}

void check_all(Backend& backend, Place place) {
    FarApart const memory(backend);
    if (backend.name().find("emulated") != std::string_view::npos)
        REQUIRE(memory.high - memory.low >= static_cast<std::ptrdiff_t>(kGap));
    for (Dtype const dtype : {Dtype::F32, Dtype::F16}) {
        for (std::size_t const skew : {std::size_t{0}, bytes_of(dtype)}) {
            INFO(backend.name(), ", ", name_of(dtype), ", ", skew, " bytes off");
            std::uint64_t const apart = memory.distance(dtype);
            RowsView heads = dense_rows(memory.low + skew, dtype, 2, 5, kDim);
            heads.place = place;
            heads.head_stride = apart;
            check_far(backend, heads);

            RowsView tokens = dense_rows(memory.low + skew, dtype, 2, 2, kDim);
            tokens.place = place;
            tokens.token_stride = apart;
            tokens.head_stride = kDim;
            check_far(backend, tokens);

            std::array<std::int32_t, 2> const table{1, 0};
            RowsView blocks = dense_rows(memory.low + skew, dtype, 2, 5, kDim);
            blocks.place = place;
            blocks.token_stride = 2 * kDim;
            blocks.head_stride = kDim;
            blocks.blocks = table.data();
            blocks.block_tokens = 3;
            blocks.block_count = 2;
            blocks.block_stride = apart;
            check_far(backend, blocks);
        }
    }
}

}  // namespace

TEST_CASE("rows may be gigabytes apart: heads, tokens, and blocks of a paged cache") {
    check_all(*make_cpu_backend(1), Place::Host);
    if (auto const device = test::device()) check_all(*device, Place::Device);
}
