// The warp's rendezvous.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "tools/cuda_emu/src/block.h"

namespace cudaemu {
namespace {

// Not memcpy: the thread sanitizer would see one lane write into another's stack.
void copy_words(void* to, void const* from, std::size_t bytes) {
    auto* target = static_cast<unsigned char*>(to);
    auto const* source = static_cast<unsigned char const*>(from);
    for (; bytes >= 8; bytes -= 8, target += 8, source += 8)
        __builtin_memcpy(target, source, 8);
    for (; bytes != 0; --bytes)
        *target++ = *source++;
}

Meeting& meeting_of(Warp& warp, unsigned mask) {
    for (auto const& meeting : warp.meetings)
        if (meeting->mask == mask) return *meeting;
    Unobserved const unobserved;  // Other lanes read it.
    auto& made = *warp.meetings.emplace_back(std::make_unique<Meeting>());
    made.mask = mask;
    return made;
}

/// A lane that I wait for waits for me, elsewhere: neither would ever come.
void check_masks(Warp const& warp, Meeting const& mine, unsigned bit, Place place) {
    for (auto const& other : warp.meetings)
        if (other.get() != &mine && (other->arrived & mine.mask) != 0 && (other->mask & bit) != 0) {
            std::fprintf(stderr, "cudaemu: lanes %08x wait at %s:%u with mask %08x\n",
                         other->arrived, other->place.file_name(), other->place.line(),
                         other->mask);
            fail("*_sync masks overlap: lanes wait for each other at different masks", place);
        }
}

void finish(Block& block, unsigned warp, Meeting& meeting) {
    unsigned const lanes = meeting.arrived;
    meeting.met[meeting.round] = lanes;
    meeting.arrived = 0;
    meeting.round ^= 1U;
    block.make_ready(warp, lanes);
}

/// Registers the caller at the meeting of its mask.
Meeting& come(Block& block,
              Lane& me,
              unsigned mask,
              void const* mine,
              std::size_t bytes,
              Rendezvous what,
              Place place) {
    Warp& warp = block.warp(me.warp);
    unsigned const bit = 1U << me.lane;
    me.place = place;
    me.doing = what.name;
    if ((mask & bit) == 0) fail("a lane is not in its own *_sync mask");
    if (bytes > kLaneBytes) fail("more than 64 bytes of one lane");
    Meeting& meeting = meeting_of(warp, mask);
    if (warp.meetings.size() > 1) check_masks(warp, meeting, bit, place);
    if (meeting.arrived == 0) {
        meeting.what = what;
        meeting.place = place;
        meeting.bytes = bytes;
    } else if (meeting.what.name != what.name || meeting.bytes != bytes ||
               !same(meeting.place, place)) {
        std::fprintf(stderr, "cudaemu: lanes %08x wait in %s at %s:%u\n", meeting.arrived,
                     meeting.what.name, meeting.place.file_name(), meeting.place.line());
        fail("warp divergence: *_sync reached at different places");
    }
    copy_words(meeting.data[meeting.round][me.lane], mine, bytes);
    meeting.arrived |= bit;
    me.state = State::AtWarp;
    return meeting;
}

}  // namespace

void finish_meetings(Block& block, unsigned warp) {
    Warp& all = block.warp(warp);
    for (auto const& meeting : all.meetings)
        if (meeting->arrived != 0 && meeting->arrived == (meeting->mask & all.live))
            finish(block, warp, *meeting);
}

Gathered exchange(
    unsigned mask, void const* mine, std::size_t bytes, Rendezvous what, Place place) {
    Block& all = block();
    Lane& me = all.current();
    Meeting& meeting = come(all, me, mask, mine, bytes, what, place);
    unsigned const round = meeting.round;
    if (what.orders_memory) release(&meeting.met[round]);
    if (meeting.arrived == (mask & all.warp(me.warp).live)) finish(all, me.warp, meeting);
    all.yield(me);
    if (what.orders_memory) acquire(&meeting.met[round]);
    return {meeting.data[round], meeting.met[round]};
}

void collective(void const* mine,
                std::size_t bytes,
                void* result,
                std::size_t result_bytes,
                Compute compute,
                char const* name,
                Place place) {
    Block& all = block();
    Lane& me = all.current();
    if (all.warp(me.warp).live != ~0U)
        fail("an instruction of the whole warp, and lanes have returned", place);
    Meeting& meeting = come(all, me, ~0U, mine, bytes, {name}, place);
    auto const& results = meeting.results[meeting.round];
    if (meeting.arrived == ~0U) {
        // On this lane's stack, where the thread sanitizer may see it written.
        alignas(64) std::byte out[kLanes][kLaneBytes];
        compute(meeting.data[meeting.round], out);
        for (unsigned lane = 0; lane < kLanes; ++lane)
            copy_words(meeting.results[meeting.round][lane], out[lane], result_bytes);
        finish(all, me.warp, meeting);
    }
    all.yield(me);
    copy_words(result, results[me.lane], result_bytes);
}

unsigned living_lanes() {
    Block& all = block();
    return all.warp(all.current().warp).live;
}

void push_copy(AsyncCopy const& copy) {
    block().current().copies.push_back(copy);
}

void commit_group() {
    Lane& me = block().current();
    me.groups.push_back(me.copies.size());
}

std::span<AsyncCopy const> due_copies(unsigned pending, bool every_copy) {
    Lane& me = block().current();
    std::size_t count = 0;
    if (every_copy) {
        count = me.copies.size();
        me.groups.clear();
    } else if (me.groups.size() > pending) {
        std::size_t const groups = me.groups.size() - pending;
        count = me.groups[groups - 1];
        me.groups.erase(me.groups.begin(), me.groups.begin() + static_cast<std::ptrdiff_t>(groups));
        for (std::size_t& end : me.groups)
            end -= count;
    }
    auto const end = me.copies.begin() + static_cast<std::ptrdiff_t>(count);
    me.due.assign(me.copies.begin(), end);
    me.copies.erase(me.copies.begin(), end);
    return me.due;
}

}  // namespace cudaemu
