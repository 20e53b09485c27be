#include "protocol/device/registry.h"

#include <cerrno>
#include <fcntl.h>
#include <linux/kcmp.h>

#include <sys/syscall.h>
#include <system_error>

namespace dkv::cuda {

bool is_same_file(int a, int b) noexcept {
    if (a < 0 || b < 0) return a == b;
    auto const self = ::getpid();
    return ::syscall(SYS_kcmp, self, self, KCMP_FILE, static_cast<unsigned long>(a),
                     static_cast<unsigned long>(b)) == 0;
}

Registry& Registry::instance() {
    static Registry& registry = *new Registry;
    return registry;
}

Result<std::shared_ptr<Mapping const>> Registry::lease(MappingKey const& key,
                                                       int file,
                                                       Open const& open) {
    std::lock_guard const lock(mutex_);
    auto const [begin, end] = entries_.equal_range(key);
    for (auto entry = begin; entry != end; ++entry)
        if (is_same_file(entry->second.file.get(), file)) return share(entry);
    Entry added;
    if (file >= 0) {
        added.file = UniqueFd(::fcntl(file, F_DUPFD_CLOEXEC, 0));
        if (!added.file)
            return Error{ErrorCode::Io, "cannot keep a descriptor of device memory: " +
                                            std::generic_category().message(errno)};
    }
    added.mapping = DKV_TRY(open());
    return share(entries_.emplace(key, std::move(added)));
}

std::shared_ptr<Mapping const> Registry::share(Entries::iterator entry) {
    ++entry->second.leases;
    return {entry->second.mapping.get(), [this, entry](Mapping const*) {
                std::lock_guard const lock(mutex_);
                if (--entry->second.leases == 0) entries_.erase(entry);
            }};
}

std::size_t Registry::count() const noexcept {
    std::lock_guard const lock(mutex_);
    return entries_.size();
}

}  // namespace dkv::cuda
