// The order of streams, and what lazy ones leave undone; each case asks a process of its own.
#include "tests/tools/cuda_emu/peer.h"

namespace dkv::test {
namespace {

Environment streams(char const* kind) {
    return {{"CUDAEMU_STREAMS", kind}};
}

TEST_CASE("eager streams do what they are given at once, the default stream too") {
    Peer peer(streams("eager"));
    CHECK(peer.ask("order blocking default") == "ab||");
    CHECK(peer.ask("order non-blocking default") == "ab||");
    CHECK(peer.ask("plain_fill") == "16843009 7, then 16843009 7");
}

TEST_CASE("lazy streams do nothing before they are waited for, the default stream neither") {
    Peer peer(streams("lazy"));
    CHECK(peer.ask("order non-blocking default") == "|b|a");
    CHECK(peer.ask("order non-blocking stream") == "|b|a");
}

TEST_CASE("the default stream and the blocking ones wait for each other, lazy or not") {
    Peer peer(streams("lazy"));
    CHECK(peer.ask("order blocking default") == "|ab|");
    CHECK(peer.ask("order blocking stream") == "|ab|");
}

TEST_CASE("a plain cudaMemset or cudaMemcpy to the device may return before it is done") {
    CHECK(Peer(streams("lazy")).ask("plain_fill") == "-1 -1, then 16843009 7");
}

}  // namespace
}  // namespace dkv::test
