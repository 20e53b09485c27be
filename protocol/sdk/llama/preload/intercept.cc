// llama.cpp's functions as a preloaded library has them: each tells the context's Live what the
// program does, and calls llama.cpp's own. What llama.cpp, or dkv, calls meanwhile goes straight
// through.
#include <dlfcn.h>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "protocol/sdk/llama/preload/live.h"

namespace {

using namespace dkv::llama;

constexpr int kDecode = 1;            // LLAMA_PROCESS_TYPE_DECODE
constexpr std::int32_t kFailed = -3;  // "fatal error": the server answers with one, and goes on.

struct Context {
    llama_context* context;
    llama_memory_i* memory;
    std::unique_ptr<Live> live;
};

// Never destroyed: a program may free its context when it exits, and decode meanwhile.
std::mutex& mutex = *new std::mutex;
Context& attached = *new Context{};  // The one context of a program that has a Live.
thread_local bool is_inside = false;
thread_local Live* decoding = nullptr;

/// While llama.cpp's own code, or dkv's, calls these functions.
class Inside {
public:
    Inside() : before_(std::exchange(is_inside, true)) {}
    Inside(Inside const&) = delete;
    Inside& operator=(Inside const&) = delete;
    ~Inside() { is_inside = before_; }

private:
    bool const before_;
};

template <class Key>
Live* live_of(Key const* key, Key* Context::*field) {
    if (is_inside) return nullptr;
    std::lock_guard const lock(mutex);
    return attached.*field == key ? attached.live.get() : nullptr;
}

Live* live_of(llama_context const* context) {
    return live_of(context, &Context::context);
}

Live* live_of(llama_memory_i const* memory) {
    return live_of(memory, &Context::memory);
}

/// The first context of a program, by its first batch or state. Another one beside it is a draft
/// model's, which a server cuts together with the first and at the same position: it stays whole.
Live* live_or_new(Real const& functions, llama_context* context) {
    if (auto* const known = live_of(context); known != nullptr || is_inside) return known;
    Inside const inside;
    {
        std::lock_guard const lock(mutex);
        if (attached.live != nullptr || !is_complete(functions)) return nullptr;
    }
    try {
        auto live = std::make_unique<Live>(functions, context);
        std::lock_guard const lock(mutex);
        attached = {context, functions.llama_get_memory(context), std::move(live)};
        return attached.live.get();
    } catch (...) {
        return nullptr;  // Out of memory: it is left as it is.
    }
}

template <class Decode>
std::int32_t decode(Real const& functions, llama_context* context, Decode&& call) {
    Live* const live = live_or_new(functions, context);
    if (live == nullptr) return call();
    {
        Inside const inside;
        if (!live->begin_batch()) return kFailed;
    }
    decoding = live;
    auto const status = call();
    decoding = nullptr;
    Inside const inside;
    live->end_batch(status == 0);
    return status;
}

void read_logits(llama_context const* context) {
    if (Live* const live = live_of(context); live != nullptr) live->read_logits();
}

}  // namespace

#define DKV_REAL() real(__builtin_return_address(0))

extern "C" {

std::int32_t llama_decode(llama_context* context, Batch batch) {
    auto const& functions = DKV_REAL();
    return decode(functions, context, [&] { return functions.llama_decode(context, batch); });
}

std::int32_t llama_process(llama_context* context, int type, void* batch) {
    auto const& functions = DKV_REAL();
    auto const call = [&] { return functions.llama_process(context, type, batch); };
    return type == kDecode ? decode(functions, context, call) : call();
}

void ggml_backend_sched_set_eval_callback(ggml_backend_sched* scheduler,
                                          EvalCallback callback,
                                          void* data) {
    // A program may have ggml without llama.cpp.
    static auto* const next = reinterpret_cast<decltype(&ggml_backend_sched_set_eval_callback)>(
        dlsym(RTLD_NEXT, "ggml_backend_sched_set_eval_callback"));
    auto* const call = next != nullptr ? next : DKV_REAL().ggml_backend_sched_set_eval_callback;
    if (decoding != nullptr && decoding->is_attached()) {
        decoding->set_callback(callback, data);
        callback = dkv_llama_eval;
        data = decoding->llama();
    }
    call(scheduler, callback, data);
}

float* llama_get_logits(llama_context* context) {
    read_logits(context);
    return DKV_REAL().llama_get_logits(context);
}

float* llama_get_logits_ith(llama_context* context, std::int32_t index) {
    read_logits(context);
    return DKV_REAL().llama_get_logits_ith(context, index);
}

std::int32_t llama_get_sampled_token_ith(llama_context* context, std::int32_t index) {
    read_logits(context);
    return DKV_REAL().llama_get_sampled_token_ith(context, index);
}

bool llama_memory_seq_rm(llama_memory_i* memory,
                         std::int32_t sequence,
                         std::int32_t begin,
                         std::int32_t end) {
    auto const& functions = DKV_REAL();
    Live* const live = live_of(memory);
    if (live == nullptr) return functions.llama_memory_seq_rm(memory, sequence, begin, end);
    Inside const inside;
    return live->remove(sequence, begin, end);
}

std::int32_t llama_memory_seq_pos_min(llama_memory_i* memory, std::int32_t sequence) {
    auto const& functions = DKV_REAL();
    Live* const live = live_of(memory);
    if (live == nullptr) return functions.llama_memory_seq_pos_min(memory, sequence);
    Inside const inside;
    return live->first_position(sequence);
}

void llama_memory_seq_cp(llama_memory_i* memory,
                         std::int32_t from,
                         std::int32_t to,
                         std::int32_t begin,
                         std::int32_t end) {
    auto const& functions = DKV_REAL();
    Live* const live = live_of(memory);
    Inside const inside;
    functions.llama_memory_seq_cp(memory, from, to, begin, end);
    if (live != nullptr) live->copied(from, to);
}

void llama_memory_seq_keep(llama_memory_i* memory, std::int32_t sequence) {
    auto const& functions = DKV_REAL();
    Live* const live = live_of(memory);
    Inside const inside;
    functions.llama_memory_seq_keep(memory, sequence);
    if (live != nullptr) live->kept_only(sequence);
}

void llama_memory_seq_add(llama_memory_i* memory,
                          std::int32_t sequence,
                          std::int32_t begin,
                          std::int32_t end,
                          std::int32_t delta) {
    auto const& functions = DKV_REAL();
    if (Live* const live = live_of(memory); live != nullptr) live->shifted(sequence);
    functions.llama_memory_seq_add(memory, sequence, begin, end, delta);
}

void llama_memory_seq_div(llama_memory_i* memory,
                          std::int32_t sequence,
                          std::int32_t begin,
                          std::int32_t end,
                          int divisor) {
    auto const& functions = DKV_REAL();
    if (Live* const live = live_of(memory); live != nullptr) live->shifted(sequence);
    functions.llama_memory_seq_div(memory, sequence, begin, end, divisor);
}

/// A server that asks turns context shift and cache reuse off, and says so.
bool llama_memory_can_shift(llama_memory_i*) {
    return false;
}

void llama_memory_clear(llama_memory_i* memory, bool data) {
    auto const& functions = DKV_REAL();
    Live* const live = live_of(memory);
    Inside const inside;
    functions.llama_memory_clear(memory, data);
    if (live != nullptr) live->cleared();
}

std::size_t llama_state_seq_set_data(llama_context* context,
                                     std::uint8_t const* state,
                                     std::size_t bytes,
                                     std::int32_t sequence) {
    auto const& functions = DKV_REAL();
    Live* const live = live_or_new(functions, context);
    Inside const inside;
    auto const taken = functions.llama_state_seq_set_data(context, state, bytes, sequence);
    if (live != nullptr) live->put_state(sequence, std::as_bytes(std::span(state, bytes)));
    return taken;
}

std::size_t llama_state_seq_set_data_ext(llama_context* context,
                                         std::uint8_t const* state,
                                         std::size_t bytes,
                                         std::int32_t sequence,
                                         std::uint32_t flags) {
    auto const& functions = DKV_REAL();
    Live* const live = live_or_new(functions, context);
    Inside const inside;
    auto const taken =
        functions.llama_state_seq_set_data_ext(context, state, bytes, sequence, flags);
    if (live != nullptr) live->put_state(sequence, std::as_bytes(std::span(state, bytes)));
    return taken;
}

std::size_t llama_state_seq_load_file(llama_context* context,
                                      char const* path,
                                      std::int32_t sequence,
                                      std::int32_t* tokens,
                                      std::size_t capacity,
                                      std::size_t* count) {
    auto const& functions = DKV_REAL();
    Live* const live = live_or_new(functions, context);
    Inside const inside;
    auto const taken =
        functions.llama_state_seq_load_file(context, path, sequence, tokens, capacity, count);
    if (live != nullptr) live->put_state(sequence, {});
    return taken;
}

std::size_t llama_state_set_data(llama_context* context,
                                 std::uint8_t const* state,
                                 std::size_t bytes) {
    auto const& functions = DKV_REAL();
    Live* const live = live_or_new(functions, context);
    Inside const inside;
    auto const taken = functions.llama_state_set_data(context, state, bytes);
    if (live != nullptr) live->put_all_states();
    return taken;
}

bool llama_state_load_file(llama_context* context,
                           char const* path,
                           std::int32_t* tokens,
                           std::size_t capacity,
                           std::size_t* count) {
    auto const& functions = DKV_REAL();
    Live* const live = live_or_new(functions, context);
    Inside const inside;
    bool const taken = functions.llama_state_load_file(context, path, tokens, capacity, count);
    if (live != nullptr) live->put_all_states();
    return taken;
}

void llama_free(llama_context* context) {
    std::unique_ptr<Live> live;
    {
        std::lock_guard const lock(mutex);
        if (attached.context == context) live = std::exchange(attached, {}).live;
    }
    DKV_REAL().llama_free(context);
    // Now that nothing calls back; a sidecar may have to be told.
}

}  // extern "C"
