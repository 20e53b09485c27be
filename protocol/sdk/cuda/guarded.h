// No exception leaves this library: neither to a host nor to libdkv.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "protocol/base/result.h"
#include "protocol/sdk/device_abi.h"

namespace dkv::sdk_cuda {

/// Runs `body`; an Error or an exception becomes a status, and `say` gets its line.
template <class Body, class Say>
dkv_status guarded(Body&& body, Say&& say) noexcept {
    try {
        Result<void> const result = body();
        if (result) return DKV_OK;
        say(result.error().message.c_str());
        return static_cast<dkv_status>(result.error().code);
    } catch (std::bad_alloc const&) {
        say("out of memory");
        return DKV_IO;
    } catch (std::exception const& error) {
        say(error.what());
    } catch (...) {
        say("an exception of no known kind");
    }
    return DKV_INTERNAL;
}

/// For functions that libdkv calls: the line goes to its buffer.
template <class Body>
dkv_status answered(char* error, Body&& body) noexcept {
    return guarded(body, [error](char const* line) {
        std::size_t const length =
            std::min(std::strlen(line), std::size_t{DKV_DEVICE_ERROR_BYTES} - 1);
        std::memcpy(error, line, length);
        error[length] = '\0';
    });
}

/// For functions that hosts call: the line goes to dkv_last_error().
template <class Body>
dkv_status told(Body&& body) noexcept {
    dkv_device_remember("");
    return guarded(body, [](char const* line) { dkv_device_remember(line); });
}

}  // namespace dkv::sdk_cuda
