# share/ of a prefix, made in the build folder as it is installed: man pages, profiles, completions.
set(dkv_share ${CMAKE_BINARY_DIR}/share)

# What protocol/policy/parameters.inc says of every policy parameter.
function(dkv_parameters_in_roff result)
    set(table ${PROJECT_SOURCE_DIR}/protocol/policy/parameters.inc)
    set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${table})
    file(READ ${table} text)
    string(REPLACE ";" "<semicolon>" text "${text}")
    string(REGEX MATCHALL "\nDKV_[A-Z_]+\\([a-z_]+, [^\n]*\n +\"[^\n]*\"," rows "${text}")
    set(roff "")
    foreach(row ${rows})
        string(REGEX MATCH "\\(([a-z_]+), [^\n]*\n +\"([^\n]*)\"," row "${row}")
        string(REPLACE "_" "-" name ${CMAKE_MATCH_1})
        if(name STREQUAL purpose)  # As Parameter::flag() has it.
            set(name for)
        endif()
        string(REPLACE "-" "\\-" flag "--${name}")
        string(REPLACE "--" "\\-\\-" brief "${CMAKE_MATCH_2}")
        string(APPEND roff ".TP\n\\fB${flag}\\fR\n${brief}\n")
    endforeach()
    string(REPLACE "<semicolon>" ";" roff "${roff}")
    set(${result} "${roff}" PARENT_SCOPE)
endfunction()

dkv_parameters_in_roff(POLICY_PARAMETERS)
configure_file(docs/man/dkv.1.in ${dkv_share}/man/man1/dkv.1 @ONLY)
configure_file(docs/man/dkvd.8.in ${dkv_share}/man/man8/dkvd.8 @ONLY)

# The profiles that come with dkv, where its commands look for them.
file(GLOB profiles CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/protocol/python/dkv/profiles/*.json)
foreach(profile ${profiles})
    get_filename_component(name ${profile} NAME)
    configure_file(${profile} ${dkv_share}/dkv/profiles/${name} COPYONLY)
endforeach()

add_custom_target(completions)
function(dkv_completion shell folder name)
    file(MAKE_DIRECTORY ${dkv_share}/${folder})
    set(file ${dkv_share}/${folder}/${name})
    # The endpoint of this user on this machine, which a help text shows, differs elsewhere.
    add_custom_command(OUTPUT ${file} COMMAND ${CMAKE_COMMAND} -E env DKV_ENDPOINT=ipc://PATH
        $<TARGET_FILE:dkv_program> completion ${shell} > ${file} DEPENDS dkv_program VERBATIM)
    add_custom_target(completion_${shell} DEPENDS ${file})
    add_dependencies(completions completion_${shell})
endfunction()
dkv_completion(bash bash-completion/completions dkv)
dkv_completion(zsh zsh/site-functions _dkv)
dkv_completion(fish fish/vendor_completions.d dkv.fish)
