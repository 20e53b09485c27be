#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "protocol/base/version.h"
#include "tests/protocol/sdk/harness.h"

using namespace dkv;
using namespace dkv::test;

extern "C" int dkv_header_test(void);

namespace {

constexpr std::uint64_t kPageBytes = 4096;

}  // namespace

TEST_CASE("dkv.h is C11 and means the same there") {
    CHECK(dkv_header_test() == 0);
    CHECK(std::string(dkv_version()) == kVersion);
}

TEST_CASE("an arena is sparse, but for one in /dev/shm, zeroed, and gives whole pages back") {
    for (auto const kind : {DKV_ARENA_MEMFD, DKV_ARENA_POSIX_SHM}) {
        CAPTURE(kind);
        dkv_arena* arena = nullptr;
        REQUIRE_MESSAGE(dkv_arena_create(8 * kPageBytes, kind, &arena) == DKV_OK, dkv_last_error());
        CHECK(dkv_arena_bytes(arena) == 8 * kPageBytes);
        // In /dev/shm all of it is there at once: a page that is missing later would end the
        // process.
        CHECK(dkv_arena_allocated_bytes(arena) ==
              (kind == DKV_ARENA_POSIX_SHM ? 8 * kPageBytes : 0));
        auto* const base = static_cast<char*>(dkv_arena_base(arena));

        std::memset(base, 1, 8 * kPageBytes);
        CHECK(dkv_arena_allocated_bytes(arena) == 8 * kPageBytes);
        // Bytes 1 … 3 pages + 1: only pages 1 and 2 are whole.
        REQUIRE(dkv_arena_release(arena, 1, 3 * kPageBytes) == DKV_OK);

        CHECK(dkv_arena_allocated_bytes(arena) == 6 * kPageBytes);
        CHECK(base[kPageBytes - 1] == 1);
        CHECK(base[kPageBytes] == 0);
        CHECK(base[3 * kPageBytes - 1] == 0);
        CHECK(base[3 * kPageBytes] == 1);
        dkv_arena_destroy(arena);
    }
}

TEST_CASE(
    "a child after fork cannot give back its parent's rows, and may destroy its view of them") {
    for (auto const kind : {DKV_ARENA_MEMFD, DKV_ARENA_POSIX_SHM}) {
        CAPTURE(kind);
        dkv_arena* arena = nullptr;
        REQUIRE_MESSAGE(dkv_arena_create(2 * kPageBytes, kind, &arena) == DKV_OK, dkv_last_error());
        auto* const base = static_cast<char*>(dkv_arena_base(arena));
        std::memset(base, 1, 2 * kPageBytes);

        pid_t const child = ::fork();
        if (child == 0) {
            bool const refused =
                dkv_arena_release(arena, 0, 2 * kPageBytes) == DKV_BAD_STATE &&
                std::string(dkv_last_error()) ==
                    "this arena belongs to the process before fork(), which would lose its rows: "
                    "destroy it here instead";
            dkv_arena_destroy(arena);
            ::_exit(refused ? 0 : 1);
        }

        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        CHECK(status == 0);
        CHECK(dkv_arena_allocated_bytes(arena) == 2 * kPageBytes);
        CHECK(base[0] == 1);
        CHECK(base[2 * kPageBytes - 1] == 1);
        dkv_arena_destroy(arena);
    }
}

TEST_CASE("an arena's last page is given back even when the arena ends inside it") {
    dkv_arena* arena = nullptr;
    REQUIRE(dkv_arena_create(kPageBytes + 100, DKV_ARENA_DEFAULT, &arena) == DKV_OK);
    std::memset(dkv_arena_base(arena), 1, kPageBytes + 100);

    REQUIRE(dkv_arena_release(arena, kPageBytes, 100) == DKV_OK);

    CHECK(dkv_arena_allocated_bytes(arena) == kPageBytes);
    dkv_arena_destroy(arena);
}

TEST_CASE("arenas refuse what cannot be, and say which value it was") {
    dkv_arena* arena = nullptr;
    CHECK(dkv_arena_create(0, DKV_ARENA_DEFAULT, &arena) == DKV_INVALID_ARGUMENT);
    CHECK(std::string(dkv_last_error()) == "an arena of 0 bytes");
    CHECK(dkv_arena_create(UINT64_MAX, DKV_ARENA_DEFAULT, &arena) == DKV_IO);
    CHECK(std::string(dkv_last_error()).find("18446744073709551615 bytes refused") !=
          std::string::npos);
    CHECK(dkv_arena_create(1, static_cast<dkv_arena_kind>(3), &arena) == DKV_INVALID_ARGUMENT);
    CHECK(arena == nullptr);

    ::setenv("DKV_ARENA", "hugepages", 1);
    CHECK(dkv_arena_create(1, DKV_ARENA_DEFAULT, &arena) == DKV_INVALID_ARGUMENT);
    CHECK(std::string(dkv_last_error()) == "DKV_ARENA is 'hugepages', neither memfd nor posix_shm");
    ::unsetenv("DKV_ARENA");

    REQUIRE(dkv_arena_create(kPageBytes, DKV_ARENA_DEFAULT, &arena) == DKV_OK);
    CHECK(dkv_arena_release(arena, 1, kPageBytes) == DKV_INVALID_ARGUMENT);
    CHECK(dkv_arena_release(arena, UINT64_MAX, 2) == DKV_INVALID_ARGUMENT);
    dkv_arena_destroy(arena);
    dkv_arena_destroy(nullptr);
}

TEST_CASE("a named arena loses its name as soon as the sidecar has mapped it") {
    Harness harness;
    dkv_arena_destroy(harness.arena);
    REQUIRE(dkv_arena_create(kLayers * Harness::layer_bytes(), DKV_ARENA_POSIX_SHM,
                             &harness.arena) == DKV_OK);
    REQUIRE_MESSAGE(harness.open() == DKV_OK, dkv_last_error());
    REQUIRE_MESSAGE(harness.report(0) == DKV_OK, dkv_last_error());

    auto const request = harness.sidecar->wait_for(wire::Body::RegisterRegion, 3);
    REQUIRE(request);
    auto const* const shm = request->body.AsRegisterRegion()->source.AsPosixShm();
    REQUIRE(shm != nullptr);
    CHECK(shm->name.starts_with("/dkv-" + std::to_string(::getpid()) + "-"));
    CHECK(::shm_open(shm->name.c_str(), O_RDONLY, 0) == -1);
    CHECK(harness.sidecar->wait_for(wire::Body::LayerReady));
}

TEST_CASE("a destroyed arena is unmapped by the sidecar too; without an engine that is no matter") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    CHECK(harness.sidecar->regions() == 3);

    dkv_arena_destroy(harness.arena);
    harness.arena = nullptr;
    CHECK(harness.sidecar->wait_for(wire::Body::UnregisterRegion));

    dkv_arena* destination = nullptr;
    REQUIRE(dkv_session_take_arena(harness.session, DKV_LAYER_PACKED, &destination) == DKV_OK);
    dkv_session_close(harness.session, nullptr);
    harness.session = nullptr;
    dkv_engine_close(harness.engine);
    harness.engine = nullptr;
    std::memset(dkv_arena_base(destination), 1, kPageBytes);
    dkv_arena_destroy(destination);
}
