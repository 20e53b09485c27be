#include "protocol/container/safetensors_writer.h"

#include <cstring>
#include <fstream>
#include <sstream>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>
#include <sys/mman.h>

#include "protocol/container/checksums.h"
#include "protocol/container/crc32.h"
#include "protocol/container/mapped_file.h"
#include "tests/support/bytes.h"
#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

using namespace dkv;

namespace {

struct SafetensorsWriterFixture {
    test::TempDir folder;
    std::string path = folder / "out.safetensors";
    std::vector<TensorPlan> const plan{
        {"b", "F16", {3}}, {"a", "I32", {2, 1}}, {"none", "F32", {0}}};
    std::map<std::string, std::string> const metadata{{"who", "me"}};
};

}  // namespace

TEST_CASE("the CRC-32 is zlib's, in pieces too") {
    CHECK(crc32(0, {}) == 0);
    CHECK(crc32(0, test::bytes_of("123456789")) == 0xcbf43926U);
    CHECK(crc32(crc32(0, test::bytes_of("1234")), test::bytes_of("56789")) == 0xcbf43926U);
    CHECK(crc_text(0xcbf43926U) == "cbf43926");
    CHECK(parse_crc("cbf43926") == 0xcbf43926U);
    for (char const* text : {"", "cbf4392", "cbf439261", "cbf4392g", "0xcbf439", "CBF43926"})
        CHECK_FALSE(parse_crc(text));
}

TEST_CASE_FIXTURE(SafetensorsWriterFixture,
                  "what is written is read, with a checksum of each tensor") {
    auto writer = SafetensorsWriter::create(path, plan, metadata);
    REQUIRE(writer);
    // Pieces of any size, over the tensors' edges.
    for (std::string const piece : {"12", "345", "6abcde", "fgh"})
        REQUIRE(writer.value().append(test::bytes_of(piece)));
    REQUIRE(writer.value().commit());

    auto const file = MappedFile::open(path);
    REQUIRE(file);
    CHECK(file.value().bytes().size() == writer.value().file_bytes());
    CHECK(SafetensorsWriter::file_bytes(plan, metadata).value() == writer.value().file_bytes());
    auto const table = parse_safetensors(file.value().bytes());
    REQUIRE(table);
    auto const& tensors = table.value().tensors;
    REQUIRE(tensors.size() == 3);
    CHECK(tensors.at("b").dtype == "F16");
    CHECK(tensors.at("a").shape == std::vector<std::uint64_t>{2, 1});
    CHECK(std::memcmp(tensors.at("b").bytes.data(), "123456", 6) == 0);
    CHECK(std::memcmp(tensors.at("a").bytes.data(), "abcdefgh", 8) == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(tensors.at("b").bytes.data()) % 64 == 0);
    auto const& words = table.value().metadata;
    CHECK(words.at("who") == "me");
    CHECK(words.at("crc32.b") == crc_text(crc32(0, test::bytes_of("123456"))));
    CHECK(words.at("crc32.a") == crc_text(crc32(0, test::bytes_of("abcdefgh"))));
    CHECK(words.at("crc32.none") == "00000000");
    CHECK(check_header_crc(table.value()));
}

TEST_CASE_FIXTURE(SafetensorsWriterFixture,
                  "without checksums the metadata is the caller's alone") {
    auto writer = SafetensorsWriter::create(path, {}, metadata, false);
    REQUIRE(writer);
    REQUIRE(writer.value().commit());
    auto const file = MappedFile::open(path);
    auto const table = parse_safetensors(file.value().bytes());
    REQUIRE(table);
    CHECK(table.value().metadata.size() == 1);
    auto const checked = check_header_crc(table.value());
    REQUIRE_FALSE(checked);
    CHECK(checked.error().message.ends_with(", not given"));
}

TEST_CASE_FIXTURE(SafetensorsWriterFixture,
                  "plans that cannot be and bytes that do not come are refused") {
    auto const message = [&](std::vector<TensorPlan> tensors) {
        auto const writer = SafetensorsWriter::create(path, std::move(tensors), {});
        REQUIRE_FALSE(writer);
        CHECK(writer.error().code == ErrorCode::InvalidArgument);
        return writer.error().message;
    };
    CHECK(message({{"a", "F32", {1}}, {"a", "F32", {1}}}) == "there are two tensors a");
    CHECK(message({{"a", "Q4", {1}}}) == "a: unknown dtype Q4");
    CHECK(message({{"a", "F32", {std::uint64_t{1} << 62U, 4}}}) ==
          "a [4611686018427387904, 4] does not fit in 64 bits");
    CHECK(
        message({{"a", "I8", {std::uint64_t{1} << 63U}}, {"b", "I8", {std::uint64_t{1} << 63U}}}) ==
        "b [9223372036854775808] does not fit in 64 bits");

    auto writer = SafetensorsWriter::create(path, plan, metadata);
    REQUIRE(writer);
    REQUIRE(writer.value().append(test::bytes_of("1234567")));
    auto const early = writer.value().commit();
    REQUIRE_FALSE(early);
    CHECK(early.error().code == ErrorCode::BadState);
    CHECK(early.error().message == "a lacks 7 bytes");
    auto const more = writer.value().append(test::bytes_of("12345678"));
    REQUIRE_FALSE(more);
    CHECK(more.error().message == "1 bytes more than the tensors have");
}

TEST_CASE_FIXTURE(SafetensorsWriterFixture, "a text that is no UTF-8 does not spoil a header") {
    auto writer = SafetensorsWriter::create(path, {}, {{"source", "a\xff/\"b\"\n"}});
    REQUIRE(writer);
    REQUIRE(writer.value().commit());
    auto const file = MappedFile::open(path);
    auto const table = parse_safetensors(file.value().bytes());
    REQUIRE(table);
    CHECK(table.value().metadata.at("source") == "a\xef\xbf\xbd/\"b\"\n");
    CHECK(check_header_crc(table.value()));
}

TEST_CASE("a CRC-32 reads its bytes and none beside them") {
    auto const page = static_cast<std::size_t>(::getpagesize());
    void* const memory = ::mmap(nullptr, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    auto* const begin = static_cast<std::byte*>(memory) + page;
    REQUIRE(::mprotect(begin, page, PROT_READ | PROT_WRITE) == 0);
    std::vector<std::uint32_t> table(256);  // The definition, a byte at a time.
    for (std::uint32_t i = 0; i < 256; ++i) {
        table[i] = i;
        for (int bit = 0; bit < 8; ++bit)
            table[i] = table[i] >> 1U ^ (table[i] % 2 != 0 ? 0xedb88320U : 0U);
    }
    for (std::size_t i = 0; i < page; ++i)
        begin[i] = static_cast<std::byte>(i * 167 + i / 256);

    for (std::size_t length = 0; length < 600; ++length)
        for (auto const* first : {begin, begin + page - length}) {
            std::uint32_t wanted = ~0x1234U;
            for (std::size_t i = 0; i < length; ++i)
                wanted =
                    wanted >> 8U ^ table[(wanted ^ std::to_integer<unsigned>(first[i])) & 255U];
            CHECK(crc32(0x1234, {first, length}) == ~wanted);
        }

    ::munmap(memory, 3 * page);
}
