#include "sidecar/memory/device_region.h"

#include "protocol/device/memory.h"

namespace dkv {
namespace {

class DeviceRegion final : public MappedRegion {
public:
    DeviceRegion(std::shared_ptr<cuda::OpenedMemory const> memory, bool writable)
        : memory_(std::move(memory)) {
        data_ = memory_->bytes().data();
        bytes_ = memory_->bytes().size();
        writable_ = writable;
        place_ = Place::Device;
        identity_ = {reinterpret_cast<std::uintptr_t>(data_), 0};
    }
    ~DeviceRegion() override {
        memory_.reset();
        if (told_) told_();
    }
    void when_closed(std::function<void()> told) const override { told_ = std::move(told); }

private:
    std::shared_ptr<cuda::OpenedMemory const> memory_;
    mutable std::function<void()> told_;
};

class Opener {
public:
    std::uint64_t bytes;
    bool writable;
    RegionOwner const& owner;
    Descriptors& descriptors;
    std::atomic<bool> const& cancelled;

    Result<RegionLease> operator()(CudaIpcSource const& source) const {
        cuda::IpcMemory memory;
        memory.handle = source.handle;
        return open(memory, source);
    }
    Result<RegionLease> operator()(CudaVmmSource const& source) const {
        cuda::VmmMemory memory;
        memory.file = DKV_TRY(descriptors.take(owner.instance, source.ticket, cancelled));
        return open(std::move(memory), source);
    }
    Result<RegionLease> operator()(CudaPoolSource const& source) const {
        cuda::PoolMemory memory;
        memory.pool = DKV_TRY(descriptors.take(owner.instance, source.ticket, cancelled));
        memory.pointer = source.pointer;
        return open(std::move(memory), source);
    }
    Result<RegionLease> operator()(auto const& /*shared*/) const {
        return Error{ErrorCode::Unsupported, "it is shared memory, not a device's"};
    }

private:
    template <class Memory, class Source>
    Result<RegionLease> open(Memory memory, Source const& source) const {
        memory.allocation_bytes = source.allocation_bytes;
        memory.offset = source.offset;
        memory.bytes = bytes;
        auto opened = DKV_TRY(
            cuda::open_memory(cuda::Exported(std::move(memory)), owner.instance, owner.generation));
        return RegionLease(std::make_shared<DeviceRegion>(std::move(opened), writable));
    }
};

}  // namespace

Result<RegionLease> open_region(RegionSource const& source,
                                std::uint64_t bytes,
                                bool writable,
                                RegionOwner const& owner,
                                Descriptors& descriptors,
                                std::atomic<bool> const& cancelled) {
    auto opened = std::visit(Opener{bytes, writable, owner, descriptors, cancelled}, source);
    if (opened) return opened;
    return Error{opened.error().code, describe(source) + ": " + opened.error().message};
}

}  // namespace dkv
