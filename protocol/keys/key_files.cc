#include "protocol/keys/key_files.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <string_view>
#include <unistd.h>

#include <sys/stat.h>
#include <system_error>
#include <zmq.h>

#include "protocol/base/peer.h"
#include "protocol/base/unique_fd.h"

namespace dkv::keys {
namespace {

constexpr std::size_t kKeyChars = 40;
constexpr std::size_t kKeyBytes = 32;
constexpr std::size_t kFileBytesMax = 4096;
constexpr mode_t kReadByOthers = S_IRWXG | S_IRWXO;
constexpr mode_t kWrittenByOthers = S_IWGRP | S_IWOTH;

std::string quoted(std::filesystem::path const& path) {
    return "'" + path.string() + "'";
}

Error io(std::string const& what) {
    return {errno == ENOENT ? ErrorCode::NotFound : ErrorCode::Io,
            what + ": " + std::generic_category().message(errno)};
}

std::string octal(mode_t mode) {
    std::string text = "0000";
    for (auto digit = text.rbegin(); digit != text.rend(); ++digit, mode >>= 3U)
        *digit = static_cast<char>('0' + (mode & 7U));
    return text;
}

Result<void> check_owner(std::string const& what, struct stat const& info) {
    if (is_trusted(info.st_uid)) return {};
    return Error{
        ErrorCode::PermissionDenied,
        what + " belongs to user " + std::to_string(info.st_uid) + ", not to this user or root"};
}

/// The text of a small file that only this user and root had a hand in.
Result<std::string> read_guarded(std::filesystem::path const& file, mode_t forbidden) {
    auto const what = "key file " + quoted(file);
    // A FIFO must not hang the reader.
    UniqueFd const opened(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat info {};
    if (!opened || ::fstat(opened.get(), &info) != 0) return io("cannot open " + what);
    if (!S_ISREG(info.st_mode)) return Error{ErrorCode::InvalidArgument, what + " is not a file"};
    DKV_TRY(check_owner(what, info));
    if ((info.st_mode & forbidden) != 0) {
        bool const is_secret = forbidden == kReadByOthers;
        return Error{ErrorCode::PermissionDenied,
                     what + " has mode " + octal(info.st_mode & 07777U) + ": others can " +
                         (is_secret ? "use it; chmod 600 makes it yours alone"
                                    : "write to it; chmod 644 closes it to them")};
    }
    std::string text(kFileBytesMax, '\0');
    auto const bytes = ::read(opened.get(), text.data(), text.size());
    if (bytes < 0) return io("cannot read " + what);
    text.resize(static_cast<std::size_t>(bytes));
    return text;
}

bool is_key(std::string const& text) {
    std::array<std::uint8_t, kKeyBytes> bytes{};
    return text.size() == kKeyChars && zmq_z85_decode(bytes.data(), text.c_str()) != nullptr;
}

/// What stands after `name = ` in quotes; "" where the file has no such line.
std::string value_of(std::string_view text, std::string_view name) {
    while (!text.empty()) {
        auto const end = std::min(text.find('\n'), text.size());
        auto line = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
        if (!line.starts_with(name)) continue;
        line.remove_prefix(name.size());
        // No key has a quotation mark in it.
        auto const open = line.find('"');
        auto const close = line.rfind('"');
        if (open == std::string_view::npos || close == open) continue;
        if (line.substr(0, open).find_first_not_of(" \t=") != std::string_view::npos) continue;
        return std::string(line.substr(open + 1, close - open - 1));
    }
    return {};
}

std::string file_text(KeyPair const& pair, bool secret) {
    auto text = std::string("# A ZeroMQ CURVE ") + (secret ? "key pair" : "public key") +
                " of dkv (dkv keys).\n" +
                (secret ? "# SECRET: it stays on this machine, with mode 0600.\n"
                        : "# Not secret: give it to those who should know this key.\n") +
                "metadata\ncurve\n    public-key = \"" + pair.public_key + "\"\n";
    if (secret) text += "    secret-key = \"" + pair.secret_key + "\"\n";
    return text;
}

Result<void> write_new(std::filesystem::path const& file, std::string const& text, mode_t mode) {
    UniqueFd const made(
        ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
    if (!made && errno == EEXIST)
        return Error{ErrorCode::AlreadyExists,
                     quoted(file) +
                         " is there already: a key in use is not replaced; move it away "
                         "to make a new one"};
    if (!made) return io("cannot make " + quoted(file));
    // The umask may have taken away what the owner needs.
    bool const written =
        ::fchmod(made.get(), mode) == 0 &&
        ::write(made.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
        ::fsync(made.get()) == 0;
    if (written) return {};
    auto error = io("cannot write " + quoted(file));
    ::unlink(file.c_str());
    return error;
}

Result<void> make_folder(std::filesystem::path const& folder) {
    std::error_code ignored;
    if (folder.empty() || std::filesystem::exists(folder, ignored)) return {};
    DKV_TRY(make_folder(folder.parent_path()));
    if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
        return io("cannot make folder " + quoted(folder));
    return {};
}

}  // namespace

Result<std::filesystem::path> folder() {
    for (auto const& [variable, below] :
         {std::pair("XDG_CONFIG_HOME", "dkv"), std::pair("HOME", ".config/dkv")})
        if (char const* const set = std::getenv(variable); set != nullptr && *set != '\0')
            return std::filesystem::path(set) / below;
    return Error{ErrorCode::NotFound,
                 "no folder of keys: neither XDG_CONFIG_HOME nor HOME is set; name the key files"};
}

Result<void> require_curve() {
    if (zmq_has("curve") == 1) return {};
    return Error{ErrorCode::Unsupported,
                 "this libzmq was built without CURVE (libsodium): tcp:// needs it"};
}

Result<KeyPair> make_pair() {
    DKV_TRY(require_curve());
    std::array<char, kKeyChars + 1> public_key{};
    std::array<char, kKeyChars + 1> secret_key{};
    if (zmq_curve_keypair(public_key.data(), secret_key.data()) != 0)
        return Error{ErrorCode::Io, std::string("cannot make keys: ") + zmq_strerror(zmq_errno())};
    return KeyPair{public_key.data(), secret_key.data()};
}

Result<void> write_pair(std::filesystem::path const& folder, KeyPair const& pair) {
    DKV_TRY(make_folder(folder));
    auto const secret = folder / kSecretFile;
    DKV_TRY(write_new(secret, file_text(pair, true), 0600));
    auto written = write_new(folder / kPublicFile, file_text(pair, false), 0644);
    if (!written) ::unlink(secret.c_str());  // Made just now: no one uses it.
    return written;
}

Result<KeyPair> read_pair(std::filesystem::path const& file) {
    auto const text = DKV_TRY(read_guarded(file, kReadByOthers));
    KeyPair pair{value_of(text, "public-key"), value_of(text, "secret-key")};
    auto const wrong = [&](char const* why) {
        return Error{ErrorCode::InvalidArgument, "key file " + quoted(file) + " " + why};
    };
    if (!is_key(pair.public_key) || !is_key(pair.secret_key))
        return wrong("has no key pair: dkv keys makes one");
    DKV_TRY(require_curve());
    std::array<char, kKeyChars + 1> derived{};
    if (zmq_curve_public(derived.data(), pair.secret_key.c_str()) != 0 ||
        pair.public_key != derived.data())
        return wrong("has a public key and a secret key that do not belong together");
    return pair;
}

Result<std::string> read_public_key(std::filesystem::path const& file) {
    auto const text = DKV_TRY(read_guarded(file, kWrittenByOthers));
    auto const wrong = [&](char const* why) {
        return Error{ErrorCode::InvalidArgument, "key file " + quoted(file) + " " + why};
    };
    if (!value_of(text, "secret-key").empty())
        return wrong(
            "has a secret key, which belongs on its own machine alone: dkv.key is the "
            "file to give away");
    auto key = value_of(text, "public-key");
    if (!is_key(key)) return wrong("has no public key: dkv keys makes one");
    return key;
}

Result<void> check_folder(std::filesystem::path const& folder) {
    auto const what = "folder " + quoted(folder);
    struct stat info {};
    if (::stat(folder.c_str(), &info) != 0) return io("cannot look at " + what);
    if (!S_ISDIR(info.st_mode))
        return Error{ErrorCode::InvalidArgument, quoted(folder) + " is not a folder"};
    DKV_TRY(check_owner(what, info));
    if ((info.st_mode & kWrittenByOthers) == 0) return {};
    return Error{ErrorCode::PermissionDenied,
                 what + " has mode " + octal(info.st_mode & 07777U) +
                     ": others could add keys to it; chmod 755 closes it to them"};
}

}  // namespace dkv::keys
