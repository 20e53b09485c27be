#pragma once

namespace dkv {

/// dkv's version, as CMakeLists.txt has it. In an object of its own: other versions of a program,
/// which tests run, are the same objects with another one of these.
extern char const* const kVersion;

}  // namespace dkv
