"""Splits: where DeepSeek's tokenizers cut a text before byte pairs are merged, V2's way and V3's."""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

# Letters with two cases, Georgian's small ones left out, as ranges of code points in hexadecimal.
# Source: the deepseek-llm pattern in llama.cpp's src/llama-vocab.cpp.
_CASED = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 388-38A 38C 38E-3A1
3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A
1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4
1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128
212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D
A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
# ASCII's, their fullwidth forms, curly quotation marks, and the CJK space, comma and full stop.
_PUNCTUATION = "21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002"
_CJK_AND_HANGUL = "4E00-9FA5 800-4E00 AC00-D7FF"


def _class(ranges: str) -> str:
    """Return a character class in Oniguruma's spelling."""
    parts = (part.split("-") for part in ranges.split())
    return "[" + "".join("-".join(rf"\x{{{end}}}" for end in part) for part in parts) + "]"


# Each pattern cuts the pieces that the ones before it made. That V2's classes overlap (3A-7E has the letters in it, so
# `été` falls apart) is DeepSeek's own; whoever trains such a tokenizer wants just that.
PATTERNS = {
    "v2": (
        r"[\r\n]",
        rf"\s?{_class(_CASED)}+",
        rf"\s?{_class(_PUNCTUATION)}+",
        r"\s+$",
        rf"{_class(_CJK_AND_HANGUL)}+",
        r"\p{N}",
    ),
    # Digit runs of one to three, CJK and kana runs, then words, punctuation and space.
    "v3": (
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}


def splits(style: str) -> pre_tokenizers.Sequence:
    """Return the pre-tokenizer of a style, bytes included.

    Args:
        style: "v2" or "v3".
    Source: tokenizer.json of the two families, through llama.cpp's deepseek-llm and deepseek-v3; that V2's digits
        stand alone is in DeepSeek LLM (arXiv 2401.02954) section 2.1.
    """
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[style]]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
