"""Disassemblies as `cuobjdump -sass` prints them, shortened: what is counted, and what is a loop."""
import sass


def text(*lines, symbol="kernel", architecture=80):
    code = "".join(f"        /*{16 * at:04x}*/                   {line} ;   /* 0x000000000000794d */\n"
                   "                                                         /* 0x000fea0003800000 */\n"
                   for at, line in enumerate(lines))
    return f"\tcode for sm_{architecture}\n\n\t\tFunction : {symbol}\n\t.headerflags\t@\"EF_CUDA_SM80\"\n{code}\t\t.....\n"


def counts(*lines):
    (code,) = sass.read_sass(text(*lines)).values()
    return sass.count(code)


def test_kernels_are_told_apart_by_architecture():
    read = sass.read_sass(text("EXIT") + text("NOP", "EXIT", architecture=90))
    assert {key: len(code) for key, code in read.items()} == {("kernel", 80): 1, ("kernel", 90): 2}


def test_an_instruction_is_taken_apart():
    ((first, second),) = sass.read_sass(text("@!P0 LDG.E.128.CONSTANT R4, [R2.64+0x10]", "EXIT")).values()
    assert (first.address, first.predicated, first.name, first.modifiers) == (0, True, "LDG", ("E", "128", "CONSTANT"))
    assert first.operands == "R4, [R2.64+0x10]"
    assert (second.address, second.predicated, second.name) == (16, False, "EXIT")


def test_straight_code_has_no_loop_and_filling_behind_it_is_none():
    found = counts("LDG.E.128 R4, [R2.64]", "STG.E.128 [R2.64], R4", "LDG.E.64 R4, [R2.64]", "EXIT", "BRA 0x40", "NOP")
    assert found.shown("LDG.128") == "1/0/0"
    assert found.shown("STG.128") == "1/0/0"


def test_a_branch_back_is_a_loop_and_the_inner_one_the_innermost():
    found = counts(
        "HMMA.16816.F32 R4, R8, R10, R4",     # 00 before
        "LDGSTS.E.BYPASS.128 [R4], [R2.64]",  # 10 outer
        "LDSM.16.M88.4 R8, [R4]",             # 20 inner
        "HMMA.16816.F32 R4, R8, R10, R4",     # 30 inner
        "@P0 BRA 0x20",                       # 40
        "BAR.SYNC.DEFER_BLOCKING 0x0",        # 50 outer
        "@P1 BRA 0x10",                       # 60
        "EXIT")
    assert found.shown("HMMA") == "2/1/1"
    assert found.shown("LDGSTS") == "1/1/0"
    assert found.shown("LDSM") == "1/1/1"
    assert found.shown("BAR") == "1/1/0"


def test_code_moved_out_of_line_that_jumps_back_is_no_loop():
    found = counts(
        "@P0 BRA 0x30",           # 00 to the rare case
        "LDS.128 R4, [R2]",       # 10 comes after it, too
        "EXIT",                   # 20
        "LDL R4, [R1]",           # 30
        "BRA 0x10")               # 40 back
    assert found.shown("LDS.128") == "1/0/0"
    assert found.whole["LDL"] == 1 and found.loops["LDL"] == 0


def test_threads_that_rejoin_go_on_behind():
    found = counts(
        "BSSY B0, 0x40",          # 00
        "@P0 BRA 0x60",           # 10
        "STL [R1], R4",           # 20
        "BSYNC B0",               # 30
        "@P1 BRA 0x0",            # 40 the loop's end
        "EXIT",                   # 50
        "LDS.128 R4, [R2]",       # 60 out of line, in the loop by way of BSYNC
        "BSYNC B0")               # 70
    assert found.shown("LDS.128") == "1/1/1"
    assert found.shown("STL") == "1/1/1"


def test_a_branch_that_is_conditional_by_its_operand_goes_on_as_well():
    found = counts("BRA P0, 0x20", "LDS.128 R4, [R2]", "BRA.DIV UR4, 0x50", "BRA 0x0", "EXIT", "BRA 0x30")
    assert found.shown("LDS.128") == "1/1/1"


def test_a_barrier_that_is_used_again_joins_nothing_else():
    found = counts(
        "BSSY B0, 0x40",          # 00 before the loop
        "@P0 BRA 0x90",           # 10
        "NOP",                    # 20
        "BSYNC B0",               # 30
        "LDS.128 R4, [R2]",       # 40 the loop
        "BSSY B0, 0x80",          # 50
        "@P1 BRA 0xb0",           # 60
        "BSYNC B0",               # 70
        "BRA P2, 0x40",           # 80
        "BSYNC B0",               # 90 the first's, out of line: not into the middle of the loop
        "EXIT",                   # a0
        "BSYNC B0")               # b0 the second's
    assert found.shown("LDS.128") == "1/1/1"
