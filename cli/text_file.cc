#include "cli/text_file.h"

#include "protocol/container/new_file.h"

namespace dkv::cli {

Result<void> write_text_file(std::string const& path, std::string_view text) {
    auto file = DKV_TRY(NewFile::create(path));
    DKV_TRY(file.append(std::as_bytes(std::span(text))));
    return file.commit();
}

}  // namespace dkv::cli
