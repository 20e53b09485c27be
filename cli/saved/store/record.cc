#include "cli/saved/store/record.h"

#include <cerrno>
#include <fcntl.h>
#include <span>
#include <sstream>
#include <unistd.h>

#include <fmt/format.h>
#include <sys/stat.h>
#include <system_error>

#include "cli/render/json.h"
#include "protocol/base/unique_fd.h"
#include "protocol/container/new_file.h"

namespace dkv::cli {
namespace {

constexpr char const* kRecordName = ".dkv-verified.jsonl";

/// Does not follow links and does not wait for a FIFO: other users may write to the folder. Empty
/// unless it is a regular file.
std::string text_of(std::filesystem::path const& path) {
    UniqueFd const file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    struct stat facts {};
    if (!file || ::fstat(file.get(), &facts) != 0 || !S_ISREG(facts.st_mode)) return {};
    std::string text(static_cast<std::size_t>(facts.st_size), '\0');
    std::size_t size = 0;
    while (size < text.size()) {
        auto const read = ::read(file.get(), text.data() + size, text.size() - size);
        if (read < 0 && errno == EINTR) continue;
        if (read <= 0) break;
        size += static_cast<std::size_t>(read);
    }
    text.resize(size);
    return text;
}

/// Errors: AlreadyExists for what is not a file: a link would lead the record elsewhere.
Result<void> check_replaceable(std::filesystem::path const& path) {
    struct stat facts {};
    if (::lstat(path.c_str(), &facts) != 0 || S_ISREG(facts.st_mode)) return {};
    return Error{
        ErrorCode::AlreadyExists,
        fmt::format("{}: {} of this name is in the way; the record goes into a file", path.string(),
                    S_ISLNK(facts.st_mode)   ? "a link"
                    : S_ISDIR(facts.st_mode) ? "a folder"
                                             : "a FIFO, a device or a socket")};
}

}  // namespace

VerifiedRecord VerifiedRecord::read(std::filesystem::path const& folder) {
    VerifiedRecord record(folder);
    std::istringstream file(text_of(folder / kRecordName));
    for (std::string line; std::getline(file, line);) {
        auto const row = Json::parse(line, nullptr, false);
        if (!row.is_object() || !row.contains("name")) continue;
        try {
            record.verdicts_[row.at("name").get<std::string>()] = {
                .seen = {row.at("bytes").get<std::uint64_t>(),
                         row.at("written_ns").get<std::int64_t>()},
                .fingerprint = row.at("fingerprint").get<std::string>(),
                .good = row.at("good").get<bool>(),
                .at_ns = row.at("at_ns").get<std::int64_t>()};
        } catch (Json::exception const&) {
        }
    }
    return record;
}

Verdict const* VerifiedRecord::of(std::string const& name) const {
    auto const found = verdicts_.find(name);
    return found == verdicts_.end() ? nullptr : &found->second;
}

Verified VerifiedRecord::state(std::string const& name, SeenFile const& now) const {
    auto const* const verdict = of(name);
    if (verdict == nullptr) return Verified::Never;
    if (verdict->seen != now) return Verified::Changed;
    return verdict->good ? Verified::Good : Verified::Bad;
}

Result<void> VerifiedRecord::write() const {
    DKV_TRY(check_replaceable(folder_ / kRecordName));
    auto file = DKV_TRY(NewFile::create(folder_ / kRecordName));
    std::string text;
    std::error_code ignored;
    for (auto const& [name, verdict] : verdicts_) {
        if (!std::filesystem::exists(folder_ / name, ignored)) continue;
        Json const row{{"name", name},
                       {"bytes", verdict.seen.bytes},
                       {"written_ns", verdict.seen.written_ns},
                       {"fingerprint", verdict.fingerprint},
                       {"good", verdict.good},
                       {"at_ns", verdict.at_ns}};
        text += row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    }
    DKV_TRY(file.append(std::as_bytes(std::span(text))));
    return file.commit();
}

}  // namespace dkv::cli
