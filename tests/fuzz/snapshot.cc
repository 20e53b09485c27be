#include "tests/fuzz/snapshot.h"

#include <doctest/doctest.h>

#include "protocol/base/printable.h"

namespace dkv::fuzz {
namespace {

constexpr std::size_t kTextBytesMax = 1100;

std::string text_of(flatbuffers::String const* text) {
    if (text == nullptr || text->size() == 0) return {};
    auto out = text->str();
    if (!is_clean(out)) FAIL("no text for people: ", out);
    return out;
}

/// Which policy, how large; a profile's weights do not come back.
std::string words_of(wire::Policy const* policy) {
    if (policy == nullptr) return {};
    auto words = text_of(policy->name());
    if (policy->capacity()) words += " " + std::to_string(*policy->capacity());
    if (policy->window()) words += " " + std::to_string(*policy->window());
    if (policy->profile() != nullptr) words += " " + text_of(policy->profile()->name());
    return words;
}

/// An empty list is not on the wire.
template <class T>
flatbuffers::Vector<T> const& list(flatbuffers::Vector<T> const* sent) {
    static constexpr std::uint32_t kNone = 0;
    return sent == nullptr ? *reinterpret_cast<flatbuffers::Vector<T> const*>(&kNone) : *sent;
}

}  // namespace

bool is_clean(std::string const& text) {
    return text.size() <= kTextBytesMax && printable(text, text.size()) == text;
}

Snapshot snapshot_of(wire::SavingsInfo const& info) {
    Snapshot out;
    for (auto const* const one : list(info.instances())) {
        for (auto const* const text :
             {one->engine(), one->model(), one->device(), one->last_error()})
            text_of(text);
        InstanceView view{.alive = one->alive(),
                          .generation = one->generation(),
                          .regions = one->regions(),
                          .mapped_bytes = one->mapped_bytes(),
                          .sessions_open = one->sessions_open(),
                          .sessions_total = one->sessions_total(),
                          .sessions_failed = one->sessions_failed(),
                          .bytes_returned = one->savings()->bytes_returned(),
                          .policy = words_of(one->policy()),
                          .policy_source = text_of(one->policy_source())};
        // One that came back and went again is there twice: the last word counts.
        if (out.is_alive(one->instance())) continue;
        out.instances.insert_or_assign(one->instance(), std::move(view));
        out.idle_ms[one->instance()] = one->idle_ms();
    }
    for (auto const* const one : list(info.sessions())) {
        SessionView view{.state = static_cast<SessionState>(one->state()),
                         .layers_done = one->layers_done(),
                         .prompt_tokens = one->prompt_tokens(),
                         .policy = words_of(one->policy()),
                         .lengths = {},
                         .bytes_kept = one->bytes_kept(),
                         .bytes_returned = one->bytes_returned(),
                         .error = text_of(one->error())};
        for (auto const length : list(one->lengths()))
            view.lengths.push_back(length);
        out.sessions.insert_or_assign({one->instance(), one->session()}, std::move(view));
    }
    return out;
}

}  // namespace dkv::fuzz
