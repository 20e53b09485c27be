#include "cli/llama/slot_folder.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include <system_error>

#include "cli/saved/formats/llama_file.h"
#include "protocol/container/mapped_file.h"

namespace dkv::llama {
namespace {

namespace fs = std::filesystem;

bool is_slot_file(fs::path const& path) {
    auto const file = MappedFile::open(path);
    return file && is_llama_file(file.value().bytes());
}

}  // namespace

Result<SlotFolder> SlotFolder::open(FolderRequest request) {
    auto const path = request.folder;
    DKV_TRY(resolve(request.compact.policy, ""));  // Else every file would say it.
    auto lock = DKV_TRY(offline::lock_folder(path));
    offline::remove_leftovers(path);
    return SlotFolder(std::move(request), std::move(lock));
}

/// What a file is by its contents. One that cannot be compacted is told of.
SlotFolder::State SlotFolder::look(fs::path const& path, Tell const& tell) {
    if (!is_slot_file(path)) return State::Other;
    auto const cache = open_cache(path, request_.compact.open);
    if (!cache) {
        tell({path, cache.error()});
        return State::Left;
    }
    return cache.value()->facts().is_whole() ? State::Whole : State::Compacted;
}

/// Counts everything; returns what can be compacted now, in the order to do it.
Result<std::vector<SlotFolder::Slot>> SlotFolder::scan(FolderTotals& totals, Tell const& tell) {
    std::vector<Slot> whole;
    std::map<fs::path, Known> known;
    std::error_code error;
    auto const settled_ns = offline::now_ns() - std::chrono::nanoseconds(request_.settle).count();
    fs::directory_iterator at(request_.folder, error);
    for (; !error && at != fs::directory_iterator(); at.increment(error)) {
        auto const path = at->path();
        std::error_code ignored;
        if (path.filename().string().starts_with(".") || at->is_symlink(ignored) ||
            !at->is_regular_file(ignored))
            continue;
        auto const stamp = offline::stamp_of(path);
        if (!stamp) continue;  // Removed meanwhile.
        auto const before = known_.find(path);
        bool const same = before != known_.end() && before->second.stamp == stamp.value();
        bool const fresh = stamp.value().written_ns > settled_ns;
        if (fresh && !is_slot_file(path)) continue;
        Known now{.stamp = stamp.value(), .state = State::Whole};
        if (!fresh) now.state = same ? before->second.state : look(path, tell);
        if (now.state != State::Other) {
            ++totals.slots;
            totals.bytes += now.stamp.bytes;
        }
        totals.fresh += fresh ? 1 : 0;
        totals.compacted += now.state == State::Compacted ? 1 : 0;
        totals.left += now.state == State::Left ? 1 : 0;
        if (now.state == State::Whole && !fresh) whole.push_back({path, now.stamp});
        if (!fresh) known.emplace(path, now);
    }
    if (error) return Error{ErrorCode::Io, request_.folder.string() + ": " + error.message()};
    known_ = std::move(known);
    std::ranges::sort(whole, [](Slot const& a, Slot const& b) {
        return std::tuple(a.stamp.written_ns, b.stamp.bytes, a.path) <
               std::tuple(b.stamp.written_ns, a.stamp.bytes, b.path);
    });
    return whole;
}

Result<FolderTotals> SlotFolder::pass(offline::Progress const& progress, Tell const& tell) {
    FolderTotals totals;
    for (auto const& slot : DKV_TRY(scan(totals, tell))) {
        if (totals.bytes <= request_.budget) break;
        auto outcome = compact(slot, progress);
        if (!outcome && outcome.error().code == ErrorCode::Cancelled) return outcome.error();
        bool const done = static_cast<bool>(outcome);
        auto& known = known_[slot.path];
        if (done && !request_.dry_run) {
            auto const stamp = offline::stamp_of(slot.path);
            if (stamp) known.stamp = stamp.value();
        }
        known.state = done ? State::Compacted : State::Left;
        (done ? totals.compacted : totals.left) += 1;
        if (done)
            totals.bytes -= outcome.value().file_bytes_before - outcome.value().file_bytes_after;
        tell({slot.path, std::move(outcome)});
    }
    return totals;
}

Result<offline::CompactOutcome> SlotFolder::compact(Slot const& slot,
                                                    offline::Progress const& progress) {
    auto request = request_.compact;
    request.input = slot.path;
    request.dry_run = request_.dry_run;
    return offline::compact_in_place(std::move(request), slot.stamp, progress);
}

}  // namespace dkv::llama
