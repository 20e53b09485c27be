#include "cli/llama/compact_slot.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <system_error>

#include "cli/saved/formats/gguf.h"

namespace dkv::llama {
namespace {

namespace fs = std::filesystem;

class Work {
public:
    Work(Server const& server, SlotRequest request, offline::Progress const& progress)
        : server_(server),
          request_(std::move(request)),
          progress_(progress),
          original_(request_.folder / original_name(request_.name)),
          compacted_(request_.folder / request_.name) {}

    Result<SlotOutcome> run() {
        DKV_TRY(check_names());
        DKV_TRY(read_model());
        DKV_TRY(resolve(request_.compact.policy, ""));  // Before gigabytes are saved for nothing.
        auto const before = DKV_TRY(idle());
        saved_ = DKV_TRY(server_.save(request_.slot, original_.filename()));
        auto done = replace(before);
        if (!done) return left_whole(done.error());
        return finished();
    }

private:
    Result<void> check_names() const {
        std::error_code ignored;
        if (request_.name.empty() || request_.name.find('/') != std::string::npos)
            return Error{ErrorCode::InvalidArgument,
                         "'" + request_.name + "' is not the name of a file in the folder"};
        if (!fs::is_directory(request_.folder, ignored))
            return Error{ErrorCode::NotFound, request_.folder.string() +
                                                  ": there is no such folder; --dir is what the "
                                                  "server was given as --slot-save-path"};
        for (auto const& path : {original_, compacted_})
            if (!request_.force && fs::exists(path, ignored))
                return Error{ErrorCode::AlreadyExists,
                             path.string() +
                                 ": there is a file of this name already; choose "
                                 "another --output, or --force writes over it"};
        return {};
    }

    Result<void> read_model() {
        auto& open = request_.compact.open;
        if (open.kv_heads != 0) return {};
        auto const& path = server_.facts().model_path;
        std::error_code ignored;
        if (!fs::is_regular_file(path, ignored))
            return Error{ErrorCode::InvalidArgument,
                         fmt::format("the server's model, '{}', is not a file here: say which it "
                                     "is (--model FILE.gguf), or its KV heads (--kv-heads)",
                                     path.string())};
        complete(open, DKV_TRY(read_gguf(path)));
        return {};
    }

    Result<std::optional<SlotState>> idle() const {
        auto const state = DKV_TRY(server_.slot(request_.slot));
        if (state && state->busy)
            return Error{ErrorCode::BadState,
                         fmt::format("slot {} is busy with request {}: try again when it is done",
                                     request_.slot, state->task)};
        return state;
    }

    /// From the saved file to the restored one.
    Result<void> replace(std::optional<SlotState> const& before) {
        DKV_TRY(check_saved());
        DKV_TRY(read_tokens());
        request_.compact.input = original_;
        request_.compact.output = compacted_;
        request_.compact.format = FileFormat::LlamaSlot;
        request_.compact.force = true;  // check_names() has asked.
        outcome_.compact =
            DKV_TRY(offline::compact(*make_cpu_backend(), request_.compact, progress_));
        written_ = true;
        if (outcome_.compact.kept_whole)
            return Error{ErrorCode::BadState,
                         fmt::format("the slot has {} tokens, and the policy keeps all of them: "
                                     "ask for less (--ratio, --capacity)",
                                     outcome_.compact.prompt_tokens)};
        if (progress_.stopped()) return offline::interrupted();
        auto const now = DKV_TRY(server_.slot(request_.slot));
        if (before && now && (now->busy || now->task != before->task))
            return Error{ErrorCode::BadState,
                         fmt::format("request {} used slot {} meanwhile: try again when the slot "
                                     "is idle",
                                     now->task, request_.slot)};
        touched_ = true;
        DKV_TRY(restore());
        DKV_TRY(see());
        return restore();  // Without the token that see() put behind it.
    }

    Result<void> check_saved() const {
        if (saved_.tokens == 0)
            return Error{ErrorCode::BadState,
                         fmt::format("slot {} is empty: nothing was asked of it yet, or the "
                                     "server has cleared it",
                                     request_.slot)};
        std::error_code error;
        auto const bytes = fs::file_size(original_, error);
        if (error || bytes != saved_.bytes)
            return Error{ErrorCode::NotFound,
                         fmt::format("{}: the server says that it wrote {} bytes to a file of this "
                                     "name, and here {}: --dir is what the server was given as "
                                     "--slot-save-path",
                                     original_.string(), saved_.bytes,
                                     error ? "is none" : fmt::format("are {}", bytes))};
        return {};
    }

    /// What see() asks for: known before the server's slot is touched.
    Result<void> read_tokens() {
        auto const cache = DKV_TRY(open_cache(original_, request_.compact.open));
        tokens_ = cache->facts().tokens;
        // The server takes the token before the checkpoint's end for the next one.
        if (auto const& checkpoint = cache->facts().sliding_checkpoint)
            found_least_ =
                static_cast<std::uint64_t>(std::max<std::int64_t>(checkpoint->tokens - 1, 0));
        if (tokens_.size() == saved_.tokens) return {};
        return Error{ErrorCode::Unsupported,
                     "the slot's token ids are not all known (images have none), so that nothing "
                     "could show whether the server uses the restored state"};
    }

    Result<void> restore() {
        outcome_.restored = DKV_TRY(server_.restore(request_.slot, compacted_.filename()));
        auto const& now = outcome_.restored;
        if (now.tokens == saved_.tokens && now.bytes == outcome_.compact.file_bytes_after)
            return {};
        return Error{
            ErrorCode::BadState,
            fmt::format("the server restored {} tokens from {} bytes, and the file has "
                        "{} in {}",
                        now.tokens, now.bytes, saved_.tokens, outcome_.compact.file_bytes_after)};
    }

    /// What the next request finds.
    Result<void> see() {
        auto tokens = tokens_;
        tokens.push_back(tokens.back());
        outcome_.seen = DKV_TRY(server_.prefill(request_.slot, tokens));
        auto const least =
            std::min<std::uint64_t>(found_least_.value_or(saved_.tokens), saved_.tokens);
        if (outcome_.seen.cached >= least &&
            outcome_.seen.cached + outcome_.seen.computed == tokens.size())
            return {};
        return Error{ErrorCode::BadState,
                     fmt::format("the server does not use the restored state: of a prompt of {} "
                                 "tokens, {} of them restored, it computed {} and found {}",
                                 tokens.size(), saved_.tokens, outcome_.seen.computed,
                                 outcome_.seen.cached)};
    }

    /// After a failure: with whatever the server needs to have the whole slot again.
    Error left_whole(Error error) const {
        std::error_code ignored;
        if (touched_) {
            auto const back = server_.restore(request_.slot, original_.filename());
            if (!back || back.value().tokens != saved_.tokens) {
                error.message +=
                    fmt::format("; the server did not take the whole slot back, which is in {}{}",
                                original_.string(), back ? "" : " (" + back.error().message + ")");
                return error;
            }
            error.message += "; the server has the whole slot again";
        } else if (error.code != ErrorCode::Cancelled) {
            error.message += "; the server was left as it was";
        }
        fs::remove(original_, ignored);
        if (written_) fs::remove(compacted_, ignored);
        return error;
    }

    SlotOutcome finished() {
        std::error_code ignored;
        outcome_.original = original_;
        outcome_.original_kept = !(request_.remove_original && fs::remove(original_, ignored));
        return std::move(outcome_);
    }

    Server const& server_;
    SlotRequest request_;
    offline::Progress const& progress_;
    fs::path const original_;
    fs::path const compacted_;
    SlotFile saved_;
    std::vector<std::int32_t> tokens_;
    std::optional<std::uint64_t> found_least_;  // By see(), of a model with sliding layers.
    bool written_ = false;
    bool touched_ = false;  // The server's slot is not what it was.
    SlotOutcome outcome_;
};

}  // namespace

std::string original_name(std::string const& name) {
    fs::path const path(name);
    return path.stem().string() + ".full" + path.extension().string();
}

Result<SlotOutcome> compact_slot(Server const& server,
                                 SlotRequest request,
                                 offline::Progress const& progress) {
    return Work(server, std::move(request), progress).run();
}

}  // namespace dkv::llama
