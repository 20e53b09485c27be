// dkv_llama.h over Attachment: no exception passes, and the last error is kept per thread.
#include <cstring>
#include <string>

#include "protocol/base/without_throwing.h"
#include "protocol/sdk/llama/attach.h"

struct dkv_llama {
    dkv::llama::Attachment attachment;
};

namespace {

using namespace dkv;

thread_local std::string last_error;

template <class Body>
dkv_status guarded(Body&& body) noexcept {
    auto const result = without_throwing(std::forward<Body>(body));
    last_error = result ? std::string() : result.error().message;
    return result ? DKV_OK : static_cast<dkv_status>(result.error().code);
}

Result<void> need(void const* pointer, char const* name) {
    if (pointer == nullptr) return invalid(std::string(name) + " is NULL");
    return {};
}

/// Errors: InvalidArgument for NULL, or a struct that is not this version's.
template <class Struct>
Result<void> need_struct(Struct const* given, char const* name) {
    DKV_TRY(need(given, name));
    if (given->struct_bytes == sizeof(Struct)) return {};
    return invalid(std::string(name) + ".struct_bytes is " + std::to_string(given->struct_bytes) +
                   ", not " + std::to_string(sizeof(Struct)));
}

}  // namespace

dkv_status dkv_llama_open(dkv_llama_options const* options, dkv_llama** llama) {
    return guarded([&]() -> Result<void> {
        DKV_TRY(need(llama, "llama"));
        *llama = nullptr;
        DKV_TRY(need_struct(options, "options"));
        auto const library = DKV_TRY(llama::find_library(options->library));
        *llama = new dkv_llama{{library, *options}};
        return {};
    });
}

bool dkv_llama_eval(ggml_tensor* tensor, bool ask, void* llama) {
    return static_cast<dkv_llama*>(llama)->attachment.eval(tensor, ask);
}

dkv_status dkv_llama_attach(dkv_llama* llama, llama_context* context) {
    return guarded([&]() -> Result<void> {
        DKV_TRY(need(llama, "llama"));
        DKV_TRY(need(context, "context"));
        return llama->attachment.attach(context);
    });
}

dkv_status dkv_llama_begin(dkv_llama* llama, int32_t sequence) {
    return guarded([&]() -> Result<void> {
        DKV_TRY(need(llama, "llama"));
        return llama->attachment.begin(sequence);
    });
}

dkv_status dkv_llama_compress(dkv_llama* llama,
                              dkv_policy const* policy,
                              llama_context* target,
                              dkv_llama_report* report) {
    return guarded([&]() -> Result<void> {
        DKV_TRY(need(llama, "llama"));
        DKV_TRY(need_struct(report, "report"));
        auto outcome = llama->attachment.compress(policy, target);
        *report = llama->attachment.report();
        return outcome;
    });
}

dkv_status dkv_llama_leave_whole(dkv_llama* llama, char const* reason) {
    return guarded([&]() -> Result<void> {
        DKV_TRY(need(llama, "llama"));
        DKV_TRY(need(reason, "reason"));
        llama->attachment.leave_whole(reason);
        return {};
    });
}

dkv_status dkv_llama_adopted(dkv_llama* llama,
                             uint64_t bytes_returned,
                             uint64_t bytes_peak,
                             uint64_t bytes_final) {
    return guarded([&]() -> Result<void> {
        DKV_TRY(need(llama, "llama"));
        return llama->attachment.adopted(bytes_returned, bytes_peak, bytes_final);
    });
}

dkv_status dkv_llama_get_report(dkv_llama const* llama, dkv_llama_report* report) {
    return guarded([&]() -> Result<void> {
        DKV_TRY(need(llama, "llama"));
        DKV_TRY(need_struct(report, "report"));
        *report = llama->attachment.report();
        return {};
    });
}

dkv_status dkv_llama_positions(dkv_llama const* llama,
                               uint32_t layer,
                               uint32_t head,
                               int32_t* positions) {
    return guarded([&]() -> Result<void> {
        DKV_TRY(need(llama, "llama"));
        DKV_TRY(need(positions, "positions"));
        return llama->attachment.positions(layer, head, positions);
    });
}

char const* dkv_llama_last_error(void) {
    return last_error.c_str();
}

void dkv_llama_close(dkv_llama* llama) {
    delete llama;
}
