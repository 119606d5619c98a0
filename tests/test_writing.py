"""Gaps, words and their equality in many scripts."""

from __future__ import annotations

import unicodedata

import pytest

from tomfisher.writing import (
    begins_with,
    first_word,
    fold,
    gap_between,
    is_spaceless,
    join_spaceless,
)


@pytest.mark.parametrize(
    ("before", "after", "gap"),
    [
        ("The cup is in the", "cupboard", " "),
        ("The cup is in the.", "It", " "),
        ("She said “", "yes", ""),
        ("f(", "x", ""),
        ("« Il a dit ", "oui", ""),
        ("The answer is", "3", " "),
        ("Глеб думает, что в коробке", "яблоки", " "),
        ("الكرة موجودة في", "السلة", " "),
        ("הכדור נמצא ב", "סל", " "),
        ("गेंद यहाँ है:", "टोकरी", " "),
        ("공은 어디에 있습니까?", "바구니", " "),
        ("Quả bóng ở trong", "giỏ", " "),
        ("小明把球放进了", "篮子", ""),
        ("問題：球在哪裡？\n答:", "籃子", ""),
        ("答案是“", "篮子", ""),
        ("答案：", "A", ""),
        ("Answer", "（A）", ""),
        ("一共有", "3个", ""),
        ("他叫", "John", " "),
        ("They call it", "饺子", " "),
        ("ボールは", "バスケット", ""),
        ("ﾎﾞｰﾙは", "箱", ""),
        ("เขาคิดว่าลูกบอลอยู่ใน", "ตะกร้า", ""),
        ("ລູກບານຢູ່ໃນ", "ກະຕ່າ", ""),
        ("បាល់នៅក្នុង", "កន្ត្រក", ""),
        ("ဘောလုံးက", "ခြင်းထဲမှာ", ""),
        ("པོ་ལོ་", "སྒམ་ནང་", ""),
        ("\U00020000", "\U0002a700", ""),
        ("Where is it?\n", "basket", ""),
        ("Where is it? ", "basket", ""),
        ("Where is it?\u3000", "basket", ""),
        ("Where is it?", "\nbasket", ""),
        ("", "basket", ""),
    ],
)
def test_the_gap_follows_the_writing(before: str, after: str, gap: str) -> None:
    assert gap_between(before, after) == gap


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (" 篮子。\n然后", "篮子"),
        ("「篮子」です", "篮子"),
        ("basket。然后", "basket"),
        ("ตะกร้า ครับ", "ตะกร้า"),
        ("टोकरी।", "टोकरी"),
        ("السلة، ثم", "السلة"),
        ("¿Cesta?", "cesta"),
        ("«корзина»,", "корзина"),
        ("སྒམ་ནང་།", "སྒམ་ནང"),
        ("\u200fסל\u200f.", "סל"),
        ("🧺!", "🧺"),
        ("don't know", "don't"),
        ("$5.", "5"),
        ("。", ""),
        (" Popcorn, and", "popcorn"),
        ("“chocolate”.", "chocolate"),
        ("\n\nthe bag", "the"),
        ("...", ""),
        ("  ", ""),
        ("Äpfel!", "äpfel"),
    ],
)
def test_words_end_where_unicode_says(text: str, word: str) -> None:
    assert first_word(text) == word


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Straße", "STRASSE"),
        ("ＢＯＸ", "box"),
        ("café", unicodedata.normalize("NFD", "CAFÉ")),
        ("ﾊﾞｽｹｯﾄ", "バスケット"),
        ("می‌خواهم", "میخواهم"),
        ("葛\U000e0100", "葛"),
        ("ΟΔΟΣ", "οδος"),
    ],
)
def test_words_that_differ_only_in_form_are_the_same(one: str, other: str) -> None:
    assert fold(one) == fold(other) and begins_with(first_word(one), first_word(other))


@pytest.mark.parametrize(
    ("written", "word", "same"),
    [
        ("basket", "basket", True),
        ("baskets", "basket", False),
        ("篮子里面", "篮子", True),
        ("篮", "篮子", False),
        ("箱です", "箱", True),
        ("3个", "3", True),
        ("33个", "3", False),
        ("กำ", "ก", False),
        ("か\u3099", "か", False),
        ("바구니에", "바구니", False),
        ("टोकरी", "टोकर", False),
        ("basket", "", False),
        ("", "basket", False),
    ],
)
def test_only_scripts_without_spaces_go_on_behind_a_word(written: str, word: str, same: bool) -> None:
    assert begins_with(written, word) is same


def test_punctuation_and_digits_belong_to_no_script() -> None:
    assert not any(is_spaceless(c) for c in "。：5aф한")
    assert all(is_spaceless(c) for c in "篮ひカーไກកမ")


def test_spaces_that_a_tokenizer_puts_between_characters_are_taken_out() -> None:
    assert join_spaceless("箱 の 中 。 a b 書 c") == "箱の中 。 a b 書 c"
