#include "cli/doctor/bundle.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <ctime>
#include <fstream>
#include <regex>
#include <string_view>
#include <unistd.h>

#include <fmt/chrono.h>
#include <sys/utsname.h>

namespace dkv::cli::doctor {
namespace {

using Json = nlohmann::ordered_json;

constexpr char const* kRemoved = "(removed)";
/// A shorter value ("1", "on") would be taken out of numbers and words that have nothing to do
/// with it.
constexpr std::size_t kSecretBytesMin = 4;

constexpr std::array<std::string_view, 9> kSecretWords{
    "TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "AUTH", "COOKIE"};
constexpr std::array<std::string_view, 15> kNamesShown{
    "DKV_", "CUDA_",  "NVIDIA_", "VLLM_",       "HF_",  "TRANSFORMERS_", "TORCH",   "PYTORCH_",
    "OMP_", "PYTHON", "LD_",     "KUBERNETES_", "XDG_", "LC_",           "NO_COLOR"};

void replace_all(std::string& text, std::string const& what, std::string_view with) {
    for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + with.size()))
        text.replace(at, what.size(), with);
}

/// A home folder as a whole name: /root is not in /rootfs.
void replace_folder(std::string& text, std::string const& folder) {
    for (auto at = text.find(folder); at != std::string::npos; at = text.find(folder, at + 1)) {
        auto const end = at + folder.size();
        bool const goes_on =
            end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) != 0 ||
                                  text[end] == '-' || text[end] == '_');
        if (!goes_on) text.replace(at, folder.size(), "~");
    }
}

}  // namespace

Variables environment_variables() {
    Variables all;
    for (char** at = environ; at != nullptr && *at != nullptr; ++at) {
        std::string_view const line = *at;
        auto const equals = line.find('=');
        if (equals != std::string_view::npos)
            all.emplace_back(line.substr(0, equals), line.substr(equals + 1));
    }
    std::ranges::sort(all);
    return all;
}

Scrubber::Scrubber(Variables const& variables) {
    for (auto const& [name, value] : variables) {
        if (is_secret(name) && value.size() >= kSecretBytesMin) secrets_.push_back(value);
        if (name == "HOME" && value.size() > 1) homes_.push_back(value);
    }
    std::ranges::sort(secrets_, [](auto const& a, auto const& b) { return a.size() > b.size(); });
}

bool Scrubber::is_secret(std::string const& name) {
    std::string upper = name;
    std::ranges::transform(upper, upper.begin(),
                           [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return std::ranges::any_of(
        kSecretWords, [&](std::string_view word) { return upper.find(word) != std::string::npos; });
}

std::string Scrubber::clean(std::string text) const {
    static std::regex const password("://[^/@\\s]*@");
    static std::regex const home("/home/[^/\\s:\"']+");
    for (auto const& secret : secrets_)
        replace_all(text, secret, kRemoved);
    for (auto const& folder : homes_)
        replace_folder(text, folder);
    text = std::regex_replace(text, password, "://(removed)@");
    return std::regex_replace(text, home, "~");
}

Json Scrubber::clean(Json const& json) const {
    if (json.is_string()) return clean(json.get<std::string>());
    if (json.is_array()) {
        Json out = Json::array();
        for (auto const& item : json)
            out.push_back(clean(item));
        return out;
    }
    if (!json.is_object()) return json;
    Json out = Json::object();
    for (auto const& [key, value] : json.items())
        out[clean(key)] = clean(value);
    return out;
}

Json variables_json(Variables const& variables) {
    Json out = Json::object();
    for (auto const& [name, value] : variables) {
        bool const shown = std::ranges::any_of(kNamesShown, [&name = name](std::string_view begin) {
            return name.starts_with(begin);
        });
        if (shown) out[name] = Scrubber::is_secret(name) ? kRemoved : value;
    }
    return out;
}

Json system_json() {
    Json out = Json::object();
    out["made_at"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
    utsname names{};
    if (::uname(&names) == 0) {
        out["kernel"] = std::string(names.sysname) + " " + names.release;
        out["machine"] = names.machine;
    }
    std::ifstream release("/etc/os-release");
    for (std::string line; std::getline(release, line);) {
        if (!line.starts_with("PRETTY_NAME=")) continue;
        line.erase(0, 12);
        std::erase(line, '"');
        out["distribution"] = line;
    }
    return out;
}

}  // namespace dkv::cli::doctor
