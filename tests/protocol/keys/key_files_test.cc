#include "protocol/keys/key_files.h"

#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/stat.h>

#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

namespace dkv::keys {
namespace {

/// Of RFC 26's worked example, so that the two halves are known to belong together.
constexpr char const* kPublic = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
constexpr char const* kSecret = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";

std::string text_of(std::string const& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

std::string written(std::string const& path, std::string const& text, mode_t mode = 0600) {
    std::ofstream(path) << text;
    REQUIRE(::chmod(path.c_str(), mode) == 0);
    return path;
}

unsigned mode_of(std::string const& path) {
    struct stat info {};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    return info.st_mode & 07777U;
}

/// An environment variable for one test.
class Variable {
public:
    Variable(char const* name, char const* value) : name_(name) {
        if (char const* const old = std::getenv(name)) old_ = old;
        value == nullptr ? ::unsetenv(name) : ::setenv(name, value, 1);
    }
    ~Variable() { old_ ? ::setenv(name_, old_->c_str(), 1) : ::unsetenv(name_); }

private:
    char const* name_;
    std::optional<std::string> old_;
};

TEST_CASE("a pair that is written is read again, and only its public half is for others") {
    test::TempDir const dir;
    auto const old_umask = ::umask(0);
    auto const pair = make_pair();
    REQUIRE(pair);

    REQUIRE(write_pair(dir / "a/b", pair.value()));

    ::umask(old_umask);
    auto const read = read_pair(dir / "a/b/dkv.key_secret");
    REQUIRE(read);
    CHECK(read.value().public_key == pair.value().public_key);
    CHECK(read.value().secret_key == pair.value().secret_key);
    auto const open = read_public_key(dir / "a/b/dkv.key");
    REQUIRE(open);
    CHECK(open.value() == pair.value().public_key);
    CHECK(text_of(dir / "a/b/dkv.key").find(pair.value().secret_key) == std::string::npos);
    CHECK(mode_of(dir / "a/b/dkv.key_secret") == 0600);
    CHECK(mode_of(dir / "a/b/dkv.key") == 0644);
    CHECK(mode_of(dir / "a/b") == 0700);
    CHECK(mode_of(dir / "a") == 0700);
}

TEST_CASE("keys that are there are not replaced, and half a pair is not left behind") {
    test::TempDir const dir;
    KeyPair const pair{kPublic, kSecret};
    auto const open = written(dir / "dkv.key", "old", 0644);

    auto const refused = write_pair(dir.path(), pair);

    REQUIRE(!refused);
    CHECK(refused.error().code == ErrorCode::AlreadyExists);
    CHECK(refused.error().message ==
          "'" + open +
              "' is there already: a key in use is not replaced; move it away to make a new one");
    CHECK(text_of(open) == "old");
    CHECK(!std::filesystem::exists(dir / "dkv.key_secret"));
    ::unlink(open.c_str());
    REQUIRE(write_pair(dir.path(), pair));
    auto const secret = text_of(dir / "dkv.key_secret");
    CHECK(!write_pair(dir.path(), {kSecret, kPublic}));
    CHECK(text_of(dir / "dkv.key_secret") == secret);
}

TEST_CASE("files of ZeroMQ's own tools are read") {
    test::TempDir const dir;
    std::string const pyzmq = std::string("#   ****  Generated on 2026-01-01 by pyzmq  ****\n\n") +
                              "metadata\n    name = \"public-key\"\ncurve\n    public-key = \"" +
                              kPublic + "\"\n";

    auto const open = read_public_key(written(dir / "a.key", pyzmq, 0644));
    auto const pair =
        read_pair(written(dir / "a.key_secret", pyzmq + "\tsecret-key=\"" + kSecret + "\"", 0400));

    REQUIRE(open);
    CHECK(open.value() == kPublic);
    REQUIRE(pair);
    CHECK(pair.value().secret_key == kSecret);
}

TEST_CASE("a secret key that others can read is refused, whichever way they can") {
    test::TempDir const dir;
    REQUIRE(write_pair(dir.path(), {kPublic, kSecret}));
    auto const file = dir / "dkv.key_secret";
    for (auto const& [mode, said] : {std::pair(0640, "0640"), {0604, "0604"}, {0660, "0660"}}) {
        REQUIRE(::chmod(file.c_str(), static_cast<mode_t>(mode)) == 0);

        auto const refused = read_pair(file);

        REQUIRE(!refused);
        CHECK(refused.error().code == ErrorCode::PermissionDenied);
        CHECK(refused.error().message == "key file '" + file + "' has mode " + said +
                                             ": others can use it; chmod 600 makes it yours alone");
    }
    REQUIRE(::chmod(file.c_str(), 0400) == 0);
    CHECK(read_pair(file));
}

TEST_CASE("a public key that others can write to is refused, and so is a folder") {
    test::TempDir const dir;
    REQUIRE(write_pair(dir.path(), {kPublic, kSecret}));
    auto const file = dir / "dkv.key";
    REQUIRE(::chmod(file.c_str(), 0664) == 0);
    CHECK(read_public_key(file).error().message ==
          "key file '" + file +
              "' has mode 0664: others can write to it; chmod 644 closes it to them");

    CHECK(check_folder(dir.path()));
    REQUIRE(::chmod(dir.path().c_str(), 0777) == 0);
    CHECK(check_folder(dir.path()).error().message ==
          "folder '" + dir.path() +
              "' has mode 0777: others could add keys to it; chmod 755 closes it to them");
    REQUIRE(::chmod(dir.path().c_str(), 0700) == 0);
    CHECK(check_folder(file).error().message == "'" + file + "' is not a folder");
    CHECK(check_folder(dir / "none").error().code == ErrorCode::NotFound);
}

TEST_CASE("files of another user are refused") {
    if (::geteuid() != 0) return;  // Only root can make one.
    test::TempDir const dir;
    REQUIRE(write_pair(dir.path(), {kPublic, kSecret}));
    auto const file = dir / "dkv.key_secret";
    REQUIRE(::chown(file.c_str(), 61001, 61001) == 0);

    CHECK(read_pair(file).error().message ==
          "key file '" + file + "' belongs to user 61001, not to this user or root");
}

TEST_CASE("what is not a key is refused, naming the file") {
    test::TempDir const dir;
    auto const pair_line = [](std::string const& open, std::string const& secret) {
        return "public-key = \"" + open + "\"\nsecret-key = \"" + secret + "\"\n";
    };
    auto const secret_as_public = written(dir / "s.key", pair_line(kPublic, kSecret));
    CHECK(read_public_key(secret_as_public).error().message ==
          "key file '" + secret_as_public +
              "' has a secret key, which belongs on its own machine alone: dkv.key is the file to "
              "give away");
    auto const mixed = written(dir / "mixed", pair_line(kSecret, kSecret));
    CHECK(read_pair(mixed).error().message ==
          "key file '" + mixed + "' has a public key and a secret key that do not belong together");
    for (std::string const text : {"", "public-key", "public-key = \"\"", "public-key = \"short\"",
                                   "public-key \"Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hI\x01\"",
                                   "a public-key = \"Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID\""}) {
        CAPTURE(text);
        auto const file = written(dir / "bad", text);
        CHECK(read_public_key(file).error().message ==
              "key file '" + file + "' has no public key: dkv keys makes one");
        CHECK(read_pair(file).error().message ==
              "key file '" + file + "' has no key pair: dkv keys makes one");
    }
    CHECK(read_pair(dir.path()).error().message == "key file '" + dir.path() + "' is not a file");
    CHECK(read_pair(dir / "none").error().code == ErrorCode::NotFound);
    CHECK(read_pair(dir / "none").error().message ==
          "cannot open key file '" + (dir / "none") + "': No such file or directory");
}

TEST_CASE("keys live where configuration does") {
    Variable const config("XDG_CONFIG_HOME", "/c");
    Variable const home("HOME", "/h");
    CHECK(folder().value() == "/c/dkv");
    Variable const no_config("XDG_CONFIG_HOME", "");
    CHECK(folder().value() == "/h/.config/dkv");
    Variable const no_home("HOME", nullptr);
    CHECK(folder().error().message ==
          "no folder of keys: neither XDG_CONFIG_HOME nor HOME is set; name the key files");
}

}  // namespace
}  // namespace dkv::keys
