#include "cli/commands/all.h"

namespace dkv::cli {
namespace {

constexpr Command kCommands[] = {
    {"status", "the sidecar at a glance: engines, sessions, errors, savings", setup_status},
    {"instances", "the engines that are attached", setup_instances},
    {"sessions", "the prompts' caches; with an ID, one of them in detail", setup_sessions},
    {"trace", "where a session's time went, for Perfetto and Chrome", setup_trace},
    {"watch", "what happens, live", setup_watch},
    {"savings", "bytes dropped, returned and reclaimable; attention kept; peaks", setup_savings},
    {"policy", "list, explain and set compression policies", setup_policy},
    {"inspect", "what is in saved caches: geometry, tokens, policy, checks", setup_inspect},
    {"ls", "saved caches in folders: model, tokens, policy, size, age, whether verified", setup_ls},
    {"verify", "read every byte of saved caches, and remember what was found", setup_verify},
    {"prune", "bring folders of saved caches under a number of bytes: compact, delete last",
     setup_prune},
    {"compact", "make saved caches smaller by a policy: a capacity, a ratio, bytes, attention kept",
     setup_compact},
    {"convert", "saved caches in another format, row for row", setup_convert},
    {"llama", "a llama-server: start one whose prompts are compressed, or compact its slots",
     setup_llama},
    {"sweep", "a grid of policies and sizes over saved caches: attention kept, error, bytes",
     setup_sweep},
    {"report", "what a sweep found: a page, its figures, the findings in words", setup_report},
    {"capture", "recompute the queries of a saved cache that has none, with its model",
     setup_capture},
    {"plan", "what a policy would keep of a prompt: bytes before and after, without data",
     setup_plan},
    {"diff", "where two saved caches, or two policies over one, differ: tokens, budgets, bytes",
     setup_diff},
    {"keys", "make the keys that a sidecar and its controllers on other machines need", setup_keys},
    {"doctor", "what this machine can do, in words", setup_doctor},
    {"config", "check a configuration file of dkvd", setup_config},
    {"serve", "run a sidecar here, in the foreground: the same as dkvd", setup_serve},
    {"detach", "let go of an engine: its memory is unmapped, its place is free", setup_detach},
    {"stop", "stop the sidecar; engines go on uncompressed", setup_stop},
    {"calibrate", "measure what each layer or KV head of a model is worth: a profile",
     setup_calibrate},
    {"eval", "every policy at equal bytes on a real model: needles, texts, LongBench", setup_eval},
    {"certify", "the smallest size whose risk of losing much is bounded, from what eval measured",
     setup_certify},
    {"profile", "the calibrated profiles there are; what is in one", setup_profile},
    {"version", "versions of dkv and of the sidecar", setup_version},
    {"completion", "a completion script for bash, zsh or fish", setup_completion},
};

}  // namespace

std::span<Command const> commands() {
    return kCommands;
}

}  // namespace dkv::cli
