#include "cli/saved/store/record.h"

#include <chrono>
#include <fstream>
#include <span>

#include <sys/stat.h>
#include <system_error>

#include "cli/render/json.h"
#include "protocol/container/new_file.h"

namespace dkv::cli {
namespace {

constexpr char const* kRecordName = ".dkv-verified.jsonl";

void add_seen(SeenFile& seen, std::filesystem::path const& path) {
    struct stat facts {};
    if (::stat(path.c_str(), &facts) != 0) return;
    seen.bytes += static_cast<std::uint64_t>(facts.st_size);
    seen.written_ns = std::max(seen.written_ns, std::int64_t{facts.st_mtim.tv_sec} * 1'000'000'000 +
                                                    facts.st_mtim.tv_nsec);
}

}  // namespace

SeenFile seen_file(std::filesystem::path const& path) {
    SeenFile seen;
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) {
        add_seen(seen, path);
        return seen;
    }
    for (std::filesystem::directory_iterator at(path, error);
         !error && at != std::filesystem::directory_iterator(); at.increment(error))
        if (at->is_regular_file(error)) add_seen(seen, at->path());
    return seen;
}

std::int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
}

VerifiedRecord VerifiedRecord::read(std::filesystem::path const& folder) {
    VerifiedRecord record(folder);
    std::ifstream file(folder / kRecordName);
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
