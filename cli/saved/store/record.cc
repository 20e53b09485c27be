#include "cli/saved/store/record.h"

#include <span>
#include <sstream>

#include <system_error>

#include "cli/render/json.h"
#include "protocol/container/mapped_file.h"
#include "protocol/container/new_file.h"

namespace dkv::cli {
namespace {

constexpr char const* kRecordName = ".dkv-verified.jsonl";

/// Empty unless it is a regular file, and no link: other users may write to the folder.
std::string text_of(std::filesystem::path const& path) {
    auto const file = MappedFile::open(path, Links::Refuse);
    if (!file) return {};
    auto const bytes = file.value().bytes();
    return {reinterpret_cast<char const*>(bytes.data()), bytes.size()};
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
    auto file = DKV_TRY(NewFile::create(folder_ / kRecordName, {}, Links::Refuse));
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
