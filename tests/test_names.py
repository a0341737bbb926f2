"""Symbols in texts for people stand as the source has them; JSON has them as they are."""

import pytest

from reloader.commands.names import readable

HANDLER = (
    "_ZNSt17_Function_handlerIFNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEERK3JobEZ14"
    "register_rulesR5QueueEUlS8_E_E9_M_invokeERKSt9_Any_dataS8_"
)
OWNERS = "_ZNSt6vectorISt10unique_ptrI5ShapeSt14default_deleteIS1_EESaIS4_EED2Ev"
RUST = (
    "_ZN64_$LT$server..shapes..Circle$u20$as$u20$server..shapes..Shape$GT$4area"
    "17h2ce3753237fa9cd8E"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("draw.o live: draw (1 function)", "draw.o live: draw (1 function)"),
        ("_Z5riskyi, _ZNK6Square4nameB5cxx11Ev live", "risky, Square::name live"),
        ("new: _ZL8the_rule. made_Zx", "new: the_rule. made_Zx"),
        (HANDLER, "register_rules(Queue&)::{lambda(Job const&)#1}"),
        (OWNERS, "std::vector<std::unique_ptr<Shape>>::~vector"),
        (RUST, "<server::shapes::Circle as server::shapes::Shape>::area"),
        ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
        ("_Z and _R and _Zzz9 are nobody's", "_Z and _R and _Zzz9 are nobody's"),
    ],
)
def test_names_are_those_of_the_source(text: str, shown: str) -> None:
    assert readable(text) == shown


def test_without_binutils_names_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert readable("_Z14never_seen_yeti live") == "_Z14never_seen_yeti live"
