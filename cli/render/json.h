// Facts → JSON. Numbers are exact; ids are strings, since JSON's numbers lose bits beyond 2^53.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

using Json = nlohmann::ordered_json;

Json to_json(wire::PolicyT const& policy);
Json to_json(wire::GeometryT const& geometry);
Json to_json(wire::SavingsT const& savings);
Json to_json(wire::InstanceInfoT const& instance);
Json to_json(wire::SessionInfoT const& session);
Json to_json(wire::StatusInfoT const& status);
Json to_json(wire::SavingsInfoT const& savings);
Json to_json(wire::PolicyInfoT const& policy);
Json to_json(wire::PolicyListT const& policies);
Json to_json(wire::NoticeT const& notice);

/// A list of facts, or null for one that is not there.
template <class T>
Json to_json(std::vector<std::unique_ptr<T>> const& items) {
    Json list = Json::array();
    for (auto const& item : items)
        if (item) list.push_back(to_json(*item));
    return list;
}
template <class T>
Json to_json(std::unique_ptr<T> const& item) {
    return item ? to_json(*item) : Json();
}

}  // namespace dkv::cli
