#include "cli/saved/paths.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>
#include <sys/stat.h>
#include <system_error>

#include "cli/render/text.h"

namespace dkv::cli {
namespace {

namespace fs = std::filesystem;

Error io(fs::path const& path, std::error_code const& code) {
    return {ErrorCode::Io, fmt::format("{}: {}", path.string(), code.message())};
}

/// "a/b/" is named b.
fs::path name_of_path(fs::path const& path) {
    auto const normal = path.lexically_normal();
    return normal.has_filename() ? normal.filename() : normal.parent_path().filename();
}

/// Whether the folder as a whole is to be opened, if only to say why that fails.
bool is_one_cache(fs::path const& folder, OpenOptions const& options) {
    if (options.format == FileFormat::Vllm || options.format == FileFormat::Lmcache) return true;
    return !options.format && is_cache_folder(folder);
}

/// What is broken is for a message when its name says that it should be a cache.
bool is_wanted(fs::path const& path, OpenOptions const& options) {
    return path.extension() == ".safetensors" || open_cache(path, options);
}

void add_seen(SeenFile& seen, fs::path const& path) {
    struct stat facts {};
    if (::stat(path.c_str(), &facts) != 0) return;
    seen.bytes += static_cast<std::uint64_t>(facts.st_size);
    seen.written_ns = std::max(seen.written_ns, std::int64_t{facts.st_mtim.tv_sec} * 1'000'000'000 +
                                                    facts.st_mtim.tv_nsec);
}

class Search {
public:
    Search(InputFiles& found, bool recursive, OpenOptions const& options)
        : found_(found), recursive_(recursive), options_(options) {}

    Result<void> folder(fs::path const& path, fs::path const& name) {
        std::error_code error;
        std::vector<fs::directory_entry> entries;
        fs::directory_iterator at(path, error);
        for (; !error && at != fs::directory_iterator(); at.increment(error))
            entries.push_back(*at);
        if (error) return io(path, error);
        std::ranges::sort(entries, {}, [](auto const& entry) { return entry.path(); });
        for (auto const& entry : entries)
            DKV_TRY(one(entry, name / entry.path().filename()));
        return {};
    }

private:
    Result<void> one(fs::directory_entry const& entry, fs::path const& name) {
        std::error_code ignored;
        if (entry.path().filename().string().starts_with(".")) return {};
        if (entry.is_directory(ignored)) {
            // A link to a folder may lead back up.
            if (!recursive_ || entry.is_symlink(ignored)) return {};
            if (!is_one_cache(entry.path(), options_)) return folder(entry.path(), name);
            found_.files.push_back({entry.path(), name});
        } else if (entry.is_regular_file(ignored) && is_wanted(entry.path(), options_)) {
            found_.files.push_back({entry.path(), name});
        } else {
            ++found_.skipped;
        }
        return {};
    }

    InputFiles& found_;
    bool const recursive_;
    OpenOptions const& options_;
};

}  // namespace

Result<InputFiles> find_inputs(std::vector<std::string> const& paths,
                               bool recursive,
                               OpenOptions const& options) {
    InputFiles found;
    Search search(found, recursive, options);
    for (fs::path const path : paths) {
        std::error_code ignored;
        if (!fs::is_directory(path, ignored) || is_one_cache(path, options)) {
            found.files.push_back({path, name_of_path(path)});
            continue;
        }
        auto const before = found.files.size();
        auto const skipped = found.skipped;
        DKV_TRY(search.folder(path, {}));
        found.in_folder = true;
        if (found.files.size() == before)
            return Error{ErrorCode::NotFound,
                         fmt::format("{}: no saved cache is in this folder{}{}", path.string(),
                                     found.skipped == skipped
                                         ? std::string()
                                         : fmt::format(", and {} of none of the formats I know",
                                                       counted(found.skipped - skipped, "file")),
                                     recursive ? "" : "; with -r its folders count, too")};
    }
    found.in_folder = found.in_folder || found.files.size() > 1;
    return found;
}

Result<std::vector<fs::path>> outputs_of(InputFiles const& inputs,
                                         std::string const& out,
                                         bool make_folders) {
    std::error_code ignored;
    bool const into = inputs.in_folder || out.ends_with('/') || fs::is_directory(out, ignored);
    std::vector<fs::path> outputs;
    std::map<fs::path, fs::path> sources;
    for (auto const& file : inputs.files) {
        auto output = into ? out / file.name : fs::path(out);
        // A folder becomes a file.
        if (into && fs::is_directory(file.path, ignored)) output += ".safetensors";
        auto const [at, is_new] = sources.emplace(output, file.path);
        if (!is_new)
            return Error{ErrorCode::InvalidArgument,
                         fmt::format("{} and {} would both become {}", at->second.string(),
                                     file.path.string(), output.string())};
        if (into && make_folders) {
            std::error_code error;
            fs::create_directories(output.parent_path(), error);
            if (error) return io(output.parent_path(), error);
        }
        outputs.push_back(std::move(output));
    }
    return outputs;
}

fs::path place_of(fs::path const& path) {
    auto const bare = path.has_filename() ? path : path.parent_path();
    auto const name = bare.filename();
    std::error_code error;
    auto place =
        name == "." || name == ".."
            ? fs::canonical(bare, error)
            : fs::canonical(bare.has_parent_path() ? bare.parent_path() : ".", error) / name;
    return error ? path : place;
}

SeenFile seen_file(fs::path const& path) {
    SeenFile seen;
    std::error_code error;
    if (!fs::is_directory(path, error)) {
        add_seen(seen, path);
        return seen;
    }
    // As fingerprint() reads them: vLLM's folders have folders.
    for (fs::recursive_directory_iterator at(path, error);
         !error && at != fs::recursive_directory_iterator(); at.increment(error))
        if (at->is_regular_file(error)) add_seen(seen, at->path());
    return seen;
}

}  // namespace dkv::cli
