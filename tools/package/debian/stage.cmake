# Run by cpack over the tree that it has installed, before that becomes a package: what Debian expects beside a prefix.
set(here ${CMAKE_CURRENT_LIST_DIR})
set(root ${CPACK_TEMPORARY_DIRECTORY})
get_filename_component(sources ${here}/../../.. ABSOLUTE)

find_program(dpkg_architecture dpkg-architecture REQUIRED)
execute_process(COMMAND ${dpkg_architecture} -qDEB_HOST_MULTIARCH OUTPUT_VARIABLE multiarch
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
file(GLOB libraries ${root}/usr/lib/*.so*)
file(MAKE_DIRECTORY ${root}/usr/lib/${multiarch})
foreach(library ${libraries})
    get_filename_component(name ${library} NAME)
    file(RENAME ${library} ${root}/usr/lib/${multiarch}/${name})
endforeach()

# As install(FILES) does, with modes that do not depend on the umask of the checkout.
function(place file folder name)
    configure_file(${here}/${file} ${root}/${folder}/${name} COPYONLY
        FILE_PERMISSIONS OWNER_READ OWNER_WRITE GROUP_READ WORLD_READ)
endfunction()
place(dkvd.service usr/lib/systemd/system dkvd.service)
place(sysusers.conf usr/lib/sysusers.d dkv.conf)
place(dkvd.toml etc/dkv dkvd.toml)
place(copyright usr/share/doc/dkv copyright)
place(lintian-overrides usr/share/lintian/overrides dkv)

# Where zsh of Debian looks.
file(MAKE_DIRECTORY ${root}/usr/share/zsh/vendor-completions)
file(RENAME ${root}/usr/share/zsh/site-functions/_dkv ${root}/usr/share/zsh/vendor-completions/_dkv)
file(REMOVE_RECURSE ${root}/usr/share/zsh/site-functions)

# Debian's own changelog says which version is packaged; the project's says what changed.
string(TIMESTAMP day "%a, %d %b %Y %H:%M:%S +0000" UTC)  # SOURCE_DATE_EPOCH, where it is set.
file(WRITE ${root}/usr/share/doc/dkv/changelog.Debian "dkv (${CPACK_PACKAGE_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE}) "
    "unstable; urgency=medium\n\n  * dkv ${CPACK_PACKAGE_VERSION}: see changelog.gz.\n\n"
    " -- ${CPACK_DEBIAN_PACKAGE_MAINTAINER}  ${day}\n")
configure_file(${sources}/docs/CHANGELOG.md ${root}/usr/share/doc/dkv/changelog COPYONLY)
find_program(gzip gzip REQUIRED)
file(GLOB pages ${root}/usr/share/man/*/* ${root}/usr/share/doc/dkv/changelog*)
execute_process(COMMAND ${gzip} -9nf ${pages} COMMAND_ERROR_IS_FATAL ANY)
