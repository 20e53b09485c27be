#include "cli/render/sweep.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

std::string size_label(Json const& asked) {
    if (asked.contains("capacity")) return asked.at("capacity").dump();
    if (asked.contains("ratio")) return human_share(asked.at("ratio").get<double>());
    if (asked.contains("bytes")) return human_bytes(asked.at("bytes").get<std::uint64_t>());
    if (asked.contains("keep_mass"))
        return "mass " + human_share(asked.at("keep_mass").get<double>());
    return "all";
}

/// What makes the lines of a table: everything asked for but the size.
std::string policy_label(Json const& asked, std::set<std::string> const& varied) {
    std::string label = asked.at("policy").get<std::string>();
    for (auto const& [key, value] : asked.items())
        if (varied.contains(key))
            label += fmt::format(" {} {}", key,
                                 value.is_string() ? value.get<std::string>() : value.dump());
    return one_line(label);
}

/// The parameters of which there is more than one value: the others need no telling.
std::set<std::string> varied_parameters(std::vector<Json> const& rows) {
    std::map<std::string, std::set<std::string>> values;
    for (auto const& row : rows)
        for (auto const& [key, value] : row.at("asked").items())
            if (key != "policy" && key != "capacity" && key != "ratio" && key != "bytes" &&
                key != "keep_mass")
                values[key].insert(value.dump());
    std::set<std::string> varied;
    for (auto const& [key, all] : values)
        if (all.size() > 1) varied.insert(key);
    return varied;
}

struct Mean {
    double sum = 0;
    std::size_t count = 0;
    void add(Json const& list) {
        for (auto const& value : list)
            sum += value.get<double>();
        count += list.size();
    }
};

/// In the order of their first appearance.
void add_once(std::vector<std::string>& names, std::string const& name) {
    if (std::ranges::find(names, name) == names.end()) names.push_back(name);
}

std::string means_table(std::vector<Json> const& rows,
                        std::set<std::string> const& varied,
                        char const* what,
                        std::function<std::string(double)> const& show,
                        Style const& style) {
    std::vector<std::string> policies;
    std::vector<std::string> sizes;
    std::map<std::pair<std::string, std::string>, Mean> means;
    bool any = false;
    for (auto const& row : rows) {
        auto const& asked = row.at("asked");
        auto const policy = policy_label(asked, varied);
        auto const size = size_label(asked);
        add_once(policies, policy);
        add_once(sizes, size);
        if (!row.contains(what) || !row.at(what).is_array()) continue;
        means[{policy, size}].add(row.at(what));
        any = true;
    }
    if (!any) return "";
    std::vector<Column> columns{{"POLICY", Column::Align::Left}};
    for (auto const& size : sizes)
        columns.push_back({size, Column::Align::Right});
    Table table(std::move(columns));
    for (auto const& policy : policies) {
        std::vector<std::string> cells{policy};
        for (auto const& size : sizes) {
            auto const found = means.find({policy, size});
            cells.push_back(found == means.end() ? "-"
                                                 : show(found->second.sum /
                                                        static_cast<double>(found->second.count)));
        }
        table.add(std::move(cells));
    }
    return table.text(style);
}

/// "", or " (a, b, c and 2 more)".
std::string in_files(std::vector<std::string> const& files) {
    constexpr std::size_t kShown = 3;
    std::size_t const shown = std::min(files.size(), kShown);
    auto const more = files.size() > shown ? fmt::format(" and {} more", files.size() - shown) : "";
    return fmt::format(
        " ({}{})", fmt::join(files.begin(), files.begin() + static_cast<long>(shown), ", "), more);
}

std::string failures_text(std::vector<Json> const& rows) {
    std::vector<std::string> reasons, every;
    std::map<std::string, std::vector<std::string>> files;
    for (auto const& row : rows) {
        auto const file = one_line(row.value("file", ""));
        add_once(every, file);
        auto const reason = one_line(row.value("error", ""));
        if (reason.empty()) continue;
        add_once(reasons, reason);
        add_once(files[reason], file);
    }
    std::string text;
    for (auto const& reason : reasons)
        text += "- " + reason + (every.size() > 1 ? in_files(files[reason]) : "") + "\n";
    return text.empty() ? text : "\nNot to be had:\n" + text;
}

}  // namespace

std::string sweep_text(std::vector<Json> const& rows, Style const& style) {
    auto const varied = varied_parameters(rows);
    auto const damages = means_table(
        rows, varied, "damage", [](double mean) { return fmt::format("{:.4f}", mean); }, style);
    auto const masses = means_table(
        rows, varied, "mass_kept", [](double mean) { return human_share(mean); }, style);
    auto const errors = means_table(
        rows, varied, "error_l2", [](double mean) { return fmt::format("{:.4f}", mean); }, style);
    std::string text;
    if (!damages.empty())
        text +=
            "Damage: share of the attention that is lost, the window's and what is predicted of "
            "later text,\nheads weighted by the model's profile. It ranks policies; the least is "
            "the best.\n" +
            damages;
    else if (!masses.empty() || !errors.empty())
        text +=
            "No damage is known: there is no profile of this model (dkv calibrate MODEL makes "
            "one).\nThe numbers below see the window alone, and often rank policies "
            "backwards.\n";
    if (!masses.empty())
        text += fmt::format(
            "{}Share of the window's attention that is kept, mean over files and layers\n{}",
            text.empty() ? "" : "\n", masses);
    if (!errors.empty())
        text += fmt::format("{}Relative L2 error of the attention's output\n{}",
                            text.empty() ? "" : "\n", errors);
    if (text.empty()) text += "No attention is known: the files have no queries.\n";
    return text + failures_text(rows);
}

}  // namespace dkv::cli
