// Foreign bytes as a file of the format DKV_FUZZ_FORMAT: opened, every row of every layer read,
// verified. What must hold: no crash, nothing read outside the file, no memory that the file's size
// does not justify.
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <string>
#include <tuple>
#include <unistd.h>

#include <sys/mman.h>

#include "cli/saved/formats/saved_cache.h"
#include "protocol/base/assert.h"

namespace {

using namespace dkv;

/// A file in memory; or, for vLLM, a folder of one layer that leads to it.
class Sample {
public:
    explicit Sample(FileFormat format) : file_(::memfd_create("sample", 0)) {
        DKV_ASSERT(file_ >= 0);
        path_ = "/proc/self/fd/" + std::to_string(file_);
        if (format != FileFormat::Vllm) return;
        std::string folder = "/tmp/dkv-fuzz-XXXXXX";
        DKV_ASSERT(::mkdtemp(folder.data()) != nullptr);
        std::filesystem::create_symlink(
            "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(file_),
            folder + "/model.layers.0.self_attn.attn.safetensors");
        path_ = folder_ = folder;
    }
    Sample(Sample const&) = delete;
    Sample& operator=(Sample const&) = delete;
    ~Sample() {
        ::close(file_);
        std::error_code ignored;
        if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
    }

    void fill(std::uint8_t const* data, std::size_t size) const {
        DKV_ASSERT(::ftruncate(file_, 0) == 0);
        DKV_ASSERT(::pwrite(file_, data, size, 0) == static_cast<ssize_t>(size));
    }
    std::string const& path() const noexcept { return path_; }

private:
    int file_;
    std::string path_;
    std::string folder_;
};

void read_rows(RowsView const& view) {
    if (view.data == nullptr) return;
    unsigned sum = 0;
    for (std::uint32_t head = 0; head < view.heads; ++head)
        for (std::uint32_t token = 0; token < view.tokens; ++token)
            for (std::uint32_t dim = 0; dim < view.head_dim; ++dim) {
                std::byte element[4];
                auto const bytes = bytes_of(view.dtype);
                std::memcpy(element, view.row(head, token) + dim * view.dim_stride * bytes, bytes);
                sum += std::to_integer<unsigned>(element[0]);
            }
    asm volatile("" : : "r"(sum));  // So that the reads stay.
}

void read_layer(SavedCache const& cache, std::uint32_t index) {
    auto const layer = cache.layer(index);
    std::ignore = cache.verify(index);
    if (!layer) return;
    for (std::uint32_t head = 0; head < cache.geometry().kv_heads; ++head) {
        auto const keys = layer.value().keys_of(head);
        auto const positions = layer.value().positions_of(head);
        DKV_ASSERT(keys.tokens == cache.facts().length(index, head));
        DKV_ASSERT(positions.empty() || positions.size() == keys.tokens);
        for (std::size_t row = 0; row < positions.size(); ++row) {
            DKV_ASSERT(positions[row] >= 0);
            DKV_ASSERT(static_cast<std::uint32_t>(positions[row]) < cache.facts().prompt_tokens);
            DKV_ASSERT(row == 0 || positions[row - 1] < positions[row]);
        }
        read_rows(keys);
        read_rows(layer.value().values_of(head));
    }
    read_rows(layer.value().queries);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    static char const* const name = std::getenv("DKV_FUZZ_FORMAT");
    DKV_ASSERT(name != nullptr);
    static auto const format = file_format(name);
    DKV_ASSERT(format);
    static Sample const sample(*format);
    sample.fill(data, size);

    OpenOptions options;
    options.format = format;
    options.kv_heads = 2;
    // Half of the inputs say how vLLM's tensor lies.
    constexpr char const* kLayouts[] = {"", "", "", "2THD", "T2HD", "TH2D"};
    if (size > 0) options.layout = kLayouts[data[size - 1] % std::size(kLayouts)];
    auto const opened = open_cache(sample.path(), options);
    if (!opened) {
        DKV_ASSERT(opened.error().message.starts_with(sample.path()));
        return 0;
    }
    auto const& facts = opened.value()->facts();
    DKV_ASSERT(check(facts.geometry));
    DKV_ASSERT(facts.tokens.empty() || facts.tokens.size() == facts.prompt_tokens);
    for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer)
        read_layer(*opened.value(), layer);
    return 0;
}
