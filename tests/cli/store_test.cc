// dkv ls, verify and prune on folders that are really there.
#include <algorithm>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <sstream>

#include <doctest/doctest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "cli/saved/formats/saved_cache.h"
#include "cli/saved/store/prune.h"
#include "cli/saved/store/record.h"
#include "protocol/base/unique_fd.h"
#include "tests/cli/fakes.h"
#include "tests/cli/saved/formats/foreign.h"
#include "tests/cli/store_folder.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {

namespace fs = std::filesystem;

/// One byte of the last tensor, with size and time as they were.
void flip_quietly(std::string const& path) {
    struct stat facts {};
    REQUIRE(::stat(path.c_str(), &facts) == 0);
    {
        std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(-2, std::ios::end);
        char const byte = static_cast<char>(file.peek() ^ 1);
        file.seekp(-2, std::ios::end);
        file.put(byte);
    }
    Folder::set_time(path, facts.st_mtim.tv_sec);
}

}  // namespace

TEST_CASE("dkv ls: what each cache is, and a total") {
    Folder const store;
    REQUIRE(store.prune(store.cache_bytes * 18 / 5, {"--unmeasured"}).exit_code == 0);

    auto const ran = store.run({"ls"});
    CHECK(ran.exit_code == 0);
    CHECK(contains(ran.out, "CACHE"));
    CHECK(contains(ran.out, "knorm 40"));
    CHECK(contains(ran.out, "\n4 caches, "));
    CHECK(contains(ran.out, ", 1 compacted\n"));

    auto const caches = Json::parse(store.run({"ls", "--json"}).out).at("caches");
    REQUIRE(caches.size() == 4);
    CHECK(caches.at(0).at("policy") == "knorm 40");
    CHECK(caches.at(0).at("whole") == false);
    CHECK(caches.at(1).at("file") == store.file(1));
    CHECK(caches.at(1).at("model") == "a small one");
    CHECK(caches.at(1).at("tokens") == 80);
    CHECK(caches.at(1).at("bytes") == store.cache_bytes);
    CHECK(caches.at(1).at("whole") == true);
    CHECK(caches.at(1).at("verified") == "never");

    write_file(store.file(2), "broken");
    auto const broken = store.run({"ls"});
    CHECK(broken.exit_code == 1);
    CHECK(contains(broken.err, "dkv: " + store.file(2) + ": "));
}

TEST_CASE("dkv verify finds a flipped byte, also where the format has no checksums") {
    Folder const store;
    auto const good = store.run({"verify"});
    CHECK(good.exit_code == 0);
    CHECK(contains(good.out, "4 caches, "));
    CHECK(contains(good.out, ": 0 damaged\n"));
    CHECK(contains(store.run({"ls"}).out, " ago\n"));

    flip_quietly(store.file(1));
    for (int again = 0; again < 2; ++again) {  // It stays damaged.
        auto const ran = store.run({"verify"});
        CHECK(ran.exit_code == 1);
        CHECK(contains(ran.err, "dkv: " + store.file(1) +
                                    ": its bytes are not those that were verified, and its time is "
                                    "the same: "));
        CHECK(contains(ran.out, ": 1 damaged\n"));
    }
    CHECK(contains(store.run({"ls"}).out, " damaged\n"));

    write_random_cache(store.file(1), 9);  // Another cache, at another time.
    CHECK(contains(store.run({"ls"}).out, " changed since\n"));
    CHECK(store.run({"verify"}).exit_code == 0);
}

TEST_CASE("dkv prune compacts the oldest first, as far as the budget asks") {
    Folder const store;
    auto const before = fs::last_write_time(store.file(0));
    auto const ran = store.prune(store.cache_bytes * 18 / 5, {"--unmeasured"});
    CHECK(ran.exit_code == 0);
    CHECK(contains(ran.out, store.file(0) + ": 50.0 % of its tokens, "));
    CHECK(contains(ran.out, "1 compacted, 0 deleted, 0 left as they are\n"));
    CHECK(store.whole() == "123");
    CHECK(fs::last_write_time(store.file(0)) == before);

    // The next one goes on; a dry run changes nothing.
    CHECK(store.prune(store.cache_bytes * 16 / 5, {"--unmeasured", "--dry-run"}).exit_code == 0);
    CHECK(store.whole() == "123");
    CHECK(store.prune(store.cache_bytes * 16 / 5, {"--unmeasured"}).exit_code == 0);
    CHECK(store.whole() == "23");
    CHECK(store.run({"verify"}).exit_code == 0);
}

TEST_CASE("dkv prune leaves what has no measured loss, and deletes only when it is told to") {
    Folder const store;
    auto const ran = store.prune(store.cache_bytes * 5 / 2);
    CHECK(ran.exit_code == 1);
    CHECK(contains(ran.out, store.file(0) +
                                ": left as it is: its loss is not known, since there is no "
                                "profile of its model (dkv calibrate makes one); --unmeasured "
                                "compacts it to a half\n"));
    CHECK(contains(ran.out, " over "));
    CHECK(store.whole() == "0123");

    CHECK(store.prune(store.cache_bytes * 5 / 2, {"--delete", "--dry-run"}).exit_code == 0);
    CHECK(store.whole() == "0123");
    auto const deleted = store.prune(store.cache_bytes * 5 / 2, {"--delete"});
    CHECK(deleted.exit_code == 0);
    CHECK(contains(deleted.out, store.file(0) + ": deleted, "));
    CHECK(store.whole() == "23");
    CHECK(fs::exists(store.folder / "notes.txt"));
}

TEST_CASE("dkv prune keeps to the damage that is allowed") {
    Folder const store;
    write_file(
        store.folder / "p.json",
        R"({"format": "dkv-profile", "version": 1, "model": {"name": "tiny", "geometry": )"
        R"({"layers": 3, "compressed": [0, 1, 2], "q_heads": 4, "kv_heads": 2, )"
        R"("head_dim": 4}}, "recipe": {}, "granularity": "layer", "alpha": 1, "floor": 0.2, )"
        R"("weights": [[1], [1], [1]]})");
    auto const run = [&](std::uint64_t budget, std::string const& damage) {
        FakeSidecar unasked;
        return run_dkv(
            {"prune", store.folder.path(), "--budget", std::to_string(budget), "--window", "8",
             "--profile", store.folder / "p.json", "--damage-max", damage, "--json"},
            unasked);
    };
    auto const strict = run(store.cache_bytes, "0.01");
    CHECK(strict.exit_code == 1);
    CHECK(contains(strict.out, "of its tokens is 0."));
    CHECK(contains(strict.out, ", above --damage-max 0.01"));
    CHECK(store.whole() == "0123");

    auto const ran = run(store.cache_bytes * 3 / 2, "1");
    CHECK(ran.exit_code == 0);
    CHECK(store.whole().empty());
    std::istringstream lines(ran.out);
    std::string line;
    std::getline(lines, line);
    auto const first = Json::parse(line);
    CHECK(first.at("event") == "compacted");
    CHECK(first.at("file") == store.file(0));
    CHECK(first.at("share") == 0.125);  // One eighth is allowed; a half of all is not enough.
    CHECK(first.at("damage").get<double>() > 0.01);
    while (std::getline(lines, line)) {
    }

    auto const refused = store.prune(store.cache_bytes, {"--capacity", "16"});
    CHECK(refused.exit_code == 1);
    CHECK(contains(refused.err,
                   "--capacity: prune chooses each cache's size by its loss; leave it "
                   "out"));
}

TEST_CASE("dkv prune: a killed run's leftovers go, and two runs do not meet") {
    Folder const store;
    write_file(store.folder / ".0.safetensors.dkv-compact", "half a file");
    {
        UniqueFd const lock(::open(store.folder.path().c_str(), O_RDONLY | O_DIRECTORY));
        REQUIRE(::flock(lock.get(), LOCK_EX) == 0);
        auto const ran = store.prune(store.cache_bytes);
        CHECK(ran.exit_code == 1);
        CHECK(contains(ran.err, "another dkv llama watch-slots has this folder, or a dkv prune"));
        CHECK(fs::exists(store.folder / ".0.safetensors.dkv-compact"));
    }
    CHECK(store.prune(store.cache_bytes * 4).exit_code == 0);
    CHECK_FALSE(fs::exists(store.folder / ".0.safetensors.dkv-compact"));
    // Fresh files are left to their writer.
    write_random_cache(store.file(0), 7);
    auto const fresh = store.prune(1, {"--unmeasured", "--delete", "--settle-s", "3600"});
    CHECK(contains(fresh.out, ", 1 being written\n"));
    CHECK(store.whole() == "0");
}

TEST_CASE("dkv verify: a cache that was mended is good again") {
    Folder const store;
    std::ifstream file(store.file(1), std::ios::binary);
    std::string const good(std::istreambuf_iterator<char>(file), {});
    auto const put = [&](std::string const& text) {
        write_file(store.file(1), text);
        Folder::set_time(store.file(1), 1001);
    };
    put(good.substr(0, good.size() - 4) + "\xff\xff\xff\xff");  // A NaN, before any verdict.
    CHECK(store.run({"verify"}).exit_code == 1);
    CHECK(contains(store.run({"ls"}).out, " damaged\n"));
    put(good);
    CHECK(store.run({"verify"}).exit_code == 0);
    CHECK_FALSE(contains(store.run({"ls"}).out, " damaged\n"));
}

TEST_CASE("dkv verify of a folder that is a cache: a flag that is missing is not damage") {
    TempDir const folder;
    FakeSidecar unasked;
    auto const run = [&](std::vector<std::string> const& arguments) {
        return run_dkv(arguments, unasked);
    };
    fs::create_directories(folder / "x/0abc");
    std::string const layer = folder / "x/0abc/model.layers.0.self_attn.attn.safetensors";
    write_file(layer, vllm_layer({2, 2, 3, 4}, 0).text());

    auto const good = run({"verify", folder / "x/", "--layout", "2THD"});
    CHECK(good.exit_code == 0);
    CHECK(good.err.empty());
    CHECK(fs::exists(folder / ".dkv-verified.jsonl"));  // Beside the cache, not in it.
    CHECK_FALSE(fs::exists(folder / "x/.dkv-verified.jsonl"));
    auto const state = [&](std::string const& path) {
        auto const ran = run({"ls", path, "--layout", "2THD", "--json"});
        return Json::parse(ran.out).at("caches").at(0).at("verified").get<std::string>();
    };
    CHECK(state(folder / "x") == "good");
    CHECK(state(folder / "x/") == "good");

    auto const asked = run({"verify", folder / "x"});
    CHECK(asked.exit_code == 1);
    CHECK(contains(asked.err, "which may be 2THD or T2HD: say --layout"));
    CHECK(state(folder / "x") == "good");

    // Files in the folders below count.
    CHECK(cli::seen_file(folder / "x").bytes == fs::file_size(layer));
    Folder::set_time(layer, 5);
    CHECK(cli::seen_file(folder / "x").written_ns == 5'000'000'000);
    CHECK(state(folder / "x") == "changed");
}

TEST_CASE("dkv verify: the record is a file, or there is none") {
    Folder const store;
    std::string const record = store.folder / ".dkv-verified.jsonl";
    std::string const victim = store.folder / "victim";
    write_file(victim, "precious");
    fs::create_symlink(victim, record);
    auto const linked = store.run({"verify"});
    CHECK(linked.exit_code == 0);
    CHECK(contains(linked.err,
                   "dkv: not remembered: " + record + ": there is a link of this name\n"));
    CHECK(fs::file_size(victim) == 8);
    CHECK(fs::is_symlink(record));

    fs::remove(record);
    REQUIRE(::mkfifo(record.c_str(), 0600) == 0);
    CHECK(store.run({"ls"}).exit_code == 0);
    auto const piped = store.run({"verify"});
    CHECK(piped.exit_code == 0);
    CHECK(contains(piped.err, ": there is a FIFO of this name"));
}

TEST_CASE("dkv prune -r: each folder that has a cache is locked, or the run is refused") {
    Folder const store;
    fs::create_directory(store.folder / "below");
    write_random_cache(store.folder / "below/9.safetensors", 9);
    Folder::set_time(store.folder / "below/9.safetensors", 900);
    std::string const work = store.folder / "below/.9.safetensors.dkv-compact";
    write_file(work, "half a file");
    auto const prune = [&] {
        return store.prune(store.cache_bytes * 9 / 2, {"-r", "--unmeasured"});
    };
    {
        UniqueFd const lock(::open((store.folder / "below").c_str(), O_RDONLY | O_DIRECTORY));
        REQUIRE(::flock(lock.get(), LOCK_EX) == 0);
        auto const ran = prune();
        CHECK(ran.exit_code == 1);
        CHECK(contains(ran.err, store.folder / "below: another dkv llama watch-slots has this"));
        CHECK(fs::exists(work));
        CHECK(open_cache(store.folder / "below/9.safetensors").value()->facts().is_whole());
    }
    CHECK(prune().exit_code == 0);
    CHECK_FALSE(fs::exists(work));
    CHECK_FALSE(open_cache(store.folder / "below/9.safetensors").value()->facts().is_whole());
}

TEST_CASE("dkv prune -r locks more folders than the first limit of descriptors allows") {
    Folder const store;
    for (int index = 0; index < 40; ++index) {
        auto const below = store.folder / ("f" + std::to_string(index));
        fs::create_directory(below);
        fs::copy_file(store.file(0), below + "/a.safetensors");
    }
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
    rlimit const few{32, before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);

    auto const ran = store.prune(store.cache_bytes * 100, {"-r"});

    REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(ran.err == "");
    CHECK(contains(ran.out, "44 caches: "));
}

TEST_CASE("dkv prune: a cache that two arguments lead to counts once") {
    Folder const store;
    fs::create_directory(store.folder / "below");
    write_random_cache(store.folder / "below/9.safetensors", 9);
    Folder::set_time(store.folder / "below/9.safetensors", 900);
    fs::create_directory_symlink(store.folder.path(), store.folder / "below/up");
    for (std::string const& again : {store.folder.path(), store.folder / "below",
                                     store.folder / "below/../", store.folder / "below/up"}) {
        CAPTURE(again);
        auto const ran = store.prune(store.cache_bytes * 5, {again, "-r", "--delete", "--json"});
        CHECK(ran.exit_code == 0);
        auto const total = Json::parse(ran.out);
        CHECK(total.at("caches") == 5);
        CHECK(total.at("bytes_before") == store.cache_bytes * 5);
        CHECK(store.whole() == "0123");
    }
}

TEST_CASE("dkv prune: a cache that is written to after it was listed is left to its writer") {
    Folder const store;
    write_file(store.file(0), "broken");
    Folder::set_time(store.file(0), 1000);
    cli::PruneRequest request;
    request.folders = {store.folder.path()};
    request.budget = 1;
    request.delete_last = true;
    request.compact.policy.name = "knorm";
    cli::PruneMemory memory;
    auto const told = [&](cli::PrunedCache const& cache) {
        if (cache.path == store.file(0)) write_random_cache(store.file(1), 8);
    };
    auto const totals = cli::prune(request, {}, told, memory);
    REQUIRE(totals);
    CHECK(totals.value().fresh == 1);
    CHECK(totals.value().deleted == 2);
    CHECK(store.is_whole(1));
    CHECK_FALSE(fs::exists(store.file(2)));
    CHECK_FALSE(fs::exists(store.file(3)));
}

TEST_CASE("a cache is replaced without following a link under the work's name") {
    Folder const store;
    std::string const victim = store.folder / "victim";
    write_file(victim, "precious");
    fs::permissions(victim, fs::perms::owner_read);
    fs::permissions(store.file(0), fs::perms::owner_read | fs::perms::group_write);
    std::string const work = store.folder / ".0.safetensors.dkv-compact";
    fs::create_symlink(victim, work);
    offline::CompactRequest request;
    request.input = store.file(0);
    request.policy.name = "knorm";
    request.policy.capacity = 40;
    auto const stamp = offline::stamp_of(store.file(0)).value();
    REQUIRE(offline::compact_in_place(request, stamp, {}));
    CHECK(fs::file_size(victim) == 8);
    CHECK(fs::status(victim).permissions() == fs::perms::owner_read);
    CHECK(fs::is_regular_file(fs::symlink_status(store.file(0))));
    CHECK(fs::status(store.file(0)).permissions() ==
          (fs::perms::owner_read | fs::perms::group_write));
    CHECK(store.whole() == "123");
    CHECK_FALSE(fs::exists(fs::symlink_status(work)));

    // One that is put there after the name was cleared.
    fs::create_symlink(victim, work);
    request.input = store.file(1);
    request.output = work;
    request.links = Links::Refuse;
    request.force = true;
    auto const late = offline::compact(*make_cpu_backend(), request, {});
    REQUIRE_FALSE(late);
    CHECK(late.error().message == work + ": there is a link of this name");
    CHECK(fs::file_size(victim) == 8);
    fs::remove(work);
    request.input = store.file(0);

    fs::create_directory(work);
    auto const refused =
        offline::compact_in_place(request, offline::stamp_of(store.file(0)).value(), {});
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message == work + ": Is a directory");
}

TEST_CASE("dkv prune: a bound that is not a number is refused") {
    Folder const store;
    for (std::string const flag : {"--damage-max", "--settle-s"})
        for (std::string const value : {"nan", "-nan", "inf"}) {
            CAPTURE(flag + " " + value);
            auto const ran = store.prune(1, {"--delete", flag, value});
            CHECK(ran.exit_code == 2);
            CHECK(contains(ran.err, flag + ": "));
            CHECK(contains(ran.err, value));
            CHECK(store.whole() == "0123");
        }
}
