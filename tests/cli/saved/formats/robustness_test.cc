// Every format, spoiled: nothing but a refusal in one line, or another number, comes of it.
#include <array>
#include <cstring>
#include <functional>
#include <limits>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/cli/saved/formats/written.h"
#include "tests/support/every_bit.h"
#include "tests/support/llama_sample.h"

using namespace dkv;
using test::SavedFile;

namespace {

struct Sample {
    std::string name;
    std::string text;
    OpenOptions options;
    bool checksums = false;
};

std::string written(FileFormat format,
                    std::vector<std::vector<std::vector<std::int32_t>>> const& kept,
                    RowBits bits = RowBits::Own) {
    test::TempDir folder;
    test::Numbered numbers(6, bits == RowBits::Own ? 4 : 32);
    auto request = numbers.request(folder / "x", format, kept);
    if (bits == RowBits::Mixed) request = test::with_refined(request, {{1, 3}, {0}});
    request.bits = bits;
    if (format == FileFormat::Dkv) request.facts.tokens = {1, 2, 3, 4, 5, 6};
    auto const backend = make_cpu_backend(1);
    REQUIRE(write_cache(*backend, request));
    return test::read_text(folder / "x");
}

std::vector<Sample> samples() {
    std::array<std::int32_t, 7> const header{4 * 2 * 2 * 3 * 8, 1, 4, 2, 2, 3, 8};
    std::string const chunk = std::string(reinterpret_cast<char const*>(header.data()), 28) +
                              std::string(4 * 2 * 2 * 3 * 8, '\0');
    return {
        {"dkv whole", written(FileFormat::Dkv, {}), {}, true},
        {"dkv uniform",
         written(FileFormat::Dkv, {{{0, 2, 5}, {1, 4, 5}}, {{3, 5}, {0, 5}}}),
         {},
         true},
        {"dkv ragged", written(FileFormat::Dkv, {{{0, 2, 5}, {5}}, {{}, {0, 5}}}), {}, true},
        {"dkv q4_0",
         written(FileFormat::Dkv, {{{0, 2, 5}, {5}}, {{}, {0, 5}}}, RowBits::Four),
         {},
         true},
        {"dkv q4_0+q4_0",
         written(FileFormat::Dkv, {{{0, 2, 5}, {5}}, {{}, {0, 5}}}, RowBits::Mixed),
         {},
         true},
        {"hf", written(FileFormat::Hf, {{{0, 2, 5}, {1, 4, 5}}, {{3, 5}, {0, 5}}}), {}},
        {"mlx-lm", written(FileFormat::MlxLm, {}), {}},
        {"mlx-lm@0.31", written(FileFormat::MlxLm031, {}), {}},
        {"llama-slot", test::LlamaSample{.version = 4}.text(), {.kv_heads = 2}},
        {"llama-slot q8_0",
         test::LlamaSample{
             .version = 4, .positions = {0, 1}, .row_elements = 64, .type = 8, .key_rotation = 32}
             .text(),
         {.kv_heads = 2}},
        {"lmcache", chunk, {.format = FileFormat::Lmcache, .kv_heads = 2}}};
}

/// Opens, reads and checks everything that there is.
Result<void> read_all(std::string const& path, OpenOptions const& options) {
    auto const cache = DKV_TRY(open_cache(path, options));
    for (std::uint32_t layer = 0; layer < cache->geometry().layers; ++layer) {
        auto const saved = DKV_TRY(cache->layer(layer));
        for (std::uint32_t head = 0; head < cache->geometry().kv_heads; ++head) {
            auto const keys = saved.keys_of(head);
            if (keys.tokens > 0) CHECK(keys.row(0, keys.tokens - 1) != nullptr);
        }
        DKV_TRY(cache->verify(layer));
    }
    return {};
}

/// One line that begins with the path.
void check_line(Error const& error, std::string const& path) {
    CHECK(error.message.starts_with(path + ": "));
    CHECK(error.message.find('\n') == std::string::npos);
    CHECK(error.message.size() < path.size() + 400);
}

struct RobustnessFixture {
    test::TempDir folder;
    std::string path = folder / "cache";

    Result<void> read(std::string const& text, OpenOptions const& options) {
        test::write_file(path, text);
        return read_all(path, options);
    }
};

}  // namespace

TEST_CASE_FIXTURE(RobustnessFixture, "a file of any format that is cut at any 64th is refused") {
    for (Sample const& sample : samples()) {
        CAPTURE(sample.name);
        REQUIRE(read(sample.text, sample.options));
        for (std::size_t part = 0; part < 64; ++part) {
            CAPTURE(part);
            auto const result =
                read(sample.text.substr(0, sample.text.size() * part / 64), sample.options);
            REQUIRE_FALSE(result);
            check_line(result.error(), path);
            CHECK(result.error().code == ErrorCode::CorruptData);
        }
        CHECK_FALSE(read(sample.text + "x", sample.options));
    }
}

TEST_CASE_FIXTURE(RobustnessFixture, "every flipped bit of a file with checksums is found") {
    for (Sample const& sample : samples()) {
        CAPTURE(sample.name);
        for (std::size_t byte = 0; byte < sample.text.size(); byte += test::bit_step()) {
            std::string spoiled = sample.text;
            spoiled[byte] = static_cast<char>(spoiled[byte] ^ (1 << byte % 8));
            auto const result = read(spoiled, sample.options);
            if (!result) check_line(result.error(), path);
            CAPTURE(byte);
            if (sample.checksums) CHECK_FALSE(result);
        }
    }
}

TEST_CASE_FIXTURE(RobustnessFixture, "a number that is none is found, and where it stands") {
    auto const spoiled = [&](SavedFile file, std::string const& tensor, std::size_t element,
                             float value) {
        std::size_t const begin = file.header[tensor]["data_offsets"][0];
        std::memcpy(file.data.data() + begin + element * sizeof value, &value, sizeof value);
        auto const result = read(file.text(), {});
        REQUIRE_FALSE(result);
        CHECK(result.error().code == ErrorCode::CorruptData);
        return result.error().message.substr(path.size());
    };
    Geometry const geometry{.layers = 2, .q_heads = 2, .kv_heads = 1, .head_dim = 8};
    auto const file = test::saved_cache(geometry, 5000, 3, [](std::uint32_t, std::string part) {
        return std::string(part == "q_window" ? 2 * 3 * 8 * 4 : 5000 * 8 * 4, '\1');
    });
    REQUIRE(read(file.text(), {}));
    float const nan = std::numeric_limits<float>::quiet_NaN();
    float const infinity = std::numeric_limits<float>::infinity();
    CHECK(spoiled(file, "layers.0.keys", 0, nan) ==
          ": layers.0.keys: element 0 is a NaN or an infinity");
    CHECK(spoiled(file, "layers.1.values", 39'999, -infinity) ==
          ": layers.1.values: element 39999 is a NaN or an infinity");
    CHECK(spoiled(file, "layers.1.q_window", 47, infinity) ==
          ": layers.1.q_window: element 47 is a NaN or an infinity");
    for (std::string const dtype : {"F16", "BF16"}) {
        SavedFile half;
        half.header["__metadata__"] = file.header["__metadata__"];
        half.header["__metadata__"]["n_prompt"] = "4";
        for (char const* part : {"keys", "values"})
            half.add("layers.0." + std::string(part), dtype, {1, 4, 1},
                     // The largest number of each, then an infinity.
                     dtype == "F16" ? std::string("\xff\x7b\xff\xfb\x00\x00\x00\x7c", 8)
                                    : std::string("\x7f\x7f\x7f\xff\x00\x00\x80\x7f", 8));
        auto const result = read(half.text(), {});
        REQUIRE_FALSE(result);
        CHECK(result.error().message ==
              path + ": layers.0.keys: element 3 is a NaN or an infinity");
    }
}

TEST_CASE_FIXTURE(RobustnessFixture, "positions and offsets that cannot be are refused by name") {
    auto const part = [](std::vector<std::int32_t> const& values) {
        return std::string(reinterpret_cast<char const*>(values.data()), 4 * values.size());
    };
    auto const ragged = [&](std::vector<std::int32_t> const& offsets,
                            std::vector<std::int32_t> const& positions) {
        SavedFile file;
        file.header["__metadata__"] = {
            {"format", "dkv"}, {"version", "1"}, {"model", "m"}, {"n_prompt", "9"}};
        file.add("layers.0.head_offsets", "I32", {offsets.size()}, part(offsets));
        file.add("layers.0.positions", "I32", {positions.size()}, part(positions));
        for (char const* name : {"layers.0.keys", "layers.0.values"})
            file.add(name, "F32", {positions.size(), 2}, std::string(8 * positions.size(), '\0'));
        auto const result = read(file.text(), {});
        return result ? "" : result.error().message.substr(path.size() + 2);
    };
    CHECK(ragged({0, 1, 3}, {5, 0, 8}) == "");
    CHECK(ragged({1, 1, 3}, {5, 0, 8}) == "layers.0.head_offsets has 1 after 0, of 9 tokens");
    CHECK(ragged({0, 2, 1}, {5}) == "layers.0.head_offsets has 1 after 2, of 9 tokens");
    CHECK(ragged({0, -1, 3}, {5, 0, 8}) == "layers.0.head_offsets has -1 after 0, of 9 tokens");
    CHECK(ragged({0, 10}, std::vector<std::int32_t>(10)) ==
          "layers.0.head_offsets has 10 after 0, of 9 tokens");
    CHECK(ragged({0, 1, 2}, {5, 0, 8}) == "layers.0.keys is F32 [3, 2], not F32 [2, 2]");
    CHECK(ragged({0, 1, 3}, {5, 8, 8}) ==
          "layers.0.positions: head 1 has position 8 after 8, of 9 tokens");
    CHECK(ragged({0, 1, 3}, {5, 0, 9}) ==
          "layers.0.positions: head 1 has position 9 after 0, of 9 tokens");
    CHECK(ragged({0, 1, 3}, {-1, 0, 8}) ==
          "layers.0.positions: head 0 has position -1 after -1, of 9 tokens");
}

TEST_CASE_FIXTURE(RobustnessFixture,
                  "checksums that are half there, and layers behind a gap, are refused") {
    auto const good = [] {
        return test::saved_cache({.layers = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 1}, 1, 0,
                                 [](std::uint32_t, std::string) { return std::string(4, '\0'); });
    };
    auto const message = [&](SavedFile const& file) {
        auto const result = read(file.text(), {});
        return result ? "" : result.error().message.substr(path.size() + 2);
    };
    CHECK(message(good()) == "");
    auto file = good();
    file.header["__metadata__"]["crc32.layers.0.keys"] = "2144df1c";
    CHECK(message(file) == "the metadata has checksums, but none of layers.0.values");
    file.header["__metadata__"]["crc32.layers.9.keys"] = "2144df1c";
    CHECK(message(file) == "the metadata's \"crc32.layers.9.keys\" is of no tensor");
    file = good();
    file.header["__metadata__"]["crc32.layers.0.keys"] = "2144df1";
    CHECK(message(file) == "the metadata's \"crc32.layers.0.keys\" is no checksum");
    for (char const* name :
         {"layers.0.keys", "layers.0.values", "layers.1.keys", "layers.1.values"})
        file.header["__metadata__"]["crc32." + std::string(name)] = "2144df1c";
    CHECK(message(file) == "the metadata has checksums, but none of the header");
    file = good();
    for (std::string const name : {"keys", "values"}) {
        file.header["layers.3." + name] = file.header["layers.1." + name];
        file.header.erase("layers.1." + name);
    }
    CHECK(message(file) == "layers 1, 2 are missing: the last one is 3");
}

TEST_CASE_FIXTURE(RobustnessFixture, "a header that claims 2^60 elements costs no memory") {
    SavedFile file;
    file.add("k_0", "F32", {1, std::uint64_t{1} << 20U, std::uint64_t{1} << 20U, 1U << 20U},
             "abcd");
    test::write_file(path, file.text());
    std::array<std::int32_t, 7> const lie{2147483647, 1, 4, 2, 32767, 32767, 32767};
    test::write_file(folder / "lie",
                     std::string(reinterpret_cast<char const*>(lie.data()), sizeof lie) + "abcd");
    auto const peak = [] {
        rusage usage{};
        ::getrusage(RUSAGE_SELF, &usage);
        return usage.ru_maxrss;
    };
    long const before = peak();
    auto const container = open_cache(path);
    auto const chunk = open_cache(folder / "lie", {.format = FileFormat::Lmcache, .kv_heads = 1});
    REQUIRE_FALSE(container);
    REQUIRE_FALSE(chunk);
    CHECK(container.error().message ==
          path + ": tensor \"k_0\": F32 [1, 1048576, 1048576, 1048576] does not take 4 bytes");
    CHECK(peak() - before < 16384);  // KiB
}

TEST_CASE_FIXTURE(RobustnessFixture,
                  "what may not be read is refused with the system's word for it") {
    test::write_file(path, "secret");
    REQUIRE(::chmod(path.c_str(), 0) == 0);
    REQUIRE(::chmod(folder.path().c_str(), 0755) == 0);
    pid_t const pid = ::fork();
    if (pid == 0) {
        if (::geteuid() == 0 && ::seteuid(65534) != 0) ::_exit(0);  // Root cannot be dropped here.
        auto const file = open_cache(path);
        bool const right = !file && file.error().code == ErrorCode::Io &&
                           file.error().message == path + ": Permission denied";
        ::_exit(right ? 0 : 1);
    }
    int status = 0;
    ::waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE_FIXTURE(RobustnessFixture, "a header that is not padded is read all the same") {
    Geometry const geometry{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 2};
    auto file = test::saved_cache(geometry, 2, 1, [](std::uint32_t, std::string part) {
        std::string bytes;
        for (int i = 0; i < (part == "q_window" ? 2 : 4); ++i) {
            float const value = static_cast<float>(i) + 0.5f;
            bytes.append(reinterpret_cast<char const*>(&value), sizeof value);
        }
        return bytes;
    });
    for (std::string const blanks : {"", " ", "  ", "   "}) {
        test::write_file(path, file.framed(file.header.dump() + blanks));
        auto const cache = open_cache(path);
        REQUIRE(cache);
        auto const layer = cache.value()->layer(0).value();
        CHECK(reinterpret_cast<std::uintptr_t>(layer.keys.data) % 4 == 0);
        CHECK(test::element_of(layer.values, 0, 1, 1) == 3.5f);
        CHECK(test::element_of(layer.queries, 0, 0, 1) == 1.5f);
        CHECK(cache.value()->verify(0));
    }
}
