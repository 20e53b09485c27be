#include "tests/fuzz/wrong.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include <flatbuffers/minireflect.h>

#include "protocol/schema/dkv_generated.h"

namespace dkv::fuzz {
namespace {

using flatbuffers::ElementaryType;
using flatbuffers::TypeTable;
using flatbuffers::uoffset_t;
using Bytes = std::vector<std::uint8_t>;

/// A field that is there.
struct Place {
    std::size_t table;  ///< Where its table begins.
    std::size_t value;  ///< Where it is itself: the number, or the offset of what it names.
    std::size_t index;  ///< Which field of its table.
    ElementaryType type;
    bool is_list;

    bool is_text() const noexcept { return !is_list && type == flatbuffers::ET_STRING; }
    bool is_number() const noexcept {
        return !is_list && type != flatbuffers::ET_STRING && type != flatbuffers::ET_SEQUENCE;
    }
};

template <class T>
T read(Bytes const& bytes, std::size_t at) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

template <class T>
void write(Bytes& bytes, std::size_t at, T value) {
    std::memcpy(bytes.data() + at, &value, sizeof value);
}

std::size_t followed(Bytes const& bytes, std::size_t at) {
    return at + read<uoffset_t>(bytes, at);
}

void find_places(Bytes const& bytes,
                 std::size_t at,
                 TypeTable const* type,
                 std::vector<Place>& to) {
    auto const* const table = reinterpret_cast<flatbuffers::Table const*>(bytes.data() + at);
    std::uint8_t member = 0;  // Of a union: the field before it.
    for (std::size_t index = 0; index < type->num_elems; ++index) {
        auto const code = type->type_codes[index];
        auto const* const value = table->GetAddressOf(
            flatbuffers::FieldIndexToOffset(static_cast<flatbuffers::voffset_t>(index)));
        if (value == nullptr) continue;
        Place const place{at, static_cast<std::size_t>(value - bytes.data()), index,
                          static_cast<ElementaryType>(code.base_type), code.is_repeating != 0};
        to.push_back(place);
        if (place.type == flatbuffers::ET_UTYPE) member = *value;
        if (place.is_list || place.type != flatbuffers::ET_SEQUENCE) continue;
        auto const* inner = type->type_refs[code.sequence_ref]();
        if (inner->st == flatbuffers::ST_UNION) {
            if (member == 0 || member >= inner->num_elems) continue;
            inner = inner->type_refs[inner->type_codes[member].sequence_ref]();
        }
        find_places(bytes, followed(bytes, place.value), inner, to);
    }
}

/// One of those that `is` likes, those of the message rather than those of its envelope.
template <class Is>
Place const* any_place(std::vector<Place> const& places, Random& random, Is const& is) {
    std::vector<Place const*> liked;
    for (auto const& place : places)
        if (is(place)) liked.push_back(&place);
    if (liked.empty()) return nullptr;
    auto const* const first = random.one_of(liked);
    bool const of_envelope = first->table == places.front().table;
    return of_envelope ? random.one_of(liked) : first;
}

double wrong_double(double now, Random& random) {
    using Limits = std::numeric_limits<double>;
    double const values[] = {0,          -0.0,      1,      -1,     Limits::quiet_NaN(),
                             HUGE_VAL,   -HUGE_VAL, 1e300,  1e-310, Limits::max(),
                             0.999999,   1.000001,  3.4e38, -now,   now + 1,
                             now * 1000, now / 1e6};
    return random.one_of(values);
}

std::uint64_t wrong_integer(std::uint64_t now,
                            unsigned bits,
                            Random& random,
                            std::span<std::uint64_t const> numbers) {
    auto const all = bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
    auto const sign = std::uint64_t{1} << (bits - 1);
    std::uint64_t const values[] = {0,
                                    1,
                                    2,
                                    all,
                                    all - 1,
                                    sign,
                                    sign - 1,
                                    sign + 1,
                                    now + 1,
                                    now - 1,
                                    now * 2,
                                    now / 2,
                                    now ^ (std::uint64_t{1} << random.below(bits)),
                                    random.number(),
                                    random.below(256),
                                    random.below(70000),
                                    all / 2,
                                    all / 8,
                                    all / 32};
    if (bits == 64 && !numbers.empty() && random.chance(40)) return random.one_of(numbers);
    return random.one_of(values) & all;
}

void spoil_number(Bytes& bytes,
                  Place const& place,
                  Random& random,
                  std::span<std::uint64_t const> numbers) {
    if (place.type == flatbuffers::ET_DOUBLE)
        return write(bytes, place.value, wrong_double(read<double>(bytes, place.value), random));
    if (place.type == flatbuffers::ET_FLOAT) {
        double const now = static_cast<double>(read<float>(bytes, place.value));
        double const wanted = std::clamp(wrong_double(now, random), -3.4e38, 3.4e38);
        float const special[] = {HUGE_VALF, -HUGE_VALF, std::nanf("")};
        return write(bytes, place.value,
                     random.chance(25) ? random.one_of(special) : static_cast<float>(wanted));
    }
    auto const width = flatbuffers::InlineSize(place.type, nullptr);
    std::uint64_t now = 0;
    std::memcpy(&now, bytes.data() + place.value, width);
    auto const wanted = wrong_integer(now, static_cast<unsigned>(width) * 8, random, numbers);
    std::memcpy(bytes.data() + place.value, &wanted, width);
}

/// The field names this from now on: it comes behind everything else.
void append(Bytes& bytes, Place const& place, std::size_t count, std::string_view data, bool text) {
    while (bytes.size() % 8 != 4)  // Of what is longest, after the count.
        bytes.push_back(0);
    write(bytes, place.value, static_cast<uoffset_t>(bytes.size() - place.value));
    auto const at = bytes.size();
    bytes.resize(at + sizeof(uoffset_t));
    write(bytes, at, static_cast<uoffset_t>(count));
    bytes.insert(bytes.end(), data.begin(), data.end());
    if (text) bytes.push_back(0);
}

void spoil_text(Bytes& bytes, Place const& place, Random& random) {
    using namespace std::string_literals;
    std::string const texts[] = {""s,
                                 "\x1b[31mred\x1b[0m"s,
                                 "two\nlines\r\n\tlevel=error forged"s,
                                 "nul\0inside"s,
                                 "\xff\xfe\x80 no UTF-8"s,
                                 "\xc2\x9b C1 \xe2\x80\xae"s,
                                 "%s%n%s {} {0} {:d}"s,
                                 "/"s,
                                 "/../../etc/passwd"s,
                                 "../up"s,
                                 std::string(200, 'x'),
                                 std::string(300, '\x07'),
                                 "/" + std::string(5000, '\n'),
                                 std::string(random.below(100'000), '\x1b'),
                                 "snapkv"s,
                                 "cuda"s};
    auto const& text = random.one_of(texts);
    append(bytes, place, text.size(), text, true);
}

void spoil_list(Bytes& bytes, Place const& place, Random& random) {
    auto const width = flatbuffers::InlineSize(place.type, nullptr);
    auto const now = read<uoffset_t>(bytes, followed(bytes, place.value));
    std::size_t const counts[] = {0, 1, now + 1, now == 0 ? 2 : now - 1, now, now * 64, 10'000};
    auto const count = random.one_of(counts);
    std::string data(count * width, '\0');
    auto const fill = random.below(4);
    for (std::size_t i = 0; i < data.size(); ++i)
        data[i] = static_cast<char>(fill == 0 ? 0 : fill == 1 ? 0xff : random.number());
    if (fill == 3)  // Numbers that are right but for one.
        for (std::size_t i = 0; i < count && width >= 4; ++i) {
            double const value = i == count / 2 ? wrong_double(1, random) : 1;
            auto const single = static_cast<float>(std::clamp(value, -3.4e38, 3.4e38));
            if (width == 8) std::memcpy(data.data() + i * width, &value, width);
            if (width == 4) std::memcpy(data.data() + i * width, &single, width);
        }
    append(bytes, place, count, data, false);
}

void spoil_missing(Bytes& bytes, Place const& place) {
    auto const back = read<flatbuffers::soffset_t>(bytes, place.table);
    auto const vtable = place.table - static_cast<std::size_t>(static_cast<std::int64_t>(back));
    auto const entry =
        vtable + flatbuffers::FieldIndexToOffset(static_cast<flatbuffers::voffset_t>(place.index));
    write(bytes, entry, flatbuffers::voffset_t{0});
}

bool spoil_bytes(Bytes& bytes, Wrong wrong, Random& random) {
    switch (wrong) {
        case Wrong::Bits:
            for (auto count = 1 + random.below(3); count > 0; --count)
                bytes[random.below(bytes.size())] ^=
                    static_cast<std::uint8_t>(1U << random.below(8));
            return true;
        case Wrong::Cut: bytes.resize(random.below(bytes.size())); return true;
        case Wrong::Longer:
            for (auto count = 1 + random.below(64); count > 0; --count)
                bytes.push_back(static_cast<std::uint8_t>(random.number()));
            return true;
        default: return false;
    }
}

}  // namespace

std::string_view name_of(Wrong wrong) noexcept {
    static constexpr std::string_view kNames[] = {"nothing", "number", "text",    "list",
                                                  "missing", "offset", "bits",    "cut",
                                                  "longer",  "sender", "repeated"};
    return kNames[static_cast<std::size_t>(wrong)];
}

bool spoil(Bytes& bytes, Wrong wrong, Random& random, std::span<std::uint64_t const> numbers) {
    if (spoil_bytes(bytes, wrong, random)) return true;
    std::vector<Place> places;
    find_places(bytes, followed(bytes, 0), wire::EnvelopeTypeTable(), places);
    auto const* const place = any_place(places, random, [&](Place const& one) {
        switch (wrong) {
            case Wrong::Number: return one.is_number();
            case Wrong::Text: return one.is_text();
            case Wrong::List: return one.is_list;
            case Wrong::Missing: return true;
            case Wrong::Offset: return !one.is_number();
            default: return false;
        }
    });
    if (place == nullptr) return false;
    switch (wrong) {
        case Wrong::Number: spoil_number(bytes, *place, random, numbers); break;
        case Wrong::Text: spoil_text(bytes, *place, random); break;
        case Wrong::List: spoil_list(bytes, *place, random); break;
        case Wrong::Missing: spoil_missing(bytes, *place); break;
        case Wrong::Offset: {
            auto const& other = random.one_of(places);
            auto const target = random.chance(30)   ? random.below(bytes.size() * 2)
                                : other.is_number() ? other.table
                                                    : followed(bytes, other.value);
            write(bytes, place->value, static_cast<uoffset_t>(target - place->value));
            break;
        }
        default: break;
    }
    return true;
}

}  // namespace dkv::fuzz
