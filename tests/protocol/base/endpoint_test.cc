#include "protocol/base/endpoint.h"

#include <cstdlib>
#include <unistd.h>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;

TEST_CASE("endpoint: DKV_ENDPOINT goes before XDG_RUNTIME_DIR, which goes before /tmp") {
    ::setenv("DKV_ENDPOINT", "ipc:///somewhere/else.sock", 1);
    ::setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    CHECK(default_endpoint() == "ipc:///somewhere/else.sock");

    ::unsetenv("DKV_ENDPOINT");
    CHECK(default_endpoint() == "ipc:///run/user/7/dkv/dkvd.sock");

    ::unsetenv("XDG_RUNTIME_DIR");
    CHECK(default_endpoint() == "ipc:///tmp/dkv-" + std::to_string(::getuid()) + "/dkvd.sock");
}

TEST_CASE("endpoint: ipc, tcp and inproc are taken") {
    CHECK(check_endpoint("ipc:///run/dkv/dkvd.sock"));
    CHECK(check_endpoint("tcp://127.0.0.1:5555"));
    CHECK(check_endpoint("inproc://here"));
    CHECK(ipc_path("ipc:///run/dkv/dkvd.sock") == "/run/dkv/dkvd.sock");
    CHECK(ipc_path("tcp://127.0.0.1:5555").empty());
}

TEST_CASE("endpoint: a refusal quotes it") {
    CHECK(check_endpoint("/run/dkvd.sock").error().message ==
          "endpoint '/run/dkvd.sock' is neither ipc://PATH, tcp://HOST:PORT nor inproc://NAME");
    CHECK(check_endpoint("ipc://").error().message == "endpoint 'ipc://' names no path");
    CHECK(check_endpoint("tcp://nowhere").error().code == ErrorCode::InvalidArgument);
    std::string const deep = "ipc:///" + std::string(107, 'd');
    CHECK(check_endpoint(deep).error().message ==
          "endpoint '" + deep + "' has a path of 108 bytes; a Unix socket takes 107");
}
