#include <cmath>

#include "tests/cli/saved/formats/write_cache_fixture.h"

using namespace dkv;
using namespace dkv::test;

TEST_CASE_FIXTURE(WriteCacheFixture,
                  "rows of fewer bits come back near what they were, of their own dtype") {
    numbers = Numbered(6, 32);
    for (Kept const& kept : {kWhole, kUniform, kRagged})
        for (auto const bits : {RowBits::Eight, RowBits::Four}) {
            CAPTURE(name_of(bits));
            auto request = numbers.request(path, FileFormat::Dkv, kept);
            request.bits = bits;
            auto const cache = written(request);

            auto const& facts = cache->facts();
            CHECK(facts.format_words == "dkv 2");
            CHECK(facts.geometry == numbers.geometry);
            CHECK(facts.has_checksums);
            CHECK(facts.stored->type ==
                  (bits == RowBits::Eight ? "q8_0, rotated by 32" : "q4_0, rotated by 32"));
            CHECK(facts.stored_bytes() == (bits == RowBits::Eight ? 68 : 36));
            float const most = bits == RowBits::Eight ? 0.01F : 0.2F;  // Of a row's size.
            for (std::uint32_t layer = 0; layer < kept.size(); ++layer) {
                auto const saved = cache->layer(layer).value();
                CHECK(element_of(saved.queries, 3, 1, 2) == Numbered::number(layer, 3, 1, 2));
                for (std::uint32_t head = 0; head < kept[layer].size(); ++head)
                    for (std::uint32_t row = 0; row < kept[layer][head].size(); ++row) {
                        auto const at = static_cast<std::uint32_t>(kept[layer][head][row]);
                        float const wanted = Numbered::number(layer, head, at, 5);
                        CHECK(std::abs(element_of(saved.keys_of(head), 0, row, 5) - wanted) <=
                              most * (wanted + 4));
                        CHECK(std::abs(element_of(saved.values_of(head), 0, row, 5) + wanted) <=
                              most * (wanted + 4));
                    }
            }
        }
}

TEST_CASE_FIXTURE(WriteCacheFixture, "refined rows come back nearer than the others") {
    numbers = Numbered(6, 32);
    for (Kept const& kept : {kWhole, kUniform, kRagged}) {
        auto const request = numbers.request(path, FileFormat::Dkv, kept);
        auto const cache = written(test::with_refined(request, {{1, 3}, {}}));

        auto const& facts = cache->facts();
        CHECK(facts.stored->type == "q4_0+q4_0, rotated by 32");
        CHECK(facts.layer_bytes(1) == (facts.length(1, 0) + facts.length(1, 1)) * 36U);
        CHECK(facts.layer_bytes(0) == (facts.length(0, 0) + facts.length(0, 1) + 2) * 36U);
        CHECK(facts.rows_bytes() == facts.layer_bytes(0) + facts.layer_bytes(1));
        auto const saved = cache->layer(0).value();
        std::int32_t number = 0;
        for (std::uint32_t head = 0; head < 2; ++head)
            for (std::uint32_t row = 0; row < kept[0][head].size(); ++row, ++number) {
                double keys = 0;
                double values = 0;
                for (std::uint32_t dim = 0; dim < 32; ++dim) {
                    auto const at = static_cast<std::uint32_t>(kept[0][head][row]);
                    double const wanted = Numbered::number(0, head, at, dim);
                    keys += std::abs(element_of(saved.keys_of(head), 0, row, dim) - wanted);
                    values += std::abs(element_of(saved.values_of(head), 0, row, dim) + wanted);
                }
                bool const refined = number == 1 || number == 3;
                CHECK((keys < 2) == refined);
                CHECK((values < 2) == refined);
            }
    }
}

TEST_CASE_FIXTURE(WriteCacheFixture, "rows to refine are as many as the header says, ascending") {
    numbers = Numbered(6, 32);
    auto const plain = numbers.request(path, FileFormat::Dkv, kUniform);
    auto const wrong = [&](std::vector<std::int32_t> rows) {
        return refused(test::with_refined(plain, {std::move(rows), {}}),
                       ErrorCode::InvalidArgument);
    };
    CHECK(wrong({2, 2}) == "layer 0: 2 rows to refine, not 2 ascending ones of 6");
    CHECK(wrong({2, 6}) == "layer 0: 2 rows to refine, not 2 ascending ones of 6");
    CHECK(wrong({-1}) == "layer 0: 1 rows to refine, not 1 ascending ones of 6");
    auto fewer = test::with_refined(plain, {{2}, {}});
    fewer.refined = {2, 0};
    CHECK(refused(fewer, ErrorCode::InvalidArgument) ==
          "layer 0: 1 rows to refine, not 2 ascending ones of 6");
}

TEST_CASE_FIXTURE(WriteCacheFixture, "a file whose refined rows are none of its own is refused") {
    numbers = Numbered(6, 32);
    auto const request =
        test::with_refined(numbers.request(path, FileFormat::Dkv, kUniform), {{1, 3}, {}});
    written(request);
    auto text = test::read_text(path);
    std::string const ids("\1\0\0\0\3\0\0\0", 8);
    auto const at = text.rfind(ids);
    REQUIRE(at != std::string::npos);
    text[at + 4] = 6;
    test::write_file(path, text);

    auto const opened = open_cache(path);
    REQUIRE(opened);
    auto const layer = opened.value()->layer(0);
    REQUIRE_FALSE(layer);
    CHECK(layer.error().message == path + ": layers.0.refined: row 6 after 1, of 6");
    CHECK_FALSE(opened.value()->verify(0));
}

TEST_CASE_FIXTURE(WriteCacheFixture, "rows of fewer bits are dkv's alone, of whole blocks") {
    auto request = numbers.request(path, FileFormat::Hf);
    request.bits = RowBits::Eight;
    CHECK(refused(request) ==
          "hf has no place for rows of 8 bits, which are dkv's own format's (--format dkv): leave "
          "--bits out");
    CHECK_FALSE(written_bytes(request));
    request.format = FileFormat::LlamaSlot;
    CHECK(refused(request).starts_with("llama-slot has no place for rows of 8 bits"));
    request.format = FileFormat::Dkv;
    CHECK(refused(request) ==
          "a head has 4 dims, and rows of 8 bits are blocks of 32: leave --bits out");

    numbers = Numbered(6, 32);
    numbers.values[1][40] = INFINITY;
    request = numbers.request(path, FileFormat::Dkv);
    request.bits = RowBits::Four;
    CHECK(refused(request) ==
          "a row has an element that is not finite, or too large for q4_0: leave --bits out");
}

TEST_CASE_FIXTURE(WriteCacheFixture, "a file of quantised rows that says it wrongly is refused") {
    numbers = Numbered(6, 32);
    auto request = numbers.request(path, FileFormat::Dkv);
    request.bits = RowBits::Eight;
    written(request);
    auto const good = test::read_text(path);
    auto const spoiled = [&](std::string const& from, std::string const& to) {
        std::string text = good;
        auto const at = text.find(from);
        REQUIRE(at != std::string::npos);
        text.replace(at, from.size(), to);
        // Without checksums, whose header's would speak first.
        for (std::size_t crc; (crc = text.find("\"crc32")) != std::string::npos;)
            text[crc + 1] = 'x';
        test::write_file(path, text);
        auto const opened = open_cache(path);
        REQUIRE_FALSE(opened);
        return opened.error().message.substr(path.size() + 2);
    };
    CHECK(spoiled("\"rows\":\"q8_0\"", "\"rows\":\"q6_k\"") ==
          "rows are \"q6_k\", and this dkv reads q8_0, q4_0 and q4_0+q4_0");
    CHECK(spoiled("\"rows\":\"q8_0\"", "\"rowz\":\"q8_0\"") == "the metadata has no \"rows\"");
    CHECK(spoiled("\"rows\":\"q8_0\"", "\"rows\":\"q4_0\"") ==
          "rows of 34 bytes are not blocks of q4_0, of 18 bytes");
    CHECK(spoiled("\"rows.rotation\":\"32\"", "\"rows.rotation\":\"64\"") ==
          "rows of 32 dims are rotated by 64");
    CHECK(spoiled("\"rows.rotation\":\"32\"", "\"rows.rotation\":\"3x\"") ==
          "the metadata's rows.rotation is \"3x\"");
    CHECK(spoiled("\"rows.dtype\":\"F32\"", "\"rows.dtype\":\"F64\"") ==
          "the metadata's rows.dtype is \"F64\"");
    CHECK(spoiled("\"version\":\"2\"", "\"version\":\"1\"")
              .starts_with("layers.0.keys is U8, not F32, F16 or BF16"));
}
