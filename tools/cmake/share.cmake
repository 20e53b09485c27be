# share/ of a prefix, made in the build folder as it is installed: man pages and completions.
set(dkv_share ${CMAKE_BINARY_DIR}/share)
configure_file(docs/man/dkv.1 ${dkv_share}/man/man1/dkv.1 @ONLY)
configure_file(docs/man/dkvd.8 ${dkv_share}/man/man8/dkvd.8 @ONLY)

add_custom_target(completions)
function(dkv_completion shell folder name)
    file(MAKE_DIRECTORY ${dkv_share}/${folder})
    set(file ${dkv_share}/${folder}/${name})
    # The endpoint of this user on this machine, which a help text shows, differs elsewhere.
    add_custom_command(OUTPUT ${file} COMMAND ${CMAKE_COMMAND} -E env [[DKV_ENDPOINT=$DKV_ENDPOINT]]
        $<TARGET_FILE:dkv_program> completion ${shell} > ${file} DEPENDS dkv_program VERBATIM)
    add_custom_target(completion_${shell} DEPENDS ${file})
    add_dependencies(completions completion_${shell})
endfunction()
dkv_completion(bash bash-completion/completions dkv)
dkv_completion(zsh zsh/site-functions _dkv)
dkv_completion(fish fish/vendor_completions.d dkv.fish)
