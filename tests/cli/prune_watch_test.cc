// dkv prune --watch: what passes over the same folders share.
#include <fcntl.h>

#include <doctest/doctest.h>
#include <sys/file.h>

#include "cli/saved/formats/saved_cache.h"
#include "cli/saved/store/prune.h"
#include "protocol/base/unique_fd.h"
#include "tests/cli/store_folder.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {
namespace fs = std::filesystem;
}  // namespace

TEST_CASE(
    "dkv prune --watch: a cache that takes a deleted one's place is measured before it goes") {
    Folder const store;
    cli::PruneRequest request;
    request.folders = {store.folder.path()};
    request.budget = 1;
    request.delete_last = request.unmeasured = true;
    request.settle = std::chrono::milliseconds(0);
    request.compact.policy.name = "knorm";
    cli::PruneMemory memory;
    std::vector<cli::PrunedCache> told;
    bool first = true;
    auto const tell = [&](cli::PrunedCache const& cache) {
        told.push_back(cache);
        if (!first || cache.what != cli::PrunedCache::What::Deleted) return;
        first = false;
        write_random_cache(cache.path == store.file(3) ? store.file(2) : store.file(3), 8);
    };
    REQUIRE(cli::prune(request, {}, tell, memory));
    auto const replaced = fs::exists(store.file(3)) ? store.file(3) : store.file(2);
    REQUIRE(fs::exists(replaced));
    CHECK(told.back().path == replaced);
    CHECK(told.back().why == "another program wrote to it meanwhile");

    told.clear();
    REQUIRE(cli::prune(request, {}, tell, memory));

    REQUIRE(told.size() == 2);
    CHECK(told[0].what == cli::PrunedCache::What::Compacted);
    CHECK(told[1].what == cli::PrunedCache::What::Deleted);
}

TEST_CASE("dkv prune --watch goes on: what comes is compacted, and what was left is told of once") {
    Folder const store;
    TempDir const empty;
    auto const add = [&](int index, unsigned seed) {
        write_random_cache(store.file(index), seed);
        Folder::set_time(store.file(index), 2000);
    };
    std::string whole = store.whole();
    int step = 0;
    auto const between_passes = [&] {
        if (step == 0) {
            write_file(store.file(7), "broken");
            Folder::set_time(store.file(7), 1);
            add(8, 9);
            UniqueFd const other(::open(store.folder.path().c_str(), O_RDONLY | O_DIRECTORY));
            CHECK(::flock(other.get(), LOCK_EX | LOCK_NB) != 0);
        } else if (store.whole() == whole) {
            return;
        } else if (step == 1) {
            add(9, 10);
        }
        whole = store.whole();
        ++step;
    };
    FakeSidecar unasked;
    auto const ran = run_dkv({"prune", store.folder.path(), empty.path(), "--watch", "--json",
                              "--budget", std::to_string(store.cache_bytes * 23 / 5), "--policy",
                              "knorm", "--window", "8", "--unmeasured"},
                             unasked, [&](cli::Environment& world) {
                                 world.catch_interrupts = [&] { return [&] { return step == 3; }; };
                                 world.pause = [&](std::chrono::milliseconds) { between_passes(); };
                             });

    CHECK(ran.exit_code == 0);
    std::istringstream lines(ran.out);
    std::vector<int> totals;
    std::vector<std::string> left;
    for (std::string line; std::getline(lines, line);) {
        auto const json = Json::parse(line);
        if (json.at("event") == "total") totals.push_back(json.at("caches").get<int>());
        if (json.at("event") == "left") left.push_back(json.at("file").get<std::string>());
    }
    CHECK(totals == std::vector<int>{4, 6, 7});
    CHECK(left == std::vector<std::string>{store.file(7)});
    CHECK_FALSE(store.is_whole(0));
    CHECK_FALSE(store.is_whole(1));
    CHECK(fs::file_size(store.file(8)) == store.cache_bytes);
}
