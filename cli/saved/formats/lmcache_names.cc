#include "cli/saved/formats/lmcache_names.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <set>
#include <span>

#include <fmt/format.h>
#include <sys/stat.h>

#include "cli/saved/formats/folder.h"
#include "cli/saved/formats/layer_count.h"

namespace dkv {
namespace {

std::optional<std::uint64_t> number_in(std::filesystem::path const& path) {
    std::string const name = path.stem().string();
    auto const end = std::min(name.find_first_not_of("0123456789"), name.size());
    bool const hash = end < name.size() && std::isalnum(static_cast<unsigned char>(name[end])) != 0;
    return hash ? std::nullopt : number_of<std::uint64_t>(std::string_view(name).substr(0, end));
}
/// That the chunks' numbers are 0 … n-1, each once.
Result<void> check_numbers(std::filesystem::path const& folder,
                           std::span<std::filesystem::path const> chunks) {
    std::set<std::uint64_t> found;
    for (auto const& path : chunks)
        if (!found.insert(*number_in(path)).second)
            return located(folder,
                           corrupt(fmt::format("chunk {} is there twice: {} is the second",
                                               *number_in(path), path.filename().string())));
    auto const missing = missing_numbers(found);
    if (missing.empty()) return {};
    return located(folder,
                   corrupt(fmt::format("missing: chunk {}; of the chunks 0 … {}, {} are there",
                                       missing, *found.rbegin(), found.size())));
}

/// By the times of their writing.
Result<std::vector<std::filesystem::path>> by_time(std::filesystem::path const& folder,
                                                   std::vector<std::filesystem::path> chunks) {
    using Written = std::pair<std::pair<std::int64_t, std::int64_t>, std::filesystem::path>;
    std::vector<Written> written;
    for (auto const& path : chunks) {
        struct stat status {};
        if (::stat(path.c_str(), &status) != 0)
            return Error{ErrorCode::Io, path.string() + ": " + std::strerror(errno)};
        written.push_back({{status.st_mtim.tv_sec, status.st_mtim.tv_nsec}, path});
    }
    std::ranges::sort(written);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
        if (i > 0 && written[i].first == written[i - 1].first)
            return located(folder, unsupported(fmt::format(
                                       "nothing tells which of {} and {} comes first: call the "
                                       "chunks 0.data, 1.data …",
                                       written[i - 1].second.filename().string(),
                                       written[i].second.filename().string())));
        chunks[i] = written[i].second;
    }
    return chunks;
}

}  // namespace

ChunkName chunk_name(std::filesystem::path const& path) {
    std::vector<std::string> fields{""};
    for (char const c : path.stem().string()) {
        if (c == '@')
            fields.emplace_back();
        else
            fields.back() += c;
    }
    if (fields.size() < 5) return {};
    std::size_t const model = number_of<std::uint32_t>(fields[1]) ? 0 : 1;
    return {fields[model], fields[model + 1], fields[model + 2]};
}

bool has_number(std::filesystem::path const& path) {
    return number_in(path).has_value();
}

Result<std::vector<std::filesystem::path>> lmcache_chunks(std::filesystem::path const& folder) {
    auto found = DKV_TRY(files_of(folder, ".data"));
    if (found.files.empty()) return std::move(found.files);
    DKV_TRY(check_no_leftover(found));
    if (!std::ranges::all_of(found.files, has_number)) {
        if (found.files.size() == 1) return std::move(found.files);
        return by_time(folder, std::move(found.files));
    }
    DKV_TRY(check_numbers(folder, found.files));
    return std::move(found.files);
}

}  // namespace dkv
