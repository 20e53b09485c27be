// What a model's GGUF file says of its attention.
#include "cli/saved/formats/gguf.h"

#include <cstring>
#include <fstream>

#include <doctest/doctest.h>

#include "tests/support/temp_dir.h"

using namespace dkv;
using dkv::test::TempDir;

namespace {

/// A file made by hand: values, then tensors without data.
class Gguf {
public:
    template <class T>
    void put(T value) {
        body_.append(reinterpret_cast<char const*>(&value), sizeof value);
    }
    void text(std::string const& words) {
        put<std::uint64_t>(words.size());
        body_ += words;
    }
    void value(std::string const& key, std::string const& words) {
        begin(key, 8);
        text(words);
    }
    void value(std::string const& key, std::uint32_t number) {
        begin(key, 4);
        put(number);
    }
    void value(std::string const& key, float number) {
        begin(key, 6);
        put(number);
    }
    void value(std::string const& key, std::vector<std::uint32_t> const& numbers) {
        begin(key, 9);
        put<std::uint32_t>(4);
        put<std::uint64_t>(numbers.size());
        for (auto const number : numbers)
            put(number);
    }
    void words(std::string const& key, std::vector<std::string> const& list) {
        begin(key, 9);
        put<std::uint32_t>(8);
        put<std::uint64_t>(list.size());
        for (auto const& word : list)
            text(word);
    }
    void tensor(std::string const& name) {
        ++tensors_;
        text(name);
        put<std::uint32_t>(1);
        put<std::uint64_t>(32);
        put<std::uint32_t>(0);
        put<std::uint64_t>(0);
    }
    std::string bytes(std::uint32_t version = 3) const {
        Gguf head;
        head.body_ = "GGUF";
        head.put(version);
        head.put(tensors_);
        head.put(values_);
        return head.body_ + body_;
    }

private:
    void begin(std::string const& key, std::uint32_t type) {
        ++values_;
        text(key);
        put(type);
    }
    std::string body_;
    std::uint64_t values_ = 0;
    std::uint64_t tensors_ = 0;
};

Gguf smollm2() {
    Gguf file;
    file.value("general.architecture", "llama");
    file.value("general.name", "SmolLM2");
    file.words("tokenizer.ggml.tokens", {"a", "bc", ""});
    file.value("llama.embedding_length", 576U);
    file.value("llama.attention.head_count", 9U);
    file.value("llama.attention.head_count_kv", 3U);
    file.value("llama.rope.freq_base", 100'000.0F);
    file.value("llama.rope.dimension_count", 64U);
    return file;
}

Result<GgufModel> read(TempDir const& folder, std::string const& bytes) {
    std::ofstream(folder / "model.gguf", std::ios::binary) << bytes;
    return read_gguf(folder / "model.gguf");
}

}  // namespace

TEST_CASE("a GGUF file says heads, theta and which dims turn together") {
    TempDir const folder;
    auto const model = read(folder, smollm2().bytes()).value();

    CHECK(model.architecture == "llama");
    CHECK(model.kv_heads == 3);
    CHECK(model.rope.theta == 100'000);
    CHECK(model.rope.interleaved);
    CHECK(model.rope.dims == 0);
    CHECK(model.rope.scaling == "");
}

TEST_CASE("what was given goes before what the GGUF file says") {
    TempDir const folder;
    auto const model = read(folder, smollm2().bytes()).value();
    OpenOptions open;
    open.kv_heads = 9;
    open.rope.theta = 5;

    complete(open, model);

    CHECK(open.kv_heads == 9);
    CHECK(open.rope.theta == 5);
    CHECK(!open.rope.interleaved);
    CHECK(open.model == "SmolLM2");
}

TEST_CASE("scaled frequencies are named, so that keys are not turned by wrong ones") {
    TempDir const folder;
    auto file = smollm2();
    file.tensor("token_embd.weight");
    file.tensor("rope_freqs.weight");

    CHECK(read(folder, file.bytes()).value().rope.scaling ==
          R"({"rope_type":"llama.cpp rope_freqs"})");
}

TEST_CASE("an architecture whose order of dims is not known leaves the order open") {
    TempDir const folder;
    Gguf file;
    file.value("general.architecture", "unheard");
    file.value("unheard.attention.head_count", 8U);

    auto const model = read(folder, file.bytes(2)).value();

    CHECK(model.kv_heads == 8);
    CHECK(model.rope.theta == 0);
}

TEST_CASE("layers of unlike KV heads are refused; layers without attention count for nothing") {
    TempDir const folder;
    Gguf hybrid;
    hybrid.value("general.architecture", "lfm2");
    hybrid.value("lfm2.attention.head_count_kv", std::vector<std::uint32_t>{0, 8, 0, 8});
    CHECK(read(folder, hybrid.bytes()).value().kv_heads == 8);

    Gguf unlike;
    unlike.value("general.architecture", "deci");
    unlike.value("deci.attention.head_count_kv", std::vector<std::uint32_t>{8, 4});
    CHECK(read(folder, unlike.bytes()).error().message ==
          folder / "model.gguf" +
              ": its layers have 8 and 4 KV heads, and rows of unlike layers are not supported");
}

TEST_CASE("a GGUF file that is cut at any byte, or says lengths it has not, is refused") {
    TempDir const folder;
    auto const whole = smollm2().bytes();
    for (std::size_t length = 0; length < whole.size(); ++length) {
        CAPTURE(length);
        auto const model = read(folder, whole.substr(0, length));
        REQUIRE(!model);
        CHECK(model.error().message.starts_with(folder / "model.gguf"));
    }
    for (std::size_t at = 8; at + 8 <= whole.size(); ++at) {
        auto spoiled = whole;
        std::memset(spoiled.data() + at, 0xff, 8);
        (void)read(folder, spoiled);  // Ends, under sanitizers, without a word of them.
    }
}

TEST_CASE("other versions and other files are refused by name") {
    TempDir const folder;
    CHECK(read(folder, smollm2().bytes(4)).error().message ==
          folder / "model.gguf" + ": GGUF version 4 is not supported: 2 and 3 are");
    CHECK(read(folder, "PK\3\4 something else").error().message ==
          folder / "model.gguf" + ": this is not a GGUF file");
}
