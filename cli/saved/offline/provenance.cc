#include "cli/saved/offline/provenance.h"

#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include "protocol/container/crc32.h"
#include "protocol/container/mapped_file.h"

namespace dkv::offline {
namespace {

constexpr std::size_t kSamples = 64;
constexpr std::size_t kSampleBytes = 16 << 10;

/// Of the samples, spread over the file from its first to its last byte.
Result<void> add_file(std::filesystem::path const& path, SourcePrint& print) {
    auto const file = DKV_TRY(MappedFile::open(path));
    auto const bytes = file.bytes();
    print.bytes += bytes.size();
    if (bytes.size() <= kSamples * kSampleBytes) {
        print.crc = crc32(print.crc, bytes);
        return {};
    }
    std::size_t const step = (bytes.size() - kSampleBytes) / (kSamples - 1);
    for (std::size_t sample = 0; sample + 1 < kSamples; ++sample)
        print.crc = crc32(print.crc, bytes.subspan(sample * step, kSampleBytes));
    print.crc = crc32(print.crc, bytes.last(kSampleBytes));
    return {};
}

/// Weights are many numbers: what tells them from others is enough.
/// Of all that decides which tokens stay: two profiles may differ in their surrogate alone.
std::uint32_t crc_of(Profile const& profile) {
    std::uint32_t const crc = crc32(0, std::as_bytes(std::span(profile.weights)));
    if (!profile.surrogate) return crc;
    return crc32(crc, std::as_bytes(std::span(profile.surrogate->weights)));
}

}  // namespace

void describe_policy(PolicyParams const& params, Provenance& provenance) {
    auto const say = [&]<class T>(char const* name, T const& value) {
        if constexpr (std::is_enum_v<T>)
            provenance[name] = name_of(value);
        else if constexpr (std::is_same_v<T, bool>)
            provenance[name] = value ? "on" : "off";
        else
            provenance[name] = fmt::format("{}", value);
    };
    say("policy", params.name);
    if (params.keep_mass)
        say("keep_mass", *params.keep_mass);
    else if (params.bytes)
        say("bytes", *params.bytes);
    else
        say("capacity", params.capacity);
    each_number(say, params);
    if (!params.profile) return;
    say("profile", params.profile->name);
    say("profile_alpha", params.profile->alpha);
    say("profile_floor", params.profile->floor);
    provenance["profile_crc32"] = fmt::format("{:08x}", crc_of(*params.profile));
}

Result<SourcePrint> source_print(std::filesystem::path const& path) {
    SourcePrint print;
    std::error_code problem;
    if (!std::filesystem::is_directory(path, problem)) {
        DKV_TRY(add_file(path, print));
        return print;
    }
    std::vector<std::filesystem::path> files;
    std::filesystem::recursive_directory_iterator entry(path, problem);
    for (; !problem && entry != std::filesystem::recursive_directory_iterator();
         entry.increment(problem))
        if (entry->is_regular_file(problem)) files.push_back(entry->path());
    if (problem)
        return Error{ErrorCode::Io, fmt::format("{}: {}", path.string(), problem.message())};
    std::ranges::sort(files);
    for (auto const& file : files) {
        std::string const name = file.lexically_relative(path).generic_string();
        print.crc = crc32(print.crc, std::as_bytes(std::span(name)));
        DKV_TRY(add_file(file, print));
    }
    return print;
}

}  // namespace dkv::offline
