#include "protocol/container/new_file.h"

#include <array>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <functional>
#include <sched.h>
#include <sstream>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/support/bytes.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;

namespace {

std::string text_of(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

std::vector<std::string> names_in(std::string const& folder) {
    std::vector<std::string> names;
    for (auto const& entry : std::filesystem::directory_iterator(folder))
        names.push_back(entry.path().filename().string());
    return names;
}

/// Runs `body` in a child, whose exit status is what it returned.
int in_child(std::function<int()> const& body) {
    pid_t const pid = ::fork();
    if (pid == 0) ::_exit(body());
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// Not on every file system; those of a test's folder (ext4, xfs, btrfs, tmpfs) have them.
bool has_unnamed_files(std::string const& folder) {
    return static_cast<bool>(UniqueFd(::open(folder.c_str(), O_TMPFILE | O_RDWR, 0600)));
}

constexpr int kMayNot = 77;

/// Without /proc no file can be named later. For a process of one thread that ends soon.
bool hide_proc() {
    auto const user = ::getuid();
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
    test::write_file("/proc/self/uid_map", "0 " + std::to_string(user) + " 1");
    return ::mount("none", "/proc", "tmpfs", 0, nullptr) == 0;
}

struct NewFileFixture {
    test::TempDir folder;
    std::string path = folder / "out";
};

}  // namespace

TEST_CASE_FIXTURE(NewFileFixture, "a new file appears whole, and only when it is committed") {
    auto file = NewFile::create(path);
    REQUIRE(file);
    std::string const large(3U << 20U, 'x');
    std::string wanted;
    for (std::string const& piece : {std::string("head"), large, std::string("tail")}) {
        REQUIRE(file.value().append(test::bytes_of(piece)));
        wanted += piece;
    }
    REQUIRE(file.value().rewrite(0, test::bytes_of("HE")));
    REQUIRE(file.value().append(test::bytes_of("!")));
    wanted = "HE" + wanted.substr(2) + "!";
    CHECK(file.value().size() == wanted.size());
    CHECK_FALSE(std::filesystem::exists(path));

    REQUIRE(file.value().commit());

    CHECK(text_of(path) == wanted);
    CHECK(names_in(folder.path()) == std::vector<std::string>{"out"});
}

TEST_CASE_FIXTURE(NewFileFixture, "many small pieces arrive in order") {
    auto file = NewFile::create(path);
    REQUIRE(file);
    std::string wanted;
    for (int i = 0; i < 300'000; ++i) {
        std::string const piece = std::to_string(i) + ",";
        wanted += piece;
        REQUIRE(file.value().append(test::bytes_of(piece)));
    }
    REQUIRE(file.value().commit());
    CHECK(text_of(path) == wanted);
}

TEST_CASE_FIXTURE(NewFileFixture,
                  "a file that is given up leaves nothing, and the old one as it was") {
    test::write_file(path, "old");
    {
        auto file = NewFile::create(path);
        REQUIRE(file);
        REQUIRE(file.value().append(test::bytes_of(std::string(2U << 20U, 'x'))));
        auto moved = std::move(file).value();
    }
    CHECK(names_in(folder.path()) == std::vector<std::string>{"out"});
    CHECK(text_of(path) == "old");
}

TEST_CASE_FIXTURE(NewFileFixture,
                  "a writer that is killed leaves nothing, and the old file as it was") {
    test::write_file(path, "old");
    if (!has_unnamed_files(folder.path())) {
        MESSAGE("not tried: the file system has no files without a name");
        return;
    }
    std::array<int, 2> line{};
    REQUIRE(::pipe(line.data()) == 0);
    pid_t const pid = ::fork();
    if (pid == 0) {
        auto file = NewFile::create(path);
        bool const written =
            file && file.value().append(test::bytes_of(std::string(3U << 20U, 'x')));
        if (!written || ::write(line[1], "w", 1) != 1) ::_exit(1);
        while (true)
            ::pause();
    }
    char byte = 0;
    CHECK(::read(line[0], &byte, 1) == 1);
    REQUIRE(::kill(pid, SIGKILL) == 0);
    int status = 0;
    REQUIRE(::waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status));
    for (int const end : line)
        ::close(end);

    CHECK(names_in(folder.path()) == std::vector<std::string>{"out"});
    CHECK(text_of(path) == "old");
}

TEST_CASE_FIXTURE(NewFileFixture, "a name that is taken while the file is written is replaced") {
    auto file = NewFile::create(path);
    REQUIRE(file);
    REQUIRE(file.value().append(test::bytes_of(std::string("new"))));
    test::write_file(path, "another's");
    REQUIRE(file.value().commit());
    CHECK(text_of(path) == "new");
    CHECK(names_in(folder.path()) == std::vector<std::string>{"out"});
}

TEST_CASE_FIXTURE(NewFileFixture,
                  "where a file needs a name it has a temporary one until it is whole") {
    test::write_file(path, "old");
    int const result = in_child([&] {
        if (!hide_proc()) return kMayNot;
        std::string const wanted(3U << 20U, 'x');
        {
            auto given_up = NewFile::create(path);
            if (!given_up || !given_up.value().append(test::bytes_of(wanted))) return 1;
            if (names_in(folder.path()).size() != 2) return 2;
        }
        if (names_in(folder.path()).size() != 1 || text_of(path) != "old") return 3;
        auto file = NewFile::create(path);
        if (!file || !file.value().append(test::bytes_of(wanted)) || !file.value().commit())
            return 4;
        return text_of(path) == wanted && names_in(folder.path()).size() == 1 ? 0 : 5;
    });
    if (result == kMayNot) {
        MESSAGE("not tried: this machine gives no user namespace");
        return;
    }
    CHECK(result == 0);
}

TEST_CASE_FIXTURE(NewFileFixture, "what is replaced keeps its permissions, and a link its name") {
    std::string const target = folder / "target";
    test::write_file(target, "old");
    REQUIRE(::chmod(target.c_str(), 0600) == 0);
    std::filesystem::create_symlink("target", path);

    auto file = NewFile::create(path);
    REQUIRE(file);
    REQUIRE(file.value().append(test::bytes_of("new")));
    REQUIRE(file.value().commit());

    CHECK(text_of(target) == "new");
    CHECK(std::filesystem::is_symlink(path));
    struct stat status {};
    REQUIRE(::stat(target.c_str(), &status) == 0);
    CHECK((status.st_mode & 0777U) == 0600U);
}

TEST_CASE_FIXTURE(NewFileFixture, "a refused link is not followed, whenever it was put there") {
    std::string const target = folder / "target";
    test::write_file(target, "old");
    std::filesystem::create_symlink("target", path);
    auto const refused = NewFile::create(path, {}, Links::Refuse);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::AlreadyExists);
    CHECK(refused.error().message == path + ": there is a link of this name");
    std::filesystem::remove(path);

    auto file = NewFile::create(path, {}, Links::Refuse);
    REQUIRE(file);
    std::filesystem::create_symlink("target", path);
    REQUIRE(file.value().append(test::bytes_of("new")));
    REQUIRE(file.value().commit());

    CHECK(text_of(target) == "old");
    CHECK(std::filesystem::is_regular_file(std::filesystem::symlink_status(path)));
    CHECK(text_of(path) == "new");
}

TEST_CASE_FIXTURE(NewFileFixture, "a new file has the mode of the one it was made from") {
    auto const mode_of = [](std::string const& file) {
        struct stat status {};
        REQUIRE(::stat(file.c_str(), &status) == 0);
        return status.st_mode & 0777U;
    };
    auto const input = folder / "input";
    test::write_file(input, "in");
    REQUIRE(::chmod(input.c_str(), 0640) == 0);
    REQUIRE(NewFile::create(path, input).value().commit());
    CHECK(mode_of(path) == 0640U);

    SUBCASE("and where it replaces another, what both allow") {
        REQUIRE(::chmod(path.c_str(), 0604) == 0);
        REQUIRE(NewFile::create(path, input).value().commit());
        CHECK(mode_of(path) == 0600U);
    }
    SUBCASE("of a folder, what a file can have of it") {
        REQUIRE(::chmod(folder.path().c_str(), 0700) == 0);
        auto const other = folder / "other";
        REQUIRE(NewFile::create(other, folder.path()).value().commit());
        CHECK(mode_of(other) == 0600U);
    }
}

TEST_CASE_FIXTURE(NewFileFixture, "what is no file is not replaced") {
    auto const message = [&](std::string const& where, ErrorCode code) {
        auto const file = NewFile::create(where);
        REQUIRE_FALSE(file);
        CHECK(file.error().code == code);
        return file.error().message;
    };
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    CHECK(message(path, ErrorCode::AlreadyExists) == path + ": there is a FIFO of this name");
    CHECK(message(folder.path(), ErrorCode::AlreadyExists) ==
          folder.path() + ": there is a folder of this name");
    CHECK(message("/dev/null", ErrorCode::AlreadyExists) ==
          "/dev/null: there is a device or a socket of this name");
    CHECK(message(folder / "no/out", ErrorCode::Io) ==
          folder / "no/out" + ": No such file or directory");
}

TEST_CASE_FIXTURE(NewFileFixture, "a full disk is an error, and no partial file stays") {
    test::write_file(path, "old");
    int const result = in_child([&] {
        std::signal(SIGXFSZ, SIG_IGN);
        rlimit const limit{1U << 20U, 1U << 20U};
        if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
        auto file = NewFile::create(path);
        if (!file) return 2;
        // Small pieces: the buffer's own write fails.
        std::string const piece(100'000, 'x');
        for (int i = 0; i < 30; ++i) {
            auto const appended = file.value().append(test::bytes_of(piece));
            if (!appended)
                return appended.error().code == ErrorCode::Io &&
                               appended.error().message == path + ": File too large"
                           ? 0
                           : 3;
        }
        return 4;
    });
    CHECK(result == 0);
    CHECK(text_of(path) == "old");

    int const cleaned = in_child([&] {
        std::signal(SIGXFSZ, SIG_IGN);
        rlimit const limit{1000, 1000};
        if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
        {
            auto file = NewFile::create(path);
            if (!file || !file.value().append(test::bytes_of(std::string(2000, 'x')))) return 2;
            if (file.value().commit()) return 3;
        }
        return names_in(folder.path()) == std::vector<std::string>{"out"} ? 0 : 4;
    });
    CHECK(cleaned == 0);
    CHECK(text_of(path) == "old");
}

TEST_CASE_FIXTURE(NewFileFixture,
                  "room asked for ahead is filled in any order, or refused by a full disk") {
    {
        auto file = NewFile::create(path);
        REQUIRE(file);
        REQUIRE(file.value().append(test::bytes_of(std::string("a"))));
        REQUIRE(file.value().extend(3));
        REQUIRE(file.value().append(test::bytes_of(std::string("z"))));
        REQUIRE(file.value().rewrite(3, test::bytes_of(std::string("c"))));
        REQUIRE(file.value().rewrite(1, test::bytes_of(std::string("b"))));
        CHECK(file.value().size() == 5);
        REQUIRE(file.value().commit());
    }
    CHECK(text_of(path) == std::string("ab\0cz", 5));

    int const result = in_child([&] {
        std::signal(SIGXFSZ, SIG_IGN);
        rlimit const limit{1000, 1000};
        if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
        auto file = NewFile::create(path);
        if (!file) return 2;
        auto const extended = file.value().extend(2000);
        return !extended && extended.error().message == path + ": File too large" ? 0 : 3;
    });
    CHECK(result == 0);
}

TEST_CASE_FIXTURE(NewFileFixture, "a folder that may not be written is an error with its reason") {
    REQUIRE(::chmod(folder.path().c_str(), 0500) == 0);
    int const result = in_child([&] {
        if (::geteuid() == 0 && ::seteuid(65534) != 0) return 0;  // Root may not be dropped here.
        auto const file = NewFile::create(path);
        return !file && file.error().message.ends_with(": Permission denied") ? 0 : 1;
    });
    CHECK(result == 0);
    REQUIRE(::chmod(folder.path().c_str(), 0700) == 0);
}
