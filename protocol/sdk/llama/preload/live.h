// One llama.cpp context of a program that knows nothing of dkv: when its prompts begin and end,
// what of them was compressed, and which cuts of a compressed sequence stay true.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "protocol/sdk/llama/dkv_llama.h"
#include "protocol/sdk/llama/preload/real.h"

namespace dkv::llama {

struct LlamaDeleter {
    void operator()(dkv_llama* llama) const noexcept { dkv_llama_close(llama); }
};

/// Called from the program's calls of llama.cpp, which are one after the other.
class Live {
public:
    /// Attaches to the context; one that is not supported is left as it is, which is said on
    /// stderr.
    Live(Real const& functions, llama_context* context);
    Live(Live const&) = delete;
    Live& operator=(Live const&) = delete;

    bool is_attached() const noexcept { return llama_ != nullptr; }
    llama_memory_i* memory() const { return real_.llama_get_memory(context_); }

    /// Around the decoding of a batch. Returns false: a sequence is lost, and the batch must fail.
    bool begin_batch() noexcept;
    void end_batch(bool decoded) noexcept;
    /// The program reads what was decoded: a prompt has ended.
    void read_logits() noexcept;

    /// What the scheduler is to call: eval() and, through it, the program's own.
    void set_callback(EvalCallback callback, void* data) noexcept;
    dkv_llama* llama() const noexcept { return llama_.get(); }

    /// As llama_memory_seq_rm. false: cells of these positions are no longer theirs, and stay.
    bool remove(std::int32_t sequence, std::int32_t begin, std::int32_t end) noexcept;
    void copied(std::int32_t from, std::int32_t to) noexcept;
    void kept_only(std::int32_t sequence) noexcept;
    void cleared() noexcept;
    void shifted(std::int32_t sequence) noexcept;
    /// From where on the sequence's cells are those of their positions; -1: all are, or it is
    /// empty.
    std::int32_t firm_from(std::int32_t sequence) const noexcept;
    /// As llama_memory_seq_pos_min: the first position at which the sequence may be cut. A server
    /// asks before it looks how much of a new prompt it has.
    std::int32_t first_position(std::int32_t sequence) noexcept;
    /// The program put a state in. `state`: its bytes, empty: they are read back.
    void put_state(std::int32_t sequence, std::span<std::byte const> state) noexcept;
    void put_all_states() noexcept;

private:
    struct Prompt {
        std::int32_t sequence;
        std::int32_t first;    ///< The position of its first token.
        bool is_over = false;  ///< Its logits were read.
    };

    std::int32_t last(std::int32_t sequence) const {
        return real_.llama_memory_seq_pos_max(memory(), sequence);
    }
    std::int32_t sequences() const noexcept { return static_cast<std::int32_t>(firm_.size()); }
    void watch() noexcept;
    /// Returns false: the sequence is lost.
    bool finish() noexcept;
    bool may_remove(std::int32_t sequence, std::int32_t begin) const noexcept;
    void leave_whole(char const* reason) noexcept;
    /// A prompt that is not one, or will not be needed: nothing is said.
    void drop() noexcept;
    void forget(std::int32_t sequence) noexcept;
    std::int32_t common_tail(dkv_llama_report const& report) const noexcept;
    void say_once(char const* what, char const* why) noexcept;

    Real const& real_;
    llama_context* const context_;
    std::unique_ptr<dkv_llama, LlamaDeleter> llama_;
    EvalCallback user_callback_ = nullptr;
    void* user_data_ = nullptr;
    std::vector<std::int32_t> firm_;     ///< [sequences] as firm_from()
    std::vector<std::int32_t> before_;   ///< [sequences] last position before the batch.
    std::optional<std::int32_t> asked_;  ///< For the first position, since the last batch.
    std::optional<std::int32_t> next_;   ///< The sequence that the program has made room in.
    std::optional<Prompt> prompt_;       ///< Whose queries are remembered.
    std::vector<std::string> said_;
};

}  // namespace dkv::llama
