#include "cli/llama/launch.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <elf.h>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <unistd.h>

#include <fmt/format.h>
#include <system_error>

namespace dkv::llama {
namespace {

namespace fs = std::filesystem;

constexpr char const* kLibrary = "libdkv_llama_preload.so";

/// In a build, under a prefix, in a wheel.
Result<fs::path> library() {
    std::error_code ignored;
    fs::path const bin = fs::read_symlink("/proc/self/exe", ignored).parent_path();
    for (char const* const place : {"../lib", "../lib/dkv", ".."})
        if (auto const path = (bin / place / kLibrary).lexically_normal();
            fs::is_regular_file(path, ignored)) {
            if (path.native().find_first_of(" :") == std::string::npos) return path;
            return unsupported(fmt::format(
                "{} cannot be preloaded: LD_PRELOAD takes no path with a space or a colon",
                path.native()));
        }
    return Error{ErrorCode::NotFound, fmt::format("{} is not beside {}: install dkv whole",
                                                  kLibrary, (bin / "dkv").native())};
}

Result<fs::path> program(std::string const& name) {
    auto const is_program = [](fs::path const& path) {
        std::error_code ignored;
        return fs::is_regular_file(path, ignored) && ::access(path.c_str(), X_OK) == 0;
    };
    if (name.find('/') != name.npos) {
        if (is_program(name)) return fs::path(name);
    } else if (char const* const set = std::getenv("PATH"); set != nullptr) {
        for (std::string_view rest = set; !rest.empty();) {
            auto const end = std::min(rest.find(':'), rest.size());
            if (auto const path = fs::path(rest.substr(0, end)) / name; is_program(path))
                return path;
            rest.remove_prefix(std::min(end + 1, rest.size()));
        }
    }
    return Error{ErrorCode::NotFound, fmt::format("{} is no program", name)};
}

/// An ELF file without an interpreter: no library is loaded into it. Others, scripts too, may be.
bool is_static(fs::path const& path) {
    std::ifstream file(path, std::ios::binary);
    Elf64_Ehdr head{};
    if (!file.read(reinterpret_cast<char*>(&head), sizeof head) ||
        std::memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_ident[EI_CLASS] != ELFCLASS64)
        return false;
    for (unsigned i = 0; i < head.e_phnum; ++i) {
        Elf64_Phdr part{};
        file.seekg(static_cast<std::streamoff>(head.e_phoff + i * std::uint64_t{head.e_phentsize}));
        if (!file.read(reinterpret_cast<char*>(&part), sizeof part)) return false;
        if (part.p_type == PT_INTERP) return false;
    }
    return true;
}

}  // namespace

Error become_preloaded(std::vector<std::string> words, std::string const& endpoint) {
    auto const preloaded = library();
    if (!preloaded) return preloaded.error();
    auto const found = program(words.front());
    if (!found) return found.error();
    if (is_static(found.value()))
        return unsupported(
            fmt::format("{} loads no libraries (it is linked statically): take a llama-server that "
                        "is linked to libllama.so",
                        found.value().native()));
    std::string list = preloaded.value().native();
    if (char const* const set = std::getenv("LD_PRELOAD"); set != nullptr && *set != '\0')
        list += fmt::format(":{}", set);
    ::setenv("LD_PRELOAD", list.c_str(), 1);
    ::setenv("DKV_ENDPOINT", endpoint.c_str(), 1);
    std::signal(SIGXFSZ, SIG_DFL);  // dkv ignores it; what is ignored stays so in a new program.
    std::vector<char*> pointers;
    for (auto& word : words)
        pointers.push_back(word.data());
    pointers.push_back(nullptr);
    ::execv(found.value().c_str(), pointers.data());
    return {ErrorCode::Io, fmt::format("{}: {}", found.value().native(), std::strerror(errno))};
}

}  // namespace dkv::llama
