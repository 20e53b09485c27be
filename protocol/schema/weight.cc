#include "protocol/schema/weight.h"

#include <flatbuffers/minireflect.h>

namespace dkv {
namespace {

using flatbuffers::TypeTable;
using flatbuffers::uoffset_t;

std::uint8_t const* followed(std::uint8_t const* offset) {
    return offset + flatbuffers::ReadScalar<uoffset_t>(offset);
}

uoffset_t length_of(std::uint8_t const* vector) {
    return flatbuffers::ReadScalar<uoffset_t>(vector);
}

class Scale {
public:
    explicit Scale(std::size_t bytes_max) : left_(bytes_max) {}

    /// False: it is too much, and the rest was not looked at.
    bool take_table(std::uint8_t const* table, TypeTable const* type);

private:
    bool take(std::size_t bytes) {
        if (bytes > left_) return false;
        left_ -= bytes;
        return true;
    }
    bool take_vector(std::uint8_t const* vector,
                     flatbuffers::ElementaryType element,
                     TypeTable const* type);

    std::size_t left_;
};

bool Scale::take_table(std::uint8_t const* table, TypeTable const* type) {
    using namespace flatbuffers;
    std::uint8_t member = 0;  // Of a union: the field before it.
    for (std::size_t index = 0; index < type->num_elems; ++index) {
        auto const code = type->type_codes[index];
        auto const element = static_cast<ElementaryType>(code.base_type);
        auto const* const value = reinterpret_cast<Table const*>(table)->GetAddressOf(
            FieldIndexToOffset(static_cast<voffset_t>(index)));
        if (value == nullptr) continue;
        auto const* const inner =
            code.sequence_ref < 0 ? nullptr : type->type_refs[code.sequence_ref]();
        if (code.is_repeating != 0) {
            if (!take_vector(followed(value), element, inner)) return false;
        } else if (element == ET_UTYPE) {
            member = *value;
        } else if (element == ET_STRING) {
            if (!take(length_of(followed(value)))) return false;
        } else if (element == ET_SEQUENCE && inner->st == ST_TABLE) {
            if (!take_table(followed(value), inner)) return false;
        } else if (element == ET_SEQUENCE && inner->st == ST_UNION) {
            // A member that this side does not know is not unpacked.
            if (member == 0 || member >= inner->num_elems) continue;
            auto const* const chosen = inner->type_refs[inner->type_codes[member].sequence_ref]();
            if (!take_table(followed(value), chosen)) return false;
        }
    }
    return true;
}

bool Scale::take_vector(std::uint8_t const* vector,
                        flatbuffers::ElementaryType element,
                        TypeTable const* type) {
    using namespace flatbuffers;
    auto const count = length_of(vector);
    if (!take(std::size_t{count} * InlineSize(element, type))) return false;
    auto const* const first = vector + sizeof(uoffset_t);
    for (uoffset_t index = 0; index < count; ++index) {
        auto const* const item = first + std::size_t{index} * sizeof(uoffset_t);
        if (element == ET_STRING) {
            if (!take(length_of(followed(item)))) return false;
        } else if (element == ET_SEQUENCE && type->st == ST_TABLE) {
            if (!take_table(followed(item), type)) return false;
        } else {
            break;  // Numbers and structs lie in the vector itself.
        }
    }
    return true;
}

}  // namespace

bool unpacks_within(wire::Envelope const& envelope, std::size_t bytes_max) {
    return Scale(bytes_max).take_table(reinterpret_cast<std::uint8_t const*>(&envelope),
                                       wire::EnvelopeTypeTable());
}

}  // namespace dkv
