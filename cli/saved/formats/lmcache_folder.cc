#include "cli/saved/formats/lmcache_folder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "cli/saved/formats/check_bytes.h"
#include "cli/saved/formats/folder.h"
#include "cli/saved/formats/lmcache_names.h"
#include "protocol/container/mapped_file.h"
#include "protocol/container/safetensors.h"

namespace dkv {
namespace {

constexpr std::size_t kHeaderBytes = 28;
constexpr std::int32_t kFormat2LTD = 1;
constexpr std::int32_t kFormatMla = 6;
constexpr std::string_view kChunkExtension = ".data";

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

std::string_view name_of_format(std::int32_t format) noexcept {
    switch (format) {
        case 2:
        case 3: return " (one layer alone)";
        case 4:
        case 5: return " (compressed or quantised)";
        default: return "";
    }
}

/// Everything but what several chunks have to agree on.
Result<Header> read_header(std::span<std::byte const> bytes) {
    Header header;
    if (bytes.size() < kHeaderBytes)
        return corrupt(fmt::format("{} bytes, fewer than the {} of an LMCache chunk's header",
                                   bytes.size(), kHeaderBytes));
    std::memcpy(&header, bytes.data(), kHeaderBytes);
    if (header.format == kFormatMla || (header.format == kFormat2LTD && header.shape[0] == 1))
        return unsupported(
            fmt::format("format {}, {}: one row per token and neither keys nor "
                        "values, as MLA (DeepSeek) has it, which is not read",
                        header.format, shape_text(header)));
    if (header.format != kFormat2LTD)
        return unsupported(
            fmt::format("format {}{}, {}: only 1, [2, layers, tokens, width], is "
                        "read",
                        header.format, name_of_format(header.format), shape_text(header)));
    auto const dtype = dtype_of(header.dtype);
    if (!dtype)
        return unsupported(
            fmt::format("dtype {}: only 1 and 2 (f16), 3 (bf16) and 4 (f32) are read{}",
                        header.dtype, header.dtype > 4 ? "; it may be one of quantised rows" : ""));
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
        auto const name = chunk_name(path);
        if (!name.model.empty() && name.world != "1")
            return unsupported(
                fmt::format("worker {} of {}: the other workers have the other "
                            "heads, and chunks of one worker alone are read",
                            name.worker, name.world));
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
        if (chunks_.size() > 1 && !has_number(chunks_.front().path))
            facts_.format_words +=
                ", in the order of their writing: one that is missing between "
                "them would not be seen";
        facts_.model = chunk_name(chunks_.front().path).model;
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
                         fmt::format("rows of {} do not divide into {} KV heads (--kv-heads)",
                                     width, options.kv_heads)};
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
            return corrupt(fmt::format("{} {} does not match {}, {} of {} layers and rows of {}",
                                       name_of(*dtype_of(header.dtype)), shape_text(header),
                                       first.path.filename().string(), name_of(geometry.dtype),
                                       geometry.layers, geometry.kv_heads * geometry.head_dim));
        if (chunk_name(path) != chunk_name(first.path))
            return corrupt("by its name, of another model or worker than " +
                           first.path.filename().string());
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
            kHeaderBytes + (std::uint64_t{kind} * facts_.geometry.layers + layer) * bytes, bytes);
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

}  // namespace

bool is_lmcache_chunk(std::span<std::byte const> bytes) noexcept {
    // By the sizes alone: a format or dtype that is refused is still a chunk, and so is one that
    // was cut short.
    if (bytes.size() < kHeaderBytes) return false;
    Header header;
    std::memcpy(&header, bytes.data(), kHeaderBytes);
    if (header.format < 0 || header.format >= 32 || header.dtype < 0 || header.dtype >= 32 ||
        header.bytes <= 0)
        return false;
    std::uint64_t elements = 1;
    bool overflow = false;
    for (std::int32_t const extent : header.shape)
        overflow =
            extent <= 0 ||
            __builtin_mul_overflow(elements, static_cast<std::uint64_t>(extent), &elements) ||
            overflow;
    auto const dtype = dtype_of(header.dtype);
    auto const said = static_cast<std::uint64_t>(header.bytes);
    return said == bytes.size() - kHeaderBytes ||
           (!overflow && dtype && elements <= said && elements * bytes_of(*dtype) == said);
}

bool is_lmcache_folder(std::filesystem::path const& folder) {
    auto const found = files_of(folder, kChunkExtension);
    return found && std::ranges::any_of(found.value().files, [](auto const& path) {
               auto const chunk = MappedFile::open(path);
               return chunk && is_lmcache_chunk(chunk.value().bytes());
           });
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
