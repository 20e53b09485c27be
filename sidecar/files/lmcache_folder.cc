#include "sidecar/files/lmcache_folder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include <fmt/format.h>
#include <sys/stat.h>

#include "protocol/files/mapped_file.h"
#include "protocol/files/safetensors.h"
#include "sidecar/files/check_bytes.h"
#include "sidecar/files/folder.h"

namespace dkv {
namespace {

constexpr std::size_t kHeaderBytes = 28;
constexpr std::int32_t kFormat2LTD = 1;

struct Header {
    std::int32_t bytes = 0;
    std::int32_t format = 0;
    std::int32_t dtype = 0;
    std::array<std::int32_t, 4> shape{};
};
static_assert(sizeof(Header) == kHeaderBytes);

std::optional<Dtype> dtype_of(std::int32_t code) noexcept {
    switch (code) {
        case 1:
        case 2: return Dtype::F16;
        case 3: return Dtype::Bf16;
        case 4: return Dtype::F32;
        default: return std::nullopt;
    }
}

std::string shape_text(Header const& header) {
    return fmt::format("[{}]", fmt::join(header.shape, ", "));
}

/// Everything but what several chunks have to agree on.
Result<Header> read_header(std::span<std::byte const> bytes) {
    Header header;
    if (bytes.size() < kHeaderBytes)
        return corrupt(fmt::format("{} bytes are no LMCache chunk", bytes.size()));
    std::memcpy(&header, bytes.data(), kHeaderBytes);
    if (header.format != kFormat2LTD)
        return unsupported(
            fmt::format("format {}: only 1, [2, layers, tokens, width], is read", header.format));
    auto const dtype = dtype_of(header.dtype);
    if (!dtype)
        return unsupported(fmt::format(
            "dtype {}: only 1 and 2 (f16), 3 (bf16) and 4 (f32) are read", header.dtype));
    std::uint64_t bytes_wanted = bytes_of(*dtype);
    bool overflow = header.shape[0] != 2;
    for (std::int32_t const extent : header.shape)
        overflow =
            overflow || extent <= 0 ||
            __builtin_mul_overflow(bytes_wanted, static_cast<std::uint64_t>(extent), &bytes_wanted);
    std::size_t const data = bytes.size() - kHeaderBytes;
    if (overflow || bytes_wanted != data || header.bytes < 0 ||
        static_cast<std::uint64_t>(header.bytes) != bytes_wanted)
        return corrupt(fmt::format("the header says {} bytes and {} {}, and {} bytes follow",
                                   header.bytes, name_of(*dtype), shape_text(header), data));
    return header;
}

/// What LMCache says in a name, up to the hash: "vllm@meta/Llama@1@0"; empty: another name.
std::string_view key_of(std::string_view name) {
    if (std::ranges::count(name, '@') < 4) return {};
    return name.substr(0, name.rfind('@'));
}

struct Chunk {
    std::filesystem::path path;
    MappedFile mapped;
    std::uint32_t tokens = 0;
};

class LmcacheChunks final : public SavedCache {
public:
    Result<void> add(std::filesystem::path const& path,
                     MappedFile mapped,
                     OpenOptions const& options) {
        auto const header = DKV_TRY(read_header(mapped.bytes()));
        auto const tokens = static_cast<std::uint32_t>(header.shape[2]);
        if (chunks_.empty())
            DKV_TRY(read_geometry(header, options));
        else
            DKV_TRY(check_goes_with(path, header));
        if (__builtin_add_overflow(facts_.prompt_tokens, tokens, &facts_.prompt_tokens) ||
            facts_.prompt_tokens > std::numeric_limits<std::int32_t>::max())
            return corrupt("more tokens than a prompt may have");
        facts_.file_bytes += mapped.bytes().size();
        chunks_.push_back({path, std::move(mapped), tokens});
        return {};
    }

    void finish(OpenOptions const& options) {
        facts_.format = FileFormat::Lmcache;
        facts_.format_words =
            fmt::format("LMCache ({} chunk{})", chunks_.size(), chunks_.size() == 1 ? "" : "s");
        facts_.lengths.assign(std::size_t{facts_.geometry.layers} * facts_.geometry.kv_heads,
                              facts_.prompt_tokens);
        // FORMAT@MODEL@…
        std::string const name = chunks_.front().path.stem().string();
        if (auto const key = key_of(name); !key.empty()) {
            auto const begin = key.find('@') + 1;
            auto const end = key.rfind('@', key.rfind('@') - 1);
            facts_.model = key.substr(begin, end - begin);
        }
        apply_options(options, facts_);
    }

    Result<void> check_unchanged() const override {
        for (Chunk const& chunk : chunks_)
            DKV_TRY(chunk.mapped.check_unchanged());
        return {};
    }

    Result<SavedLayer> layer(std::uint32_t index) const override {
        SavedLayer saved;
        saved.keys = view(nullptr);
        saved.values = saved.keys;
        if (chunks_.size() == 1) {
            saved.keys.data = const_cast<std::byte*>(part(chunks_[0], 0, index).data());
            saved.values.data = const_cast<std::byte*>(part(chunks_[0], 1, index).data());
            return saved;
        }
        auto const held = std::make_shared<std::array<std::vector<std::byte>, 2>>();
        for (std::uint32_t kind = 0; kind < 2; ++kind) {
            auto& rows = (*held)[kind];
            rows.reserve(facts_.prompt_tokens * row_bytes());
            for (Chunk const& chunk : chunks_) {
                auto const bytes = part(chunk, kind, index);
                rows.insert(rows.end(), bytes.begin(), bytes.end());
            }
        }
        saved.keys.data = (*held)[0].data();
        saved.values.data = (*held)[1].data();
        saved.hold = held;
        return saved;
    }

    Result<void> verify(std::uint32_t index) const override {
        for (Chunk const& chunk : chunks_)
            for (std::uint32_t kind = 0; kind < 2; ++kind) {
                auto const report =
                    check_bytes(part(chunk, kind, index), facts_.geometry.dtype, false);
                if (report.not_finite)
                    return located(chunk.path,
                                   corrupt(fmt::format("layer {}, {}: element {} is a NaN or an "
                                                       "infinity",
                                                       index, kind == 0 ? "keys" : "values",
                                                       *report.not_finite)));
            }
        return {};
    }

private:
    Result<void> read_geometry(Header const& header, OpenOptions const& options) {
        auto const width = static_cast<std::uint32_t>(header.shape[3]);
        if (options.kv_heads == 0)
            return unsupported(
                fmt::format("rows of {} do not tell heads from dims: say --kv-heads", width));
        if (width % options.kv_heads != 0)
            return Error{ErrorCode::InvalidArgument,
                         fmt::format("rows of {} are no {} heads", width, options.kv_heads)};
        facts_.geometry = {.layers = static_cast<std::uint32_t>(header.shape[1]),
                           .q_heads = options.kv_heads,
                           .kv_heads = options.kv_heads,
                           .head_dim = width / options.kv_heads,
                           .dtype = *dtype_of(header.dtype)};
        auto const checked = check(facts_.geometry);
        if (!checked) return corrupt(checked.error().message);
        return {};
    }

    Result<void> check_goes_with(std::filesystem::path const& path, Header const& header) const {
        Geometry const& geometry = facts_.geometry;
        Chunk const& first = chunks_.front();
        bool const fits =
            static_cast<std::uint32_t>(header.shape[1]) == geometry.layers &&
            static_cast<std::uint64_t>(header.shape[3]) * bytes_of(geometry.dtype) == row_bytes() &&
            dtype_of(header.dtype) == geometry.dtype;
        if (!fits)
            return corrupt(fmt::format("{} goes not with {}, of {} layers and rows of {} bytes",
                                       shape_text(header), first.path.filename().string(),
                                       geometry.layers, row_bytes()));
        std::string const name = path.stem().string();
        std::string const first_name = first.path.stem().string();
        if (key_of(name) != key_of(first_name))
            return corrupt("another model's or worker's than " + first.path.filename().string());
        // Only a prompt's last chunk is short.
        if (chunks_.back().tokens != first.tokens ||
            static_cast<std::uint32_t>(header.shape[2]) > first.tokens)
            return corrupt(
                fmt::format("{} tokens after chunks of {} and {}: the order is not the "
                            "prompt's; call the chunks 0.data, 1.data …",
                            header.shape[2], first.tokens, chunks_.back().tokens));
        return {};
    }

    std::uint64_t row_bytes() const {
        return facts_.geometry.kv_heads * facts_.geometry.row_bytes();
    }

    /// A layer's keys (0) or values (1) in one chunk.
    std::span<std::byte const> part(Chunk const& chunk,
                                    std::uint32_t kind,
                                    std::uint32_t layer) const {
        std::uint64_t const bytes = chunk.tokens * row_bytes();
        return chunk.mapped.bytes().subspan(
            kHeaderBytes + (kind * facts_.geometry.layers + std::uint64_t{layer}) * bytes, bytes);
    }

    RowsView view(std::byte* data) const {
        Geometry const& geometry = facts_.geometry;
        return {.data = data,
                .dtype = geometry.dtype,
                .heads = geometry.kv_heads,
                .tokens = facts_.prompt_tokens,
                .head_dim = geometry.head_dim,
                .head_stride = geometry.head_dim,
                .token_stride = std::uint64_t{geometry.kv_heads} * geometry.head_dim};
    }

    std::vector<Chunk> chunks_;
};

bool begins_with_number(std::filesystem::path const& path) {
    auto const name = path.filename().string();
    return !name.empty() && name.front() >= '0' && name.front() <= '9';
}

}  // namespace

bool is_lmcache_chunk(std::span<std::byte const> bytes) noexcept {
    // By the sizes alone: a format or dtype that is refused is still a chunk.
    if (bytes.size() < kHeaderBytes) return false;
    Header header;
    std::memcpy(&header, bytes.data(), kHeaderBytes);
    return header.format >= 0 && header.format < 32 && header.dtype >= 0 && header.dtype < 32 &&
           header.bytes > 0 &&
           static_cast<std::uint64_t>(header.bytes) == bytes.size() - kHeaderBytes;
}

Result<std::vector<std::filesystem::path>> lmcache_chunks(std::filesystem::path const& folder) {
    auto chunks = DKV_TRY(files_of(folder, ".data"));
    if (chunks.size() < 2 || std::ranges::all_of(chunks, begins_with_number)) return chunks;
    using Written = std::pair<std::pair<std::int64_t, std::int64_t>, std::filesystem::path>;
    std::vector<Written> written;
    for (auto const& path : chunks) {
        struct stat status {};
        if (::stat(path.c_str(), &status) != 0)
            return Error{ErrorCode::Io, path.string() + ": " + std::strerror(errno)};
        written.push_back({{status.st_mtim.tv_sec, status.st_mtim.tv_nsec}, path});
    }
    std::ranges::sort(written);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
        if (i > 0 && written[i].first == written[i - 1].first)
            return located(folder, unsupported(fmt::format(
                                       "nothing tells which of {} and {} comes first: call the "
                                       "chunks 0.data, 1.data …",
                                       written[i - 1].second.filename().string(),
                                       written[i].second.filename().string())));
        chunks[i] = written[i].second;
    }
    return chunks;
}

Result<std::unique_ptr<SavedCache>> open_lmcache(std::vector<std::filesystem::path> const& chunks,
                                                 std::filesystem::path const& path,
                                                 OpenOptions const& options) {
    if (chunks.empty()) return Error{ErrorCode::Io, path.string() + ": no chunks (*.data) in it"};
    auto cache = std::make_unique<LmcacheChunks>();
    for (auto const& chunk : chunks) {
        auto mapped = DKV_TRY(MappedFile::open(chunk));
        auto const added = cache->add(chunk, std::move(mapped), options);
        if (!added) return located(chunk, added.error());
    }
    cache->finish(options);
    return std::unique_ptr<SavedCache>(std::move(cache));
}

}  // namespace dkv
