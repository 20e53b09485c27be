#include "protocol/sdk/silence.h"

#include <algorithm>
#include <utility>

namespace dkv::sdk {
namespace {

constexpr milliseconds kStepMin{1000};
constexpr milliseconds kStepMax{30'000};
// The loop of a sidecar that lives answers in milliseconds, and on a loaded machine in this.
constexpr milliseconds kAnswerWithin{250};

std::string text_of(Clock::duration time) {
    if (time < std::chrono::seconds(1))
        return std::to_string(std::chrono::floor<milliseconds>(time).count()) + " ms";
    return std::to_string(std::chrono::floor<std::chrono::seconds>(time).count()) + " s";
}

}  // namespace

void Silence::ask(Deadline now) {
    if (!asked_at_) asked_at_ = now;
}

void Silence::excuse(Deadline now) {
    if (asked_at_) asked_at_ = now;
}

bool Silence::hear() {
    asked_at_.reset();
    if (!is_hung()) return false;
    held_.reset();
    return true;
}

void Silence::answer() {
    held_.reset();
}

void Silence::clear() {
    asked_at_.reset();
    held_.reset();
}

bool Silence::run_out(Deadline begin, Deadline now) {
    auto const enough = std::min<Clock::duration>(kAnswerWithin, now - begin);
    if (asked_at_ && now - *asked_at_ >= enough) hang(*asked_at_, now);
    return is_hung();
}

bool Silence::run_out_unanswered(std::string request, Deadline begin, Deadline now) {
    if (run_out(begin, now)) return true;
    if (!held_) {
        held_ = Held{.hung = false,
                     .request = std::move(request),
                     .since = begin,
                     .again_at = now + kStepMin,
                     .step = kStepMin};
    } else if (now >= held_->again_at) {  // Else another prompt that waited at the same time.
        lengthen(*held_);
        held_->again_at = now + held_->step;
    }
    return false;
}

void Silence::hang(Deadline since, Deadline now) {
    if (is_hung()) return;
    held_ = Held{.hung = true, .request = {}, .since = since, .again_at = now, .step = kStepMin};
}

bool Silence::holds(Deadline now) const {
    return held_ && (held_->hung || now < held_->again_at);
}

Deadline Silence::next_probe(Deadline now, Clock::duration most) {
    held_->again_at = now + std::min(held_->step, most);
    if (held_->step <= most) lengthen(*held_);
    return held_->again_at;
}

void Silence::lengthen(Held& held) const {
    held.step = std::min<Clock::duration>(2 * held.step, kStepMax);
}

Error Silence::reason(std::string const& endpoint, Deadline now) const {
    auto const again = std::chrono::ceil<std::chrono::seconds>(held_->again_at - now).count();
    auto const next = again > 0 ? " in " + std::to_string(again) + " s" : std::string(" now");
    if (held_->hung)
        return Error{ErrorCode::DeadlineExceeded,
                     "the sidecar at " + endpoint + " has not answered for " +
                         text_of(now - held_->since) +
                         ": it is asked again in the background, next" + next};
    return Error{ErrorCode::DeadlineExceeded, "the sidecar at " + endpoint +
                                                  " answers heartbeats and did not answer " +
                                                  held_->request + " in time: the first prompt" +
                                                  next + " or later asks it again"};
}

}  // namespace dkv::sdk
