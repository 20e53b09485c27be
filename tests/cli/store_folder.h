// Folders of caches that are really there, for dkv ls, verify and prune.
#pragma once

#include <fcntl.h>

#include <doctest/doctest.h>
#include <sys/stat.h>

#include "cli/saved/formats/saved_cache.h"
#include "tests/cli/fakes.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

namespace dkv::test {

/// Four caches of 80 tokens, "0" the oldest, and a file that is not a cache.
struct Folder {
    TempDir folder;
    std::uint64_t cache_bytes = 0;

    Folder() {
        for (int index = 0; index < 4; ++index) {
            auto const path = write_random_cache(file(index), static_cast<unsigned>(index + 1));
            set_time(path, 1000 + index);
            cache_bytes = std::filesystem::file_size(path);
        }
        write_file(folder / "notes.txt", "hello");
    }
    std::string file(int index) const { return folder / (std::to_string(index) + ".safetensors"); }
    static void set_time(std::string const& path, std::int64_t seconds) {
        timespec const times[] = {{seconds, 0}, {seconds, 0}};
        REQUIRE(::utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
    }
    Ran run(std::vector<std::string> arguments) const {
        FakeSidecar unasked;
        arguments.insert(arguments.begin() + 1, folder.path());
        return run_dkv(std::move(arguments), unasked);
    }
    Ran prune(std::uint64_t budget, std::vector<std::string> more = {}) const {
        more.insert(more.begin(), {"prune", "--budget", std::to_string(budget), "--policy", "knorm",
                                   "--window", "8"});
        return run(more);
    }
    bool is_whole(int index) const {
        auto const cache = open_cache(file(index));
        REQUIRE(cache);
        return cache.value()->facts().is_whole();
    }
    std::string whole() const {
        std::string names;
        for (int index = 0; index < 4; ++index)
            if (std::filesystem::exists(file(index)) && is_whole(index))
                names += std::to_string(index);
        return names;
    }
};

}  // namespace dkv::test
