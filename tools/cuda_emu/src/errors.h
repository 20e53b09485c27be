#pragma once

#include <cuda.h>

namespace cudaemu {

// cuGetErrorName and cuGetErrorString.
CUresult error_name(CUresult error, char const** name);
CUresult error_text(CUresult error, char const** text);

}  // namespace cudaemu
