// dkv_golden_check FILE.json …: exits 0 when every number of every case agrees, 1 at the first that
// does not, 2 when a file is not what it should be.
#include <exception>

#include <fmt/format.h>

#include "tools/golden/golden_check.h"
#include "tools/golden/golden_file.h"

namespace {

constexpr int kDisagrees = 1;
constexpr int kMalformed = 2;

int refuse(std::string_view file, dkv::Error const& error) {
    fmt::print(stderr, "{}: {}\n", file, error.message);
    return kMalformed;
}

int check_file(char const* file) {
    auto const cases = dkv::golden::read_golden(file);
    if (!cases) return refuse(file, cases.error());
    for (auto const& golden : cases.value()) {
        auto const different = dkv::golden::check_case(golden);
        if (!different)
            return refuse(file, {different.error().code, fmt::format("case {}: {}", golden.name,
                                                                     different.error().message)});
        if (auto const& at = different.value()) {
            fmt::print(stderr, "{}: case {}: {}: the file says {}, dkv says {}\n", file,
                       golden.name, at->field, at->theirs, at->ours);
            return kDisagrees;
        }
    }
    fmt::print("{}: {} cases agree\n", file, cases.value().size());
    return 0;
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 2) {
        fmt::print(stderr, "usage: dkv_golden_check FILE.json …\n");
        return kMalformed;
    }
    for (int i = 1; i < argc; ++i)
        if (int const status = check_file(argv[i]); status != 0) return status;
    return 0;
} catch (std::exception const& error) {
    fmt::print(stderr, "dkv_golden_check: {}\n", error.what());
    return kMalformed;
}
