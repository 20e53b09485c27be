#include "cli/saved/formats/unknown_file.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include <fmt/format.h>

#include "protocol/container/safetensors.h"

namespace dkv {
namespace {

using namespace std::string_view_literals;

constexpr std::uint64_t kHeaderMax = 100'000'000;  // Of safetensors.
constexpr std::size_t kShown = 8;

constexpr auto kTorch =
    "torch.save's files are read by the Python package alone: python -m dkv convert, or "
    "dkv.hf.convert()"sv;
constexpr auto kUnpack = "unpack it first"sv;
constexpr auto kWeights = "a model's weights, where a cache is wanted"sv;

struct Magic {
    std::string_view bytes;
    std::string_view what;
    std::string_view advice;
};
constexpr Magic kMagics[] = {
    {"GGUF"sv, "a GGUF file", kWeights},
    {"tjgg"sv, "a GGML file", kWeights},
    {"lmgg"sv, "a GGML file", kWeights},
    {"fmgg"sv, "a GGML file", kWeights},
    {"gsgg"sv, "llama.cpp's session of a former version", "save it again"sv},
    {"ggsq"sv, "a llama.cpp slot of a big-endian machine", ""sv},
    {"ggsn"sv, "a llama.cpp session of a big-endian machine", ""sv},
    {"\x80\x02"sv, "a pickle", kTorch},
    {"\x80\x03"sv, "a pickle", kTorch},
    {"\x80\x04"sv, "a pickle", kTorch},
    {"\x80\x05"sv, "a pickle", kTorch},
    {"\x93NUMPY"sv, "a NumPy array",
     "put K and V of each layer into safetensors as k_0, v_0, k_1, v_1 …"sv},
    {"\x1f\x8b"sv, "packed by gzip", kUnpack},
    {"\xfd\x37zXZ"sv, "packed by xz", kUnpack},
    {"\x28\xb5\x2f\xfd"sv, "packed by zstd", kUnpack},
    {"BZh"sv, "packed by bzip2", kUnpack},
    {"\x04\x22\x4d\x18"sv, "packed by lz4", kUnpack},
    {"7z\xbc\xaf"sv, "packed by 7-Zip", kUnpack},
    {"%PDF"sv, "a PDF", ""sv},
    {"\x89HDF"sv, "an HDF5 file", ""sv},
    {"\x89PNG"sv, "a PNG image", ""sv},
    {"\xff\xd8\xff"sv, "a JPEG image", ""sv},
    {"\x7f\x45LF"sv, "a program", ""sv},
    {"PAR1"sv, "a Parquet file", ""sv},
    {"SQLite"sv, "an SQLite file", ""sv},
    {"version https://git-lfs"sv, "a pointer of Git LFS", "git lfs pull brings the file"sv},
    {"<!DOCTYPE"sv, "an HTML page", "it may be a download that failed"sv},
    {"<!doctype"sv, "an HTML page", "it may be a download that failed"sv},
    {"<html"sv, "an HTML page", "it may be a download that failed"sv},
};

std::string_view text_of(std::span<std::byte const> bytes) {
    return {reinterpret_cast<char const*>(bytes.data()), bytes.size()};
}

std::uint64_t header_length(std::string_view text) {
    std::uint64_t length = 0;
    std::memcpy(&length, text.data(), sizeof length);
    return length;
}

/// A zip archive, by the name of the first file in it.
Magic zip(std::string_view text) {
    constexpr std::size_t kLengthAt = 26, kNameAt = 30;
    std::string_view name;
    if (text.size() > kNameAt) {
        std::uint16_t length = 0;
        std::memcpy(&length, text.data() + kLengthAt, sizeof length);
        name = text.substr(kNameAt, length);
    }
    if (name.ends_with(".npy"))
        return {"", "NumPy arrays in a zip archive",
                "put K and V of each layer into safetensors as k_0, v_0, k_1, v_1 …"};
    return {"", "a zip archive, as torch.save writes it", kTorch};
}

bool is_text(std::string_view text) {
    return std::ranges::all_of(text.substr(0, 256), [](char c) {
        return static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\r' || c == '\t';
    });
}

Magic magic_of(std::string_view text) {
    if (text.starts_with("PK\x03\x04")) return zip(text);
    auto const begin = std::min(text.find_first_not_of(" \t\r\n"), text.size());
    for (Magic const& magic : kMagics)
        if (text.starts_with(magic.bytes) ||
            (magic.bytes.starts_with('<') && text.substr(begin).starts_with(magic.bytes)))
            return magic;
    if (text.substr(0, 262).ends_with("ustar")) return {"", "a tar archive", kUnpack};
    bool const swapped = text.size() > kLengthBytes && text[kLengthBytes] == '{' &&
                         __builtin_bswap64(header_length(text)) <= kHeaderMax;
    if (swapped)
        return {"", "safetensors with a big-endian length, which is against the format", ""};
    if (std::ranges::all_of(text, [](char c) { return c == '\0'; }))
        return {"", "zeros alone", "it may be a copy that was not finished"};
    if (text.starts_with('{') || text.starts_with('[')) return {"", "JSON, or another text", ""};
    return is_text(text) ? Magic{"", "a text", ""} : Magic{};
}

/// "25 50 44 46 2d 31 2e 37 "%PDF-1.7""
std::string first_bytes(std::string_view text) {
    std::string hex;
    for (char const c : text.substr(0, kShown))
        hex += fmt::format("{}{:02x}", hex.empty() ? "" : " ", static_cast<unsigned char>(c));
    std::string printed(text.substr(0, kShown));
    bool const words = std::ranges::all_of(
        printed, [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c > 0 && c < 0x7f; });
    return words ? hex + " " + shown(printed) : hex;
}

}  // namespace

std::string known_formats() {
    return "dkv, hf, mlx-lm, llama-state, llama-slot; folders of vllm and lmcache";
}

bool looks_like_safetensors(std::span<std::byte const> bytes) noexcept {
    auto const text = text_of(bytes);
    return text.size() > kLengthBytes && text[kLengthBytes] == '{' &&
           header_length(text) <= kHeaderMax;
}

Error unknown_file(std::span<std::byte const> bytes) {
    auto const text = text_of(bytes);
    if (text.empty())
        return corrupt("the file is empty: it may be one that was not written to its end");
    auto const magic = magic_of(text);
    std::string message = fmt::format("none of the formats I know ({}): ", known_formats());
    if (!magic.what.empty()) message += fmt::format("{}, ", magic.what);
    message += fmt::format("it begins with {}", first_bytes(text));
    if (!magic.advice.empty()) message += fmt::format("; {}", magic.advice);
    return magic.advice.empty() ? corrupt(message) : unsupported(message);
}

}  // namespace dkv
