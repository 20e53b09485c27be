# cpack makes the Debian package out of a build folder: what `cmake --install` puts into a prefix, and
# tools/package/debian/stage.cmake what Debian expects beside it.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME dkv)
set(CPACK_PACKAGE_VENDOR "the dkv developers")
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/tools/package/debian/stage.cmake)

set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_PACKAGE_SECTION misc)
set(CPACK_DEBIAN_PACKAGE_MAINTAINER "dkv maintainers <maintainers@dkv.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "compresses the KV cache of running LLM inference engines")
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION "dkvd, a sidecar, borrows the keys and values of every prompt token from
the engine, finds out how many tokens each layer needs, and gives the memory
of the others back. The engine is not patched.
.
The package has dkvd and its systemd unit, the controller dkv, libdkv for
engines in C and C++, and libdkv_llama for llama.cpp. The Python package is
installed with pip.")
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${CMAKE_LIBRARY_OUTPUT_DIRECTORY})
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
# The unit's user. dpkg-shlibdeps finds the libraries.
set(CPACK_DEBIAN_PACKAGE_DEPENDS "systemd | systemd-standalone-sysusers | systemd-sysusers")
foreach(script postinst prerm postrm conffiles triggers)
    list(APPEND CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${PROJECT_SOURCE_DIR}/tools/package/debian/${script})
endforeach()
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
include(CPack)
