#include "cli/saved/formats/folder.h"

#include <algorithm>

#include <fmt/format.h>
#include <system_error>

namespace dkv {
namespace {

constexpr std::size_t kEntriesMax = 100'000;

bool is_digit(char c) noexcept {
    return c >= '0' && c <= '9';
}

/// Cuts the number or the single other character that `text` begins with.
std::string_view next_piece(std::string_view& text) noexcept {
    std::size_t count = 1;
    if (is_digit(text.front()))
        while (count < text.size() && is_digit(text[count]))
            ++count;
    auto const piece = text.substr(0, count);
    text.remove_prefix(count);
    return piece;
}

std::string_view without_zeros(std::string_view number) noexcept {
    while (number.size() > 1 && number.front() == '0')
        number.remove_prefix(1);
    return number;
}

}  // namespace

bool comes_before(std::string_view left, std::string_view right) noexcept {
    auto const whole_left = left;
    auto const whole_right = right;
    while (!left.empty() && !right.empty()) {
        auto a = next_piece(left);
        auto b = next_piece(right);
        if (is_digit(a.front()) && is_digit(b.front())) {
            a = without_zeros(a);
            b = without_zeros(b);
            if (a.size() != b.size()) return a.size() < b.size();
        }
        if (a != b) return a < b;
    }
    if (left.empty() != right.empty()) return left.empty();
    return whole_left < whole_right;
}

Result<FolderFiles> files_of(std::filesystem::path const& folder, std::string_view extension) {
    FolderFiles found;
    std::error_code problem;
    std::filesystem::directory_iterator entry(folder, problem);
    std::size_t entries = 0;
    for (; !problem && entry != std::filesystem::directory_iterator(); entry.increment(problem)) {
        if (++entries > kEntriesMax)
            return Error{ErrorCode::LimitExceeded,
                         fmt::format("{}: more than {} files", folder.string(), kEntriesMax)};
        // Hidden ones are the system's or a copying program's.
        if (entry->path().filename().native().starts_with('.')) continue;
        if (entry->path().extension() == extension)
            found.files.push_back(entry->path());
        else if (entry->path().stem().extension() == extension)
            found.leftover = entry->path();
    }
    if (problem)
        return Error{ErrorCode::Io, fmt::format("{}: {}", folder.string(), problem.message())};
    std::ranges::sort(found.files, [](auto const& a, auto const& b) {
        return comes_before(a.filename().native(), b.filename().native());
    });
    return found;
}

}  // namespace dkv
