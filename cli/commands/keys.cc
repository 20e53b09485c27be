#include "cli/commands/all.h"
#include "protocol/keys/key_files.h"

namespace dkv::cli {

Run setup_keys(CLI::App& app, Context const& /*context*/) {
    auto folder = std::make_shared<std::string>();
    app.add_option("-o,--out", *folder,
                   "where dkv.key and dkv.key_secret go [$XDG_CONFIG_HOME/dkv, else ~/.config/dkv]")
        ->type_name("FOLDER");
    return [folder]() -> Result<Output> {
        auto const where =
            folder->empty() ? DKV_TRY(keys::folder()) : std::filesystem::path(*folder);
        auto const pair = DKV_TRY(keys::make_pair());
        DKV_TRY(keys::write_pair(where, pair));
        auto const secret = (where / keys::kSecretFile).string();
        auto const open = (where / keys::kPublicFile).string();
        return Output{
            "Secret key  " + secret + "  (mode 0600; it stays on this machine)\n" + "Public key  " +
                open + "  (to give away): " + pair.public_key +
                "\n\n"
                "A sidecar lets this key in once its clients folder has a copy of dkv.key, "
                "as NAME.key.\n"
                "A controller finds a sidecar with this key once it has a copy of dkv.key, "
                "as sidecars/HOST.key.\n",
            {{"secret_key_file", secret},
             {"public_key_file", open},
             {"public_key", pair.public_key}}};
    };
}

}  // namespace dkv::cli
