// Files and folders that are no saved cache: what they seem to be is said.
#include <filesystem>

#include <doctest/doctest.h>

#include "tests/cli/saved/formats/foreign.h"

using namespace dkv;
using namespace dkv::test;

namespace {

constexpr char const* kNone =
    "none of the formats I know (dkv, hf, mlx-lm, llama-state, llama-slot; folders of vllm and "
    "lmcache): ";
constexpr char const* kTorch =
    "; torch.save's files are read by the Python package alone: python -m dkv convert, or "
    "dkv.hf.convert()";

std::string zip_of(std::string const& name) {
    std::string text = "PK\x03\x04" + std::string(22, '\0');
    text += static_cast<char>(name.size());
    return text + std::string(3, '\0') + name + " and so on";
}

}  // namespace

TEST_CASE_FIXTURE(ForeignFilesFixture,
                  "a file of no known format is refused with what its first bytes tell") {
    auto const none = [&](std::string const& text, std::string const& words,
                          ErrorCode code = ErrorCode::CorruptData) {
        check_refused(text, kNone + words, code);
    };
    auto const unsupported = ErrorCode::Unsupported;
    none("%PDF-1.7\n%âãÏÓ", "a PDF, it begins with 25 50 44 46 2d 31 2e 37 \"%PDF-1.7\"");
    none("GGUF\x03" + std::string(30, '\0'),
         "a GGUF file, it begins with 47 47 55 46 03 00 00 00; a model's weights, where a cache is "
         "wanted",
         unsupported);
    none(zip_of("archive/data.pkl"),
         std::string("a zip archive, as torch.save writes it, it begins with 50 4b 03 04 00 00 00 "
                     "00") +
             kTorch,
         unsupported);
    none(zip_of("k_0.npy"),
         "NumPy arrays in a zip archive, it begins with 50 4b 03 04 00 00 00 00; put K and V of "
         "each layer into safetensors as k_0, v_0, k_1, v_1 …",
         unsupported);
    none("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 …",
         std::string("a pickle, it begins with 80 02 8a 0a 6c fc 9c 46") + kTorch, unsupported);
    none("\x93NUMPY\x01",
         "a NumPy array, it begins with 93 4e 55 4d 50 59 01; put K and V of each layer into "
         "safetensors as k_0, v_0, k_1, v_1 …",
         unsupported);
    none("\x1f\x8b\x08 and so on",
         "packed by gzip, it begins with 1f 8b 08 20 61 6e 64 20; unpack it first", unsupported);
    none("<!DOCTYPE html>",
         "an HTML page, it begins with 3c 21 44 4f 43 54 59 50 \"<!DOCTYP\"; it may be a download "
         "that failed",
         unsupported);
    none("\n <html>",
         "an HTML page, it begins with 0a 20 3c 68 74 6d 6c 3e; it may be a download that failed",
         unsupported);
    none("version https://git-lfs.github.com/spec/v1\n",
         "a pointer of Git LFS, it begins with 76 65 72 73 69 6f 6e 20 \"version \"; git lfs pull "
         "brings the file",
         unsupported);
    none("Dear all,\n", "a text, it begins with 44 65 61 72 20 61 6c 6c \"Dear all\"");
    none("{\"format\": 1}",
         "JSON, or another text, it begins with 7b 22 66 6f 72 6d 61 74 "
         "\"{\"format\"");
    none(std::string(64, '\0'),
         "zeros alone, it begins with 00 00 00 00 00 00 00 00; it may be a copy that was not "
         "finished",
         unsupported);
    none(std::string("ggsq\0\0\0\3", 8),
         "a llama.cpp slot of a big-endian machine, it begins with 67 67 73 71 00 00 00 03");
    none(std::string("\0\0\0\0\0\0\0\x02{}", 10),
         "safetensors with a big-endian length, which is against the format, it begins with 00 00 "
         "00 00 00 00 00 02");
    // A terminal is painted by none of it.
    none("\x1b[31m\xff\xfe", "it begins with 1b 5b 33 31 6d ff fe");
    check_refused("", "the file is empty: it may be one that was not written to its end");
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "safetensors of something else are said to be that") {
    auto const none = std::string(kNone) + "safetensors";
    SavedFile other;
    other.add("model.layers.0.self_attn.q_proj.weight", "F32", {1}, "abcd");
    check_refused(other.text(), none +
                                    " of a model's weights, with "
                                    "\"model.layers.0.self_attn.q_proj.weight\" and not "
                                    "layers.0.keys of dkv, k_0 of hf, 0.0 of mlx-lm");
    SavedFile mine;
    mine.add("my_keys", "F32", {1}, "abcd");
    check_refused(
        mine.text(),
        none + ", with \"my_keys\" and not layers.0.keys of dkv, k_0 of hf, 0.0 of mlx-lm");
    check_refused(SavedFile().text(), none + " without tensors");
    auto cut = hf_file().text();
    cut.resize(40);
    check_refused(cut,
                  "not safetensors, or cut short: its header would have 257 bytes, and the "
                  "file has 40");
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "what --input-format names and the file is not is refused") {
    check_refused(hf_file().text(), "the metadata has no \"format\"", ErrorCode::CorruptData,
                  {.format = FileFormat::Dkv});
    check_refused("%PDF-1.7",
                  std::string(kNone) + "a PDF, it begins with 25 50 44 46 2d 31 2e 37 \"%PDF-1.7\"",
                  ErrorCode::CorruptData, {.format = FileFormat::Hf});
    CHECK(folder_refused(ErrorCode::Io, {.format = FileFormat::Hf}) ==
          ": a folder, where hf is a file");
    CHECK(folder_refused(ErrorCode::Io, {.format = FileFormat::Lmcache}) ==
          ": no chunks (*.data) in it");
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "a folder of nothing that is known says what is in it") {
    std::string const none =
        ": a folder of none of the formats I know (vllm: one .safetensors per layer; lmcache: "
        ".data): ";
    CHECK(folder_refused(ErrorCode::Io) == none + "it is empty");
    CHECK_FALSE(is_cache_folder(folder.path()));
    write_file(folder / "notes.txt", "x");
    CHECK(folder_refused(ErrorCode::Io) == none + "it has \"notes.txt\"");
    std::filesystem::create_directory(folder / "one");
    std::filesystem::create_directory(folder / "two");
    CHECK(folder_refused(ErrorCode::Unsupported) == ": 2 folders: give one of them, such as one");
    CHECK_FALSE(is_cache_folder(folder.path()));
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "MLA's rows are named as such, whichever folder is given") {
    std::string const hash = folder / "0abc";
    std::filesystem::create_directory(hash);
    std::string const name = "/model.layers.0.self_attn.attn.safetensors";
    for (std::vector<std::uint64_t> const& shape :
         {std::vector<std::uint64_t>{2, 576}, std::vector<std::uint64_t>{2, 1, 576}}) {
        write_file(hash + name, vllm_layer(shape, 0).text());
        std::string const words = shape.size() == 2 ? "[2, 576]" : "[2, 1, 576]";
        for (std::string const& where : {hash, folder.path()}) {
            CHECK(is_cache_folder(where));
            auto const cache = open_cache(where);
            REQUIRE_FALSE(cache);
            CHECK(cache.error().message ==
                  hash + name + ": kv_cache is " + words +
                      ": one row per token and neither keys nor values, as MLA (DeepSeek) has it, "
                      "which is not read");
        }
    }
    // The user may know better.
    CHECK(open_cache(hash, {.layout = "TH2D"}));
    auto latent = chunk(1, 4, 0);
    latent[3 * 4] = 1;
    latent[4 * 4] = 2;
    check_refused(latent,
                  "format 1, [1, 2, 4, 8]: one row per token and neither keys nor values, as MLA "
                  "(DeepSeek) has it, which is not read",
                  ErrorCode::Unsupported, {.kv_heads = 2});
}
