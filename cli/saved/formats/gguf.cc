#include "cli/saved/formats/gguf.h"

#include <algorithm>
#include <limits>
#include <map>
#include <string_view>
#include <variant>
#include <vector>

#include <fmt/format.h>

#include "protocol/container/byte_cursor.h"
#include "protocol/container/mapped_file.h"

namespace dkv {
namespace {

constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"

enum Type : std::uint32_t {
    kU8,
    kI8,
    kU16,
    kI16,
    kU32,
    kI32,
    kF32,
    kBool,
    kString,
    kArray,
    kU64,
    kI64,
    kF64
};

/// A number, a text, or an array's numbers. Arrays of anything else are passed over.
using Value = std::variant<std::monostate, double, std::string, std::vector<double>>;
using Metadata = std::map<std::string, Value, std::less<>>;

std::uint64_t bytes_of_type(std::uint32_t type) {
    switch (type) {
        case kU8:
        case kI8:
        case kBool: return 1;
        case kU16:
        case kI16: return 2;
        case kU32:
        case kI32:
        case kF32: return 4;
        case kU64:
        case kI64:
        case kF64: return 8;
        default: return 0;
    }
}

Error corrupt_gguf(std::string message) {
    return {ErrorCode::CorruptData, std::move(message)};
}

Result<std::string> take_text(ByteCursor& at, char const* field) {
    auto const size = DKV_TRY(at.take<std::uint64_t>(field));
    auto const bytes = DKV_TRY(at.take_bytes(field, size));
    return std::string(reinterpret_cast<char const*>(bytes.data()), bytes.size());
}

template <class T>
Result<double> take_as(ByteCursor& at) {
    return static_cast<double>(DKV_TRY(at.take<T>("a number")));
}

Result<double> take_number(ByteCursor& at, std::uint32_t type) {
    switch (type) {
        case kU8:
        case kBool: return take_as<std::uint8_t>(at);
        case kI8: return take_as<std::int8_t>(at);
        case kU16: return take_as<std::uint16_t>(at);
        case kI16: return take_as<std::int16_t>(at);
        case kU32: return take_as<std::uint32_t>(at);
        case kI32: return take_as<std::int32_t>(at);
        case kF32: return take_as<float>(at);
        case kU64: return take_as<std::uint64_t>(at);
        case kI64: return take_as<std::int64_t>(at);
        case kF64: return take_as<double>(at);
        default: return corrupt_gguf(fmt::format("there is no type {} of a value", type));
    }
}

Result<Value> take_array(ByteCursor& at) {
    auto const type = DKV_TRY(at.take<std::uint32_t>("an array's type"));
    auto const count = DKV_TRY(at.take<std::uint64_t>("an array's length"));
    if (type == kString) {
        for (std::uint64_t i = 0; i < count; ++i)
            DKV_TRY(take_text(at, "an array's text"));
        return Value();
    }
    auto const size = bytes_of_type(type);
    if (size == 0) return corrupt_gguf(fmt::format("there are no arrays of type {}", type));
    if (count > at.left() / size)
        return corrupt_gguf(fmt::format("an array of {} numbers goes beyond the file", count));
    std::vector<double> numbers;
    for (std::uint64_t i = 0; i < count; ++i)
        numbers.push_back(DKV_TRY(take_number(at, type)));
    return Value(std::move(numbers));
}

Result<Value> take_value(ByteCursor& at) {
    auto const type = DKV_TRY(at.take<std::uint32_t>("a value's type"));
    if (type == kString) return Value(DKV_TRY(take_text(at, "a text")));
    if (type == kArray) return take_array(at);
    return Value(DKV_TRY(take_number(at, type)));
}

/// Whether a tensor of that name is there: llama.cpp keeps Llama 3's scaled frequencies in one.
Result<bool> has_tensor(ByteCursor& at, std::uint64_t tensors, std::string_view wanted) {
    bool found = false;
    for (std::uint64_t i = 0; i < tensors; ++i) {
        found = DKV_TRY(take_text(at, "a tensor's name")) == wanted || found;
        auto const dims = DKV_TRY(at.take<std::uint32_t>("a tensor's dimensions"));
        DKV_TRY(at.take_bytes("a tensor's shape", std::uint64_t{dims} * 8));
        DKV_TRY(at.take_bytes("a tensor's place", 12));
    }
    return found;
}

/// Which dims of a key turn together in llama.cpp's rows: adjacent pairs (its NORM) or halves (its
/// NEOX). Only architectures whose Hugging Face form turns halves are here.
std::optional<bool> turns_pairs(std::string_view architecture) {
    constexpr std::string_view pairs[] = {"llama",   "mistral3", "deci",    "internlm2", "minicpm",
                                          "smollm3", "arcee",    "granite", "granitemoe"};
    constexpr std::string_view halves[] = {"qwen2", "qwen2moe", "qwen3",   "qwen3moe",  "phi3",
                                           "gemma", "stablelm", "gptneox", "starcoder2"};
    if (std::ranges::find(pairs, architecture) != std::end(pairs)) return true;
    if (std::ranges::find(halves, architecture) != std::end(halves)) return false;
    return std::nullopt;
}

class Model {
public:
    Model(Metadata const& metadata, bool scaled_by_tensor)
        : metadata_(metadata), scaled_by_tensor_(scaled_by_tensor) {}

    Result<GgufModel> read() {
        GgufModel model;
        model.architecture = text("general.architecture");
        if (model.architecture.empty())
            return corrupt_gguf("it does not say which architecture the model has");
        prefix_ = model.architecture + ".";
        model.name = text("general.name");
        model.kv_heads = DKV_TRY(kv_heads());
        model.sliding_window = count("attention.sliding_window");
        if (auto const pairs = turns_pairs(model.architecture)) model.rope = rope(*pairs);
        return model;
    }

private:
    template <class T>
    T const* find(std::string const& key) const {
        auto const found = metadata_.find(key);
        return found == metadata_.end() ? nullptr : std::get_if<T>(&found->second);
    }
    std::string text(std::string const& key) const {
        auto const* const found = find<std::string>(key);
        return found == nullptr ? "" : *found;
    }
    std::uint32_t count(std::string const& key) const {
        auto const* const found = find<double>(prefix_ + key);
        return found == nullptr ? 0 : as_count(*found);
    }
    static std::uint32_t as_count(double number) {
        bool const fits = number >= 0 && number <= std::numeric_limits<std::uint32_t>::max();
        return fits ? static_cast<std::uint32_t>(number) : 0;
    }

    /// Layers without attention have 0.
    Result<std::uint32_t> kv_heads() const {
        auto const* list = find<std::vector<double>>(prefix_ + "attention.head_count_kv");
        std::uint32_t heads = list == nullptr ? count("attention.head_count_kv") : 0;
        if (list != nullptr)
            for (double const one : *list) {
                auto const here = as_count(one);
                if (here == 0) continue;
                if (heads != 0 && here != heads)
                    return Error{ErrorCode::Unsupported,
                                 fmt::format("its layers have {} and {} KV heads, and rows of "
                                             "unlike layers are not supported",
                                             heads, here)};
                heads = here;
            }
        if (heads == 0) heads = count("attention.head_count");
        if (heads == 0) return corrupt_gguf("it does not say how many heads the model has");
        return heads;
    }

    RopeFacts rope(bool pairs) const {
        auto const* const base = find<double>(prefix_ + "rope.freq_base");
        RopeFacts facts{.theta = base == nullptr ? 10'000 : *base, .interleaved = pairs};
        auto const heads = count("attention.head_count");
        auto const head_dim = count("attention.key_length") > 0 ? count("attention.key_length")
                              : heads > 0                       ? count("embedding_length") / heads
                                                                : 0;
        auto const dims = count("rope.dimension_count");
        if (dims != head_dim) facts.dims = dims;
        auto const type = text(prefix_ + "rope.scaling.type");
        if (scaled_by_tensor_ || (!type.empty() && type != "none"))
            facts.scaling = fmt::format(R"({{"rope_type":"llama.cpp {}"}})",
                                        scaled_by_tensor_ ? "rope_freqs" : type);
        return facts;
    }

    Metadata const& metadata_;
    bool const scaled_by_tensor_;
    std::string prefix_;
};

Result<GgufModel> parse(std::span<std::byte const> bytes) {
    ByteCursor at(bytes);
    if (DKV_TRY(at.take<std::uint32_t>("the magic")) != kMagic)
        return corrupt_gguf("this is not a GGUF file");
    auto const version = DKV_TRY(at.take<std::uint32_t>("the version"));
    if (version != 2 && version != 3)
        return Error{ErrorCode::Unsupported,
                     fmt::format("GGUF version {} is not supported: 2 and 3 are", version)};
    auto const tensors = DKV_TRY(at.take<std::uint64_t>("the number of tensors"));
    auto const pairs = DKV_TRY(at.take<std::uint64_t>("the number of values"));
    Metadata metadata;
    for (std::uint64_t i = 0; i < pairs; ++i) {
        auto key = DKV_TRY(take_text(at, "a key"));
        auto value = DKV_TRY(take_value(at));
        metadata.insert_or_assign(std::move(key), std::move(value));
    }
    return Model(metadata, DKV_TRY(has_tensor(at, tensors, "rope_freqs.weight"))).read();
}

}  // namespace

Result<GgufModel> read_gguf(std::filesystem::path const& path) {
    auto const file = DKV_TRY(MappedFile::open(path));
    auto model = parse(file.bytes());
    if (!model) return naming(path, model.error());
    return model;
}

void complete(OpenOptions& options, GgufModel const& model) {
    if (options.kv_heads == 0) options.kv_heads = model.kv_heads;
    if (options.model.empty()) options.model = model.name;
    if (options.rope.theta == 0 && model.rope.theta != 0) options.rope = model.rope;
}

}  // namespace dkv
