"""Personal numbers and addresses in a text: e-mail, phone, card, IBAN, IP, SSN. Every number must pass its own check.

Patterns start only at the edge of a word and have bounded repeats, so that no text makes them slow.
"""

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """A find: kind, and where it begins and ends in the text."""

    kind: str
    start: int
    end: int


_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,6}[^\W\d_]{2,24}(?![\w-])")
_SPELLED = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64} ?[\[(] ?at ?[\])] ?[\w-]{1,63}"
    r"(?: ?[\[(] ?dot ?[\])] ?[\w-]{2,63}|\.[\w-]{2,63}){1,4}",
    re.IGNORECASE,
)


# Of an address, what stands before its sign, with a blank.
LONGEST_NAME = 65
_AT = re.compile(r"[\[(] ?at ?[\])]", re.IGNORECASE)


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses, also written as `name [at] host [dot] org`."""
    # Looked for at every word, they take long: only where their sign is there, and from the word before it on.
    first, spelled = text.find("@"), _AT.search(text)
    patterns = [(_EMAIL, first)] if first >= 0 else []
    patterns += [(_SPELLED, spelled.start())] if spelled else []
    for pattern, sign in patterns:
        for match in pattern.finditer(text, max(0, sign - LONGEST_NAME)):
            lead = len(match.group()) - len(match.group().lstrip(".'-"))
            yield Span("email", match.start() + lead, match.end())


_DIGIT = re.compile(r"\d")


def _first_digit(text: str) -> int:
    """Where numbers can begin: what stands before it is not searched. The length of the text when there is none."""
    match = _DIGIT.search(text)
    return match.start() if match else len(text)


_DIGITS = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){11,22}(?![\w-]|\.\d)")
_BRANDS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}(?:\d\d)?|6(?:011|4[4-9]\d|5\d\d)\d{12}|35\d{14}|(?:2131|1800)\d{11}|62\d{14,17}"
    r"|(?:0604|50[0-9]{2}|5[6-9]\d\d|6[37]\d\d)\d{8,15}"
)


def luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1, annex B)."""
    doubled = [int(d) * 2 for d in digits[-2::-2]]
    return (sum(map(int, digits[::-2])) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


def cards(text: str) -> Iterator[Span]:
    """Payment cards: the number range of an issuer, and a right check digit."""
    for match in _DIGITS.finditer(text, _first_digit(text)):
        digits = re.sub(r"\D", "", match.group())
        if len(set(digits)) > 1 and _BRANDS.fullmatch(digits) and luhn(digits):
            yield Span("card", *match.span())


# Length of an IBAN per country (ISO 13616 registry).
_REGISTRY = (
    " AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22"
    " DJ:27 DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FK:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21"
    " HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27"
    " MD:24 ME:22 MK:19 MN:20 MR:27 MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24"
    " RS:22 RU:33 SA:24 SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22"
    " VG:24 XK:20 YE:30"
)
IBAN_LENGTHS = {pair[:2]: int(pair[3:]) for pair in _REGISTRY.split()}
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,29}")


def ibans(text: str) -> Iterator[Span]:
    """Bank accounts: the length of the country and right check digits (ISO 7064, modulo 97)."""
    for match in _IBAN.finditer(text):
        length = IBAN_LENGTHS.get(match.group()[:2].upper(), 0)
        places = [i for i, character in enumerate(match.group()) if character.isalnum()][:length]
        if not length or len(places) < length:
            continue
        compact = "".join(match.group()[i] for i in places).upper()
        end = match.start() + places[-1] + 1
        if end < len(text) and text[end].isalnum():
            continue
        if int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1:
            yield Span("iban", match.start(), end)


_V4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_V6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?![\w:]|\.\d)")
_VERSIONED = re.compile(
    r"(?:\bv(?:er(?:sion)?)?|\brelease|\bsection|\bchapter|§|==|>=|<=|~=)[ .:]{0,2}\Z", re.IGNORECASE
)
_ADDRESSED = re.compile(
    r"\b(?:ip|ips|ipv4|address|host|server|client|from|ping|ssh|login)\b[^\n]{0,24}\Z", re.IGNORECASE
)


def addresses(text: str) -> Iterator[Span]:
    """IP addresses of a machine. Versions, netmasks, loopback and slices such as `[::2]` are none."""
    for match in _V4.finditer(text, _first_digit(text)):
        try:
            address = ipaddress.IPv4Address(match.group())
        except ValueError:
            continue
        before = text[max(0, match.start() - 40) : match.start()]
        is_small = all(len(part) == 1 for part in match.group().split("."))
        if (
            address.is_loopback or address.is_unspecified or address.is_multicast or match.group().startswith("255.")
            or _VERSIONED.search(before) or (is_small and not _ADDRESSED.search(before))
        ):  # fmt: skip
            continue
        yield Span("ip", *match.span())
    if text.count(":") < 2:
        return
    for match in _V6.finditer(text, max(0, text.index(":") - 4)):
        groups = [group for group in match.group().split(":") if group]
        if len(groups) < 3 or not any(len(group) >= 3 for group in groups):
            continue
        try:
            ipaddress.IPv6Address(match.group())
        except ValueError:
            continue
        yield Span("ip", *match.span())


_SSN = re.compile(r"(?<![\w.-])(?!000|666|9\d\d)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}(?![\w-]|\.\d)")
_SSN_PLAIN = re.compile(
    r"\b(?:ssn|social security(?: number| no\.?)?)\b[^\d\n]{0,16}((?!000|666|9\d\d)\d{3}(?!00)\d\d(?!0000)\d{4})(?!\d)",
    re.IGNORECASE,
)


def social_numbers(text: str) -> Iterator[Span]:
    """US social security numbers; nine digits in a row only where the text says what they are."""
    for match in _SSN.finditer(text, _first_digit(text)):
        yield Span("ssn", *match.span())
    for match in _SSN_PLAIN.finditer(text):
        yield Span("ssn", *match.span(1))


# Possessive: a run of digits is taken whole, so there is one way to read it. For the groups a lookahead does that:
# Python before 3.11.5 misreads a possessive group that holds a choice (python/cpython#106052).
_PHONE = re.compile(
    r"(?<![\w.+/=#-])(?<!\d:)(?:(?:\+|00) ?\(?\d{1,3}+\)?[ ./-]{0,2}+)?(?:\(\+?\d{1,5}+\)[ ./-]{0,2}+)?"
    r"\d{1,5}+(?=(?P<groups>(?:[ ./-]{1,3}+\(?\d{1,5}+\)?|\d){1,12}))(?P=groups)"
    r"(?: ?(?:x|ext\.?) ?\d{1,6}+)?(?![\w/=-]|[.,]\d)"
)
_LAST_GROUP = re.compile(r"[ ./-]+\(?\d+\)?\Z")
_CALLED = re.compile(
    r"(?:\b(?:phone|tel|telephone|mobile|cell|call|fax|whatsapp|sms|text|reach|ring|dial|number is|"
    r"hotline|contact|handy|"
    r"telefon|telefono|teléfono|móvil|téléphone|portable|cellulare|numer)\b|☎|📞|📱)[^\n\d]{0,32}\Z",
    re.IGNORECASE,
)
_DAY, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:1[0-9]|20)\d\d"
_DATE = re.compile(
    rf"(?:{_YEAR}[-./ ]{_DAY}[-./ ]{_DAY}|{_DAY}[-./ ]{_DAY}[-./ ](?:{_YEAR}|\d\d))(?: \d{{1,2}})?"
    rf"|{_YEAR} ?[-/] ?(?:{_YEAR}|\d\d)"
)
_OTHER = re.compile(
    r"(?:isbn(?:-1[03])?|issn|doi|order|invoice|ticket|tracking|serial|part|item|sku|ref(?:erence)?|case|id|no\.?|nr\.?|#"
    r"|version|v)[ :.#-]{0,3}\Z",
    re.IGNORECASE,
)
_NORTH_AMERICAN = re.compile(r"(?:1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}")
_SHAPES = re.compile(r"0\d{1,5}[ ./-]{1,3}\d[\d /.-]{4,12}|\(0\d{1,5}\) ?\d[\d -]{3,12}|\(?\d\d\)? 9?\d{4}-\d{4}")
_FRENCH = re.compile(r"0[1-9](?:([ .-])\d\d)(?:\1\d\d){3}")
_OTHER_SIGNS, _EXTENSION, LEAST_DIGITS = re.compile(r"\D"), re.compile(r" ?(?:x|ext)"), 7
REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "IN", "BR", "PL", "AU", "AT", "CH", "JP")


def phones(text: str, regions: tuple[str, ...] = REGIONS) -> Iterator[Span]:
    """Telephone numbers. What looks like one is checked with the number plans of the world (phonenumbers)."""
    # Before the first digit there is at most a sign or two.
    for match in _PHONE.finditer(text, max(0, _first_digit(text) - 4)):
        before = text[max(0, match.start() - 48) : match.start()]
        length = _phone_length(match.group(), before, regions)
        if length:
            is_closed = match.group()[:length].count("(") >= match.group()[:length].count(")")
            yield Span("phone", match.start(), match.start() + length - (not is_closed))


def _is_isbn(digits: str) -> bool:
    return len(digits) == 10 and sum((10 - i) * int(d) for i, d in enumerate(digits)) % 11 == 0


def _phone_length(found: str, before: str, regions: tuple[str, ...]) -> int:
    """How many characters of the find are a number; 0 for none. What follows may have been taken along."""
    digits = _OTHER_SIGNS.sub("", found)
    if len(digits) < LEAST_DIGITS or _DATE.fullmatch(found):
        return 0
    is_called = bool(_CALLED.search(before))
    if not is_called and _is_isbn(digits):
        return 0
    is_other = not is_called and bool(_OTHER.search(before))
    for _ in range(4):
        if _is_phone(found, is_called, is_other, regions):
            return len(found)
        shorter = _LAST_GROUP.sub("", found)
        if shorter == found:
            return 0
        found = shorter
    return 0


def _is_phone(found: str, is_called: bool, is_other: bool, regions: tuple[str, ...]) -> bool:
    """`is_called`, `is_other`: what stands before it says that it is a phone number, or something else."""
    main = _EXTENSION.split(found)[0]
    digits = _OTHER_SIGNS.sub("", main)
    if not LEAST_DIGITS <= len(digits) <= 15 or len(set(digits)) < 3:
        return False
    if found.startswith(("+", "00", "(+")):
        return _is_number("+" + digits.removeprefix("00"), None)
    if is_other or _DATE.fullmatch(main):
        return False
    if _NORTH_AMERICAN.fullmatch(main):
        return True
    # Digits alone are a number to call only where the text says so, or where they begin as one does at home.
    has_shape = bool(_SHAPES.fullmatch(main)) or (digits[0] == "0" and len(digits) in (9, 10, 11))
    if (is_called and digits[0] == "0" and len(digits) >= 9) or _FRENCH.fullmatch(main):
        return True
    return (is_called or has_shape) and any(_is_number(digits, region) for region in regions)


def _is_number(digits: str, region: str | None) -> bool:
    # Loaded where it is needed: most sets have no number that comes this far.
    import phonenumbers

    try:
        number = phonenumbers.parse(digits, region)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(number) or (region is None and phonenumbers.is_possible_number(number))
