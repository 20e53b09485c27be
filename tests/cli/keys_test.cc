#include <cstdlib>
#include <filesystem>

#include <doctest/doctest.h>

#include "protocol/keys/key_files.h"
#include "tests/cli/fakes.h"
#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;

TEST_CASE("dkv keys makes a pair, says where, and asks no sidecar") {
    TempDir const folder;
    FakeSidecar sidecar;

    auto const ran = run_dkv({"keys", "--out", folder / "new"}, sidecar);

    CHECK(ran.exit_code == 0);
    CHECK(sidecar.connects == 0);
    auto const pair = keys::read_pair(folder / "new/dkv.key_secret");
    REQUIRE(pair);
    CHECK(keys::read_public_key(folder / "new/dkv.key").value() == pair.value().public_key);
    CHECK(contains(ran.out, "Secret key  " + (folder / "new/dkv.key_secret") + "  (mode 0600"));
    CHECK(contains(ran.out, "Public key  " + (folder / "new/dkv.key") +
                                "  (to give away): " + pair.value().public_key + "\n"));
    CHECK(!contains(ran.out, pair.value().secret_key));
}

TEST_CASE("dkv keys replaces no key, and under --json never shows the secret one") {
    TempDir const folder;
    FakeSidecar sidecar;
    auto const made = run_dkv({"keys", "--json", "-o", folder.path()}, sidecar);

    auto const again = run_dkv({"keys", "--out", folder.path()}, sidecar);

    auto const said = cli::Json::parse(made.out);
    auto const pair = keys::read_pair(said.at("secret_key_file"));
    REQUIRE(pair);
    CHECK(said.at("public_key") == pair.value().public_key);
    CHECK(said.at("public_key_file") == folder / "dkv.key");
    CHECK(!contains(made.out, pair.value().secret_key));
    CHECK(again.exit_code == 1);
    CHECK(again.err == "dkv: '" + (folder / "dkv.key_secret") +
                           "' is there already: a key in use is not replaced; move it away to make "
                           "a new one\n");
}
