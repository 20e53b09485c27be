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
    // llama-server goes back to a checkpoint of the sliding layers alone.
    if (real_.llama_model_n_swa(real_.llama_get_model(context_)) > 0) {
        say("left as it is: the model has sliding windows, and a program that does not know of dkv "
            "would cut them apart from the full layers");
        return;
    }
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
    say("attached to " + (model.empty() ? "a model" : model) +
        ": the sidecar decides what its prompts keep");
}

void Live::set_callback(EvalCallback callback, void* data) noexcept {
    user_callback_ = callback;
    user_data_ = data;
}

bool Live::begin_batch() {
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
void Live::watch() {
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
        say_once(std::string("a prompt is left whole: ") + dkv_llama_last_error());
}

void Live::end_batch(bool decoded) {
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

bool Live::finish() {
    auto const prompt = *std::exchange(prompt_, std::nullopt);
    auto const tokens = last(prompt.sequence) + 1;
    if (tokens - prompt.first < kPromptMin) {
        dkv_llama_leave_whole(llama_.get(), "it is too short");
        return true;
    }
    dkv_llama_report report{};
    report.struct_bytes = sizeof report;
    auto const status = dkv_llama_compress(llama_.get(), nullptr, nullptr, &report);
    if (report.compressed != 0) {
        firm_[static_cast<std::size_t>(prompt.sequence)] = common_tail(report);
    } else if (*report.reason != '\0') {
        say_once(std::string("a prompt is left whole: ") + report.reason);
    }
    return status != DKV_INTERNAL;
}

void Live::leave_whole(std::string const& reason) {
    prompt_.reset();
    dkv_llama_leave_whole(llama_.get(), reason.c_str());
    say_once("a prompt is left whole: " + reason);
}

/// The first position from which on every layer and KV head kept all tokens.
std::int32_t Live::common_tail(dkv_llama_report const& report) const {
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
}

std::int32_t Live::first_position(std::int32_t sequence) {
    if (prompt_ && prompt_->is_over && prompt_->sequence == sequence) finish();
    return std::max(real_.llama_memory_seq_pos_min(memory(), sequence), firm_from(sequence));
}

std::int32_t Live::firm_from(std::int32_t sequence) const noexcept {
    return sequence >= 0 && sequence < sequences() ? firm_[static_cast<std::size_t>(sequence)]
                                                   : kNone;
}

bool Live::may_remove(std::int32_t sequence, std::int32_t begin) const {
    if (sequence >= 0) return firm_from(sequence) <= begin;
    return std::ranges::all_of(firm_, [&](auto firm) { return firm <= begin; });
}

bool Live::remove(std::int32_t sequence, std::int32_t begin, std::int32_t end) {
    bool const whole = begin <= 0 && end < 0;
    if (!whole && !may_remove(sequence, begin)) {
        say_once(
            "a part of a compressed sequence is not cut out: its cells are not those of its "
            "positions");
        return false;
    }
    auto const before = prompt_ ? last(prompt_->sequence) : kNone;
    if (!real_.llama_memory_seq_rm(memory(), sequence, begin, end)) return false;
    if (prompt_ && last(prompt_->sequence) != before) {
        if (before + 1 - prompt_->first < kPromptMin)
            prompt_.reset();
        else
            leave_whole("a part of it was removed");
    }
    for (std::int32_t one = 0; whole && one < sequences(); ++one)
        if (sequence < 0 || one == sequence) firm_[static_cast<std::size_t>(one)] = kNone;
    // A server makes room behind each part of a prompt, also where there is nothing to remove.
    bool const goes_on = prompt_ && prompt_->sequence == sequence && !prompt_->is_over;
    if (end < 0 && sequence >= 0 && sequence < sequences() && !goes_on) next_ = sequence;
    return true;
}

/// Its cells are gone, or others.
void Live::forget(std::int32_t sequence) {
    firm_[static_cast<std::size_t>(sequence)] = kNone;
    if (prompt_ && prompt_->sequence == sequence) leave_whole("it was removed");
    if (next_ == sequence) next_.reset();
}

void Live::copied(std::int32_t from, std::int32_t to) {
    if (to >= 0 && to < sequences()) firm_[static_cast<std::size_t>(to)] = firm_from(from);
}

void Live::kept_only(std::int32_t sequence) {
    for (std::int32_t one = 0; one < sequences(); ++one)
        if (one != sequence) forget(one);
}

void Live::cleared() {
    for (std::int32_t one = 0; one < sequences(); ++one)
        forget(one);
}

void Live::shifted(std::int32_t sequence) const {
    for (std::int32_t one = 0; one < sequences(); ++one)
        if ((sequence < 0 || one == sequence) && firm_from(one) != kNone)
            say("the program shifts sequence " + std::to_string(one) +
                ", which is compressed: its text is wrong from here on. Run it with "
                "--no-context-shift --cache-reuse 0");
}

/// A state that was saved after its sequence was compressed has fewer cells than positions. How
/// much of its end every head kept is not known: the last token, by which it goes on.
void Live::put_state(std::int32_t sequence, std::span<std::byte const> state) {
    if (!is_attached() || sequence < 0 || sequence >= sequences()) return;
    forget(sequence);
    std::vector<std::byte> read;
    if (state.empty()) {
        read.resize(real_.llama_state_seq_get_size(context_, sequence));
        real_.llama_state_seq_get_data(context_, reinterpret_cast<std::uint8_t*>(read.data()),
                                       read.size(), sequence);
        state = read;
    }
    auto const tokens = last(sequence) + 1;
    if (tokens == 0) return;
    auto const layout = parse_llama(state, false);
    if (!layout) say_once("a state that was put in is not understood: " + layout.error().message);
    if (!layout || std::cmp_less(layout.value().positions.size(), tokens))
        firm_[static_cast<std::size_t>(sequence)] = tokens - 1;
}

void Live::put_all_states() {
    for (std::int32_t sequence = 0; sequence < sequences(); ++sequence)
        put_state(sequence, {});
}

void Live::say_once(std::string const& line) {
    if (said_.size() >= kSaidMax || std::ranges::find(said_, line) != said_.end()) return;
    said_.push_back(line);
    say(line + " (said once)");
}

}  // namespace dkv::llama
