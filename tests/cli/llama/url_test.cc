// Addresses of servers, as people write them.
#include <doctest/doctest.h>

#include "cli/llama/compact_slot.h"
#include "cli/llama/http.h"

using namespace dkv;
using namespace dkv::llama;

TEST_CASE("a server's address has a host, a port and what stands before every path") {
    auto const url = parse_url("http://127.0.0.1:8080/").value();
    CHECK(url.host == "127.0.0.1");
    CHECK(url.port == 8080);
    CHECK(url.prefix == "");

    auto const behind = parse_url("swap.local/upstream/smollm2/").value();
    CHECK(behind.host == "swap.local");
    CHECK(behind.port == 80);
    CHECK(behind.prefix == "/upstream/smollm2");
}

TEST_CASE("what is not an address of a server is refused, and so is https") {
    for (char const* text : {"", "http://", "http://:8080", "host:0", "host:65536", "host:80x",
                             "http://a b", "http://h?x=1", "user@host", "ftp://host"}) {
        CAPTURE(text);
        auto const url = parse_url(text);
        REQUIRE(!url);
        CHECK(url.error().message == "'" + std::string(text) +
                                         "' is not a server's address, for example "
                                         "http://127.0.0.1:8080");
    }
    CHECK(parse_url("https://host").error().message ==
          "https://host: https is not supported: give the server's own http address");
}

TEST_CASE("the whole slot is saved beside the compacted one") {
    CHECK(original_name("slot-0.bin") == "slot-0.full.bin");
    CHECK(original_name("chat") == "chat.full");
}
