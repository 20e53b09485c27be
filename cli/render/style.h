// What the place we print to can show.
#pragma once

#include <cstddef>

namespace dkv::cli {

struct Style {
    bool color = false;
    bool unicode = false;
    std::size_t columns = 100;
    std::size_t rows = 40;
};

}  // namespace dkv::cli
