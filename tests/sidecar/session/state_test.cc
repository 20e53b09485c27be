#include "sidecar/session/state.h"

#include <doctest/doctest.h>

#include "protocol/base/printable.h"
#include "sidecar/session/facts.h"

namespace dkv {
namespace {

TEST_CASE("session: every state and event, on one page") {
    using enum SessionState;
    std::string table;
    for (auto const state : {Open, Prefill, Planned, Committed, Adopted, Closed, Failed}) {
        for (auto const event :
             {SessionEvent::Bind, SessionEvent::Layer, SessionEvent::Plan, SessionEvent::Commit,
              SessionEvent::Adopt, SessionEvent::Fail, SessionEvent::Close}) {
            auto const after = next(state, event);
            table += after ? "OPNCAXF"[static_cast<unsigned>(*after)] : '.';
        }
        table += '\n';
    }
    //    bind layer plan commit adopt fail close
    CHECK(table ==
          "P....FX\n"    // open
          ".PN..FX\n"    // prefill
          "...C.FX\n"    // planned
          "....A.X\n"    // committed
          "......X\n"    // adopted
          ".......\n"    // closed
          "......X\n");  // failed
}

TEST_CASE("what a peer says for people is cut and made fit for a terminal") {
    CHECK(printable("SmolLM2 é 日本", 100) == "SmolLM2 é 日本");
    CHECK(printable("a\nb\x1b[31m\x7f", 100) == "a?b?[31m?");
    CHECK(printable("\xff\xc3\x28\xed\xa0\x80\xc0\x80", 100) == "?\?(?????");
    CHECK(printable("日本", 4) == "日");
    CHECK(printable("\xe6\x97", 100) == "?\?");
    CHECK(id_name(0x1f) == "0x000000000000001f");
}

}  // namespace
}  // namespace dkv
