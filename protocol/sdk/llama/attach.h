// One llama.cpp context: its checks, its prompts, and putting the kept cells in.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "protocol/sdk/llama/cell_memory.h"
#include "protocol/sdk/llama/dkv_llama.h"
#include "protocol/sdk/llama/plan.h"

namespace dkv::llama {

struct EngineDeleter {
    void operator()(dkv_engine* engine) const noexcept { dkv_engine_close(engine); }
};

class Attachment {
public:
    Attachment(Library library, dkv_llama_options const& options);
    Attachment(Attachment const&) = delete;
    Attachment& operator=(Attachment const&) = delete;

    bool eval(ggml_tensor* tensor, bool ask);

    /// Errors: as dkv_llama.h says, here and below.
    Result<void> attach(llama_context* context);
    Result<void> begin(std::int32_t sequence);
    void leave_whole(std::string_view reason);
    /// The report says what came of it, the reason of a failure too.
    Result<void> compress(dkv_policy const* policy, llama_context* target);
    Result<void> adopted(std::uint64_t returned, std::uint64_t peak, std::uint64_t final);
    Result<void> positions(std::uint32_t layer, std::uint32_t head, std::int32_t* out) const;
    dkv_llama_report const& report() const noexcept { return report_; }

private:
    void begin_report();
    Result<void> try_compress(dkv_policy const* policy, llama_context* target);
    Result<void> check_target(llama_context* target) const;
    Result<void> open_engine(Geometry const& geometry);
    Result<void> adopt(std::span<std::byte const> whole,
                       std::span<std::byte const> kept,
                       llama_context* target);
    /// Pages of the attached context's free cells. Nothing while another sequence may have cells
    /// beside them.
    Returned give_back(std::span<std::byte const> kept, std::uint32_t tokens) const noexcept;
    bool has_other_cells() const;
    void say_returned(Returned const& returned);
    /// Whether the context has the state's rows.
    bool stores(llama_context* context, std::span<std::byte const> state) const noexcept;
    Result<void> put_state(llama_context* context, std::span<std::byte const> state);
    Result<std::vector<std::uint32_t>> model_layers(StateRows const& rows, dkv_arena* arena) const;
    llama_memory_i* memory(llama_context* context) const {
        return library_.llama_get_memory(context);
    }

    Library const library_;
    EvalWatch watch_;
    CellMemory cells_;
    std::optional<std::string> endpoint_;
    std::string model_;
    std::uint32_t timeout_ms_;
    dkv_llama_callback user_eval_;
    void* user_data_;
    bool user_wants_ = false;

    llama_context* context_ = nullptr;
    ModelShape shape_;
    bool is_interleaved_ = false;  ///< Dims (2i, 2i + 1) of a key turn together.
    bool is_sliding_ = false;      ///< The model has sliding windows (iSWA).
    std::int32_t sequence_ = 0;    ///< Of the prompt.
    std::unique_ptr<dkv_engine, EngineDeleter> engine_;
    Geometry engine_geometry_;
    bool waits_ = true;  ///< For a sidecar.
    Session session_;    ///< Of the last prompt that was compressed; closed before the engine.
    std::vector<std::uint32_t> layers_;    ///< Those that it compressed, as the model numbers them.
    std::vector<std::int32_t> positions_;  ///< [layers_, kv_heads, cells]
    dkv_llama_report report_{};
};

}  // namespace dkv::llama
