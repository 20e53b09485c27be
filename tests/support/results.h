// Lets REQUIRE(f()) print why f failed.
#pragma once

#include <doctest/doctest.h>

#include "protocol/base/result.h"

namespace doctest {

template <class T>
struct StringMaker<dkv::Result<T>> {
    static String convert(dkv::Result<T> const& result) {
        return result ? String("ok") : String("error: ") + result.error().message.c_str();
    }
};

}  // namespace doctest
