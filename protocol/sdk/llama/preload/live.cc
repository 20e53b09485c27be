#include "protocol/sdk/llama/preload/live.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "protocol/container/llama_layout.h"

namespace dkv::llama {
namespace {

// Fewer tokens are a draft's, or a short turn: no policy scores with so few.
constexpr std::int32_t kPromptMin = 16;
constexpr std::int32_t kNone = -1;
constexpr std::size_t kSaidMax = 100;
constexpr char const* kWhole = "a prompt is left whole";

void say(std::string const& line) {
    std::fprintf(stderr, "dkv: %s\n", line.c_str());
}

std::string name_of_model(Real const& real, llama_context* context) {
    std::array<char, 256> text{};
    auto const length = real.llama_model_meta_val_str(real.llama_get_model(context), "general.name",
                                                      text.data(), text.size());
    return length < 0 ? std::string() : std::string(text.data());
}

}  // namespace

Live::Live(Real const& functions, llama_context* context) : real_(functions), context_(context) {
    auto const count = real_.llama_n_seq_max(context_);
    firm_.assign(count, kNone);
    before_.assign(count, kNone);
    auto const model = name_of_model(real_, context_);
    dkv_llama_options options{};
    options.struct_bytes = sizeof options;
    options.library = real_.path.c_str();
    options.model = model.c_str();
    options.eval = [](ggml_tensor* tensor, bool ask, void* data) {
        auto const& live = *static_cast<Live*>(data);
        if (live.user_callback_ != nullptr)
            return live.user_callback_(tensor, ask, live.user_data_);
        return !ask;  // It wants nothing, and stops nothing.
    };
    options.eval_data = this;
    dkv_llama* opened = nullptr;
    auto const status = dkv_llama_open(&options, &opened);
    llama_.reset(opened);
    if (status != DKV_OK || dkv_llama_attach(llama_.get(), context_) != DKV_OK) {
        say(std::string("left as it is: ") + dkv_llama_last_error());
        llama_.reset();
        return;
    }
    // llama-server goes back to a checkpoint of the sliding layers alone.
    if (real_.llama_model_n_swa(real_.llama_get_model(context_)) > 0) {
        say("left as it is: the model has sliding windows, and a program that does not know of dkv "
            "would cut them apart from the full layers");
        llama_.reset();
        return;
    }
    put_all_states();
    say("attached to " + (model.empty() ? "a model" : model) +
        ": the sidecar decides what its prompts keep");
}

void Live::set_callback(EvalCallback callback, void* data) noexcept {
    user_callback_ = callback;
    user_data_ = data;
}

bool Live::begin_batch() noexcept {
    if (!is_attached()) return true;
    if (prompt_ && prompt_->is_over && !finish()) return false;
    if (!prompt_) watch();
    if (prompt_)
        for (std::int32_t sequence = 0; sequence < sequences(); ++sequence)
            before_[static_cast<std::size_t>(sequence)] = last(sequence);
    return true;
}

/// A batch does not say whose tokens it has. A server has just made room for the prompt in its
/// sequence; the first of another program's goes into an empty context.
void Live::watch() noexcept {
    if (!next_) {
        for (std::int32_t sequence = 0; sequence < sequences(); ++sequence)
            if (last(sequence) != kNone) return;
        next_ = 0;
    }
    auto const sequence = *std::exchange(next_, std::nullopt);
    if (firm_from(sequence) != kNone) return;  // It was compressed, and goes on.
    if (dkv_llama_begin(llama_.get(), sequence) == DKV_OK)
        prompt_ = Prompt{sequence, last(sequence) + 1};
    else
        say_once(kWhole, dkv_llama_last_error());
}

void Live::end_batch(bool decoded) noexcept {
    asked_.reset();
    if (!prompt_) return;
    if (!decoded) return leave_whole("its batch was not decoded");
    for (std::int32_t sequence = 0; sequence < sequences(); ++sequence)
        if (sequence != prompt_->sequence &&
            last(sequence) != before_[static_cast<std::size_t>(sequence)])
            return leave_whole("another sequence was decoded beside it");
}

void Live::read_logits() noexcept {
    if (prompt_) prompt_->is_over = true;
}

bool Live::finish() noexcept {
    auto const prompt = *prompt_;
    if (last(prompt.sequence) + 1 - prompt.first < kPromptMin) {
        drop();
        return true;
    }
    prompt_.reset();
    dkv_llama_report report{};
    report.struct_bytes = sizeof report;
    auto const status = dkv_llama_compress(llama_.get(), nullptr, nullptr, &report);
    if (report.compressed != 0)
        firm_[static_cast<std::size_t>(prompt.sequence)] = common_tail(report);
    else if (*report.reason != '\0')
        say_once(kWhole, report.reason);
    return status != DKV_INTERNAL;
}

void Live::leave_whole(char const* reason) noexcept {
    auto const tokens = last(prompt_->sequence) + 1 - prompt_->first;
    drop();
    if (tokens >= kPromptMin) say_once(kWhole, reason);
}

void Live::drop() noexcept {
    prompt_.reset();
    dkv_llama_leave_whole(llama_.get(), "it was not needed any more");
}

/// The first position from which on every layer and KV head kept all tokens.
std::int32_t Live::common_tail(dkv_llama_report const& report) const noexcept try {
    auto const* const model = real_.llama_get_model(context_);
    auto const layers = static_cast<std::uint32_t>(real_.llama_model_n_layer(model));
    auto const heads = static_cast<std::uint32_t>(real_.llama_model_n_head_kv(model));
    std::vector<std::int32_t> kept(report.cells);
    auto firm = static_cast<std::int32_t>(report.tokens) - static_cast<std::int32_t>(report.cells);
    for (std::uint32_t layer = 0; layer < layers; ++layer)
        for (std::uint32_t head = 0; head < heads; ++head) {
            if (dkv_llama_positions(llama_.get(), layer, head, kept.data()) != DKV_OK)
                return static_cast<std::int32_t>(report.tokens);
            auto expected = static_cast<std::int32_t>(report.tokens);
            for (auto at = kept.rbegin(); at != kept.rend() && *at == expected - 1; ++at)
                --expected;
            firm = std::max(firm, expected);
        }
    return firm;
} catch (...) {  // Out of memory.
    return static_cast<std::int32_t>(report.tokens);
}

std::int32_t Live::first_position(std::int32_t sequence) noexcept {
    asked_ = sequence;
    if (prompt_ && prompt_->is_over && prompt_->sequence == sequence) {
        auto const next = last(sequence) + 1;
        if (!finish()) return next;  // It is lost: nothing of it is there.
    }
    return std::max(real_.llama_memory_seq_pos_min(memory(), sequence), firm_from(sequence));
}

std::int32_t Live::firm_from(std::int32_t sequence) const noexcept {
    return sequence >= 0 && sequence < sequences() ? firm_[static_cast<std::size_t>(sequence)]
                                                   : kNone;
}

bool Live::may_remove(std::int32_t sequence, std::int32_t begin) const noexcept {
    if (sequence >= 0) return firm_from(sequence) <= begin;
    return std::ranges::all_of(firm_, [&](auto firm) { return firm <= begin; });
}

bool Live::remove(std::int32_t sequence, std::int32_t begin, std::int32_t end) noexcept {
    bool const whole = begin <= 0 && end < 0;
    if (!whole && !may_remove(sequence, begin)) {
        say_once("a part of a compressed sequence is not cut out",
                 "its cells are not those of its positions");
        return false;
    }
    auto const before = prompt_ ? last(prompt_->sequence) : kNone;
    if (!real_.llama_memory_seq_rm(memory(), sequence, begin, end)) return false;
    if (prompt_ && last(prompt_->sequence) != before) {
        bool const is_noted = !whole && before + 1 - prompt_->first >= kPromptMin;
        drop();
        if (is_noted) say_once(kWhole, "a part of it was removed");
    }
    for (std::int32_t one = 0; whole && one < sequences(); ++one)
        if (sequence < 0 || one == sequence) firm_[static_cast<std::size_t>(one)] = kNone;
    // Behind each part of a prompt, and behind a draft that was refused, a server makes room, too.
    bool const goes_on = prompt_ && prompt_->sequence == sequence && !prompt_->is_over;
    if (end < 0 && sequence >= 0 && sequence < sequences() && !goes_on &&
        (whole || asked_ == sequence))
        next_ = sequence;
    return true;
}

/// Its cells are gone, or others.
void Live::forget(std::int32_t sequence) noexcept {
    firm_[static_cast<std::size_t>(sequence)] = kNone;
    if (prompt_ && prompt_->sequence == sequence) drop();
    if (next_ == sequence) next_.reset();
}

/// llama.cpp may copy the rows only with the next batch: those of a prompt must not move before.
void Live::copied(std::int32_t from, std::int32_t to) noexcept {
    if (prompt_ && (prompt_->sequence == from || prompt_->sequence == to))
        leave_whole("its sequence was copied");
    if (to >= 0 && to < sequences()) {
        auto& firm = firm_[static_cast<std::size_t>(to)];
        firm = std::max(firm, firm_from(from));
    }
}

void Live::kept_only(std::int32_t sequence) noexcept {
    for (std::int32_t one = 0; one < sequences(); ++one)
        if (one != sequence) forget(one);
}

void Live::cleared() noexcept {
    for (std::int32_t one = 0; one < sequences(); ++one)
        forget(one);
}

void Live::shifted(std::int32_t sequence) noexcept {
    for (std::int32_t one = 0; one < sequences(); ++one)
        if ((sequence < 0 || one == sequence) && firm_from(one) != kNone)
            say_once("the program shifts a compressed sequence, whose text is wrong from here on",
                     "run it with --no-context-shift --cache-reuse 0");
}

/// A state that was saved after its sequence was compressed has fewer cells than positions. How
/// much of its end every head kept is not known: the last token, by which it goes on.
void Live::put_state(std::int32_t sequence, std::span<std::byte const> state) noexcept {
    if (!is_attached() || sequence < 0 || sequence >= sequences()) return;
    forget(sequence);
    auto const tokens = last(sequence) + 1;
    if (tokens == 0) return;
    auto& firm = firm_[static_cast<std::size_t>(sequence)];
    firm = tokens - 1;  // Unless it is seen to be whole.
    try {
        std::vector<std::byte> read;
        if (state.empty()) {
            read.resize(real_.llama_state_seq_get_size(context_, sequence));
            real_.llama_state_seq_get_data(context_, reinterpret_cast<std::uint8_t*>(read.data()),
                                           read.size(), sequence);
            state = read;
        }
        auto const layout = parse_llama(state, false);
        if (!layout)
            say_once("a state that was put in is not understood", layout.error().message.c_str());
        else if (std::cmp_equal(layout.value().positions.size(), tokens))
            firm = kNone;
    } catch (...) {
        say_once("a state that was put in was not looked at", "out of memory");
    }
}

void Live::put_all_states() noexcept {
    for (std::int32_t sequence = 0; sequence < sequences(); ++sequence)
        put_state(sequence, {});
}

void Live::say_once(char const* what, char const* why) noexcept try {
    auto line = std::string(what) + ": " + why;
    if (said_.size() >= kSaidMax || std::ranges::find(said_, line) != said_.end()) return;
    say(line + " (said once)");
    said_.push_back(std::move(line));
} catch (...) {
}

}  // namespace dkv::llama
