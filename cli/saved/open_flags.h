// The flags of every command that reads saved caches.
#pragma once

#include <optional>

#include "cli/saved/formats/key_order.h"
#include "cli/saved/formats/saved_cache.h"

namespace CLI {
class App;
}

namespace dkv::cli {

/// What formats do not say of themselves. `options` must outlive the parse.
void add_open_flags(CLI::App& app, OpenOptions& options);

/// Of them, those that say what a model is: its GGUF file, or heads and rope.
void add_model_flags(CLI::App& app, OpenOptions& options);

/// A flag that takes the name of a format. Only those that dkv writes, or all of them.
void add_format_flag(CLI::App& app,
                     char const* flag,
                     std::optional<FileFormat>& format,
                     bool writable,
                     char const* help);

/// --key-order, of an output.
void add_key_order_flag(CLI::App& app, std::optional<KeyOrder>& order);

}  // namespace dkv::cli
