#pragma once

#include <filesystem>
#include <string>

#include <doctest/doctest.h>

namespace dkv::test {

/// A directory of mode 0700 that goes with the test.
class TempDir {
public:
    TempDir() {
        std::string name = "/tmp/dkv-test-XXXXXX";
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        path_ = name;
    }
    TempDir(TempDir const&) = delete;
    TempDir& operator=(TempDir const&) = delete;
    ~TempDir() { std::filesystem::remove_all(path_); }

    std::string operator/(std::string const& name) const { return path_ + "/" + name; }
    std::string const& path() const noexcept { return path_; }

private:
    std::string path_;
};

}  // namespace dkv::test
