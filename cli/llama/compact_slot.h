// A slot of a running llama-server: saved, compacted, restored, and seen to be what it uses.
#pragma once

#include <filesystem>
#include <string>

#include "cli/llama/server.h"
#include "cli/saved/offline/compact.h"

namespace dkv::llama {

struct SlotRequest {
    std::uint32_t slot = 0;
    std::filesystem::path folder;  ///< The server's --slot-save-path, as seen from here.
    std::string name;              ///< Of the compacted file in it.
    bool force = false;            ///< Also over files of these names.
    bool remove_original = false;  ///< The whole slot's file, when all went well.
    /// Policy, and what formats do not say: without KV heads, the model that the server names.
    offline::CompactRequest compact;
};

struct SlotOutcome {
    offline::CompactOutcome compact;
    std::filesystem::path original;
    bool original_kept = false;
    SlotFile restored;
    Prefill seen;
};

/// "chat.bin" → "chat.full.bin", where the whole slot is saved.
std::string original_name(std::string const& name);

/// The server's own answers decide: tokens and bytes of the restore, and that a prompt of the
/// slot's tokens and one more computes that one alone. A prompt that the policy keeps whole is
/// left as it is. Whatever fails after the save, the server has the whole slot again, or the
/// message names the file that has it.
///
/// Errors: those of Server, offline::compact() and read_gguf(); BadState for a slot that is busy,
/// empty, or used by another request meanwhile; AlreadyExists; NotFound when the server's file is
/// not in the folder.
Result<SlotOutcome> compact_slot(Server const& server,
                                 SlotRequest request,
                                 offline::Progress const& progress);

}  // namespace dkv::llama
