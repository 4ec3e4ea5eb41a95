"""Made items with personal data and without: by Faker and by the formats that providers publish, not by our patterns.

Nothing in it is real. Every key is drawn from a seeded generator at run time, so none of them lies in the repository.
"""

import base64
import json
import random
import string
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from faker import Faker

SEED = 4711
ITEMS = 300
LOCALES = ["en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "pt_BR", "en_IN", "en_AU", "de_AT"]
AROUND = [
    "Hi, please use {} from now on, thanks!",
    "I moved last week, so write down {} instead of the old one.",
    "{}",
    "Name: Lena\n{}\nCity: Porto",
    'customer said "{}" and then hung up',
    "Could you check {}? It did not work yesterday.",
    "- {}\n- second line",
    "Thanks for your quick answer. Mine is {}.",
    "We have ({}) on file; is that right?",
    "| Ana | {} | open |",
    "Sure: {}, as always.",
    "Ich glaube, es war {} oder so.",
    "Voici {} comme convenu.",
]
AROUND_PHONES = [
    "Please call me at {} after six.",
    "My number is {}.",
    "Tel: {}",
    "phone {}",
    "Reach me on {} any time",
    "Mobile: {}, thanks",
    "You can text {} for an appointment.",
    "Telefon {}",
    "I will be away. {} is where my wife answers.",
    "Contact: {}",
]
AROUND_KEYS = [
    "export API_KEY={}",
    'api_key = "{}"',
    "Authorization: Bearer {}",
    "my token is {} please fix it",
    "'secret': '{}',",
    "auth_token: {}",
    "I pasted {} by mistake",
    "client_secret={}&grant=1",
    "password: {}",
]


class Item(NamedTuple):
    """A text; the kind in it and where it stands. Decoys have no kind."""

    text: str
    kind: str
    start: int
    end: int


def _letters(rng: random.Random, n: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choice(alphabet) for _ in range(n))


def _part(value: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _web_token(rng: random.Random) -> str:
    return f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part({'sub': str(rng.randrange(10**9))})}.{_letters(rng, 43)}"


def _key(rng: random.Random) -> str:
    return rng.choice(
        [
            lambda: "AKIA" + _letters(rng, 16, string.ascii_uppercase + "234567"),
            lambda: "ghp_" + _letters(rng, 36),
            lambda: f"github_pat_{_letters(rng, 22)}_{_letters(rng, 59)}",
            lambda: "sk-" + _letters(rng, 48),
            lambda: "sk-proj-" + _letters(rng, 100, string.ascii_letters + string.digits + "-_"),
            lambda: "sk-ant-api03-" + _letters(rng, 93, string.ascii_letters + string.digits + "-_") + "AA",
            lambda: f"xoxb-{rng.randrange(10**11, 10**12)}-{rng.randrange(10**12, 10**13)}-{_letters(rng, 24)}",
            lambda: "AIza" + _letters(rng, 35, string.ascii_letters + string.digits + "-_"),
            lambda: "sk_live_" + _letters(rng, 24),
            lambda: "hf_" + _letters(rng, 34),
            lambda: "glpat-" + _letters(rng, 20),
            lambda: f"SG.{_letters(rng, 22)}.{_letters(rng, 43)}",
            lambda: "npm_" + _letters(rng, 36),
            lambda: _web_token(rng),
            lambda: f"{rng.randrange(10**8, 10**10)}:AA{_letters(rng, 33)}",
        ]
    )()


def _unknown_key(rng: random.Random) -> str:
    """A key of a service that has no prefix."""
    return rng.choice(
        [lambda: _letters(rng, rng.randrange(20, 48)), lambda: _letters(rng, 40, "0123456789abcdef"),
         lambda: base64.b64encode(rng.randbytes(30)).decode()]
    )()  # fmt: skip


def _pem(rng: random.Random) -> str:
    made = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
    kind = rng.choice([serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.OpenSSH])
    if kind is serialization.PrivateFormat.OpenSSH:
        # The library salts this format anew each time; its outer shape is what counts.
        body = base64.b64encode(rng.randbytes(290)).decode()
        lines = "\n".join(body[i : i + 70] for i in range(0, len(body), 70))
        return f"-----BEGIN OPENSSH PRIVATE KEY-----\n{lines}\n-----END OPENSSH PRIVATE KEY-----"
    return made.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()).decode().strip()


def _login(rng: random.Random, fake: Faker) -> tuple[str, str]:
    """(the address, the part of it that is secret)."""
    user, word = fake.user_name(), fake.password(length=rng.randrange(8, 16), special_chars=False)
    scheme = rng.choice(["https", "postgres", "mysql", "mongodb+srv", "redis", "ftp", "amqp", "http"])
    if rng.random() < 0.25:
        name, value = rng.choice(["access_token", "api_key", "token", "sig"]), _letters(rng, 24) + "7"
        return f"https://{fake.domain_name()}/v1/items?page=2&{name}={value}", value
    place = f"{fake.domain_name()}{rng.choice(['', ':5432', ':8080'])}/{fake.word()}"
    return f"{scheme}://{user}:{word}@{place}", f"{user}:{word}"


def items(kind: str, n: int = ITEMS) -> Iterator[Item]:
    """`n` seeded texts, each with one item of the kind."""
    rng = random.Random(f"{SEED}{kind}")
    fakes = [Faker(locale) for locale in LOCALES]
    for index, fake in enumerate(fakes):
        fake.seed_instance(f"{SEED}{kind}{index}")
    makers: dict[str, Callable[[Faker], str]] = {
        "email": lambda f: rng.choice([f.email, f.company_email, f.free_email, f.ascii_safe_email])(),
        "phone": lambda f: f.phone_number(),
        "card": lambda f: _grouped(rng, f.credit_card_number()),
        "iban": lambda f: _spaced(rng, f.iban()),
        "ip": lambda f: f.ipv6() if rng.random() < 0.3 else f.ipv4_public(),
        "ssn": lambda f: fakes[0].ssn(),
        "key": lambda f: _key(rng),
        "private_key": lambda f: _pem(rng),
    }
    if kind == "iban":
        # Faker's British accounts are a digit short of the registry's length.
        fakes = [
            fake
            for fake, locale in zip(fakes, LOCALES, strict=True)
            if locale not in ("en_GB", "en_IN", "en_AU", "en_US")
        ]
    for number in range(n):
        fake = fakes[number % len(fakes)]
        around = rng.choice(AROUND)
        if kind == "url":
            whole, secret = _login(rng, fake)
        else:
            whole = secret = makers[kind](fake)
            if kind == "key" and rng.random() < 0.4:
                whole = secret = _unknown_key(rng)
                around = rng.choice(AROUND_KEYS)
            elif kind == "phone" and rng.random() < 0.7:
                around = rng.choice(AROUND_PHONES)
        start = around.index("{}") + whole.index(secret)
        yield Item(around.replace("{}", whole), kind, start, start + len(secret))


def _grouped(rng: random.Random, digits: str) -> str:
    sign = rng.choice(["", " ", "-"])
    return sign.join(digits[i : i + 4] for i in range(0, len(digits), 4))


def _spaced(rng: random.Random, iban: str) -> str:
    return iban if rng.random() < 0.5 else " ".join(iban[i : i + 4] for i in range(0, len(iban), 4))


def decoys(n: int = ITEMS) -> Iterator[Item]:
    """`n` seeded texts that look like it and are not: dates, versions, ISBN, hashes, prices, mentions, slices."""
    rng = random.Random(f"{SEED}decoys")
    fake = Faker("en_US")
    fake.seed_instance(SEED)

    def below(n: int) -> int:
        return rng.randrange(n)

    makers: list[Callable[[], str]] = [
        fake.isbn13,
        fake.isbn10,
        fake.uuid4,
        fake.sha1,
        fake.sha256,
        fake.mac_address,
        fake.iso8601,
        lambda: fake.date(pattern=rng.choice(["%d.%m.%Y", "%m/%d/%Y", "%Y-%m-%d", "%d-%m-%y"])),
        fake.time,
        lambda: f"version {below(9)}.{below(40)}.{below(99)}.{below(999)}",
        lambda: f"v{below(9)}.{below(9)}.{below(9)}",
        lambda: f"order no. {rng.randrange(10**8, 10**11)}",
        lambda: f"{below(99)},{rng.randrange(100, 999)},{rng.randrange(100, 999)}.{rng.randrange(10, 99)} USD",
        lambda: f"@{fake.user_name()}",
        lambda: f"x[{below(9)}::{rng.randrange(1, 9)}]",
        lambda: f"{rng.random() * 90:.6f}, {rng.random() * 90:.6f}",
        lambda: f"{below(10**3)} x {below(10**3)} = {below(10**6)}",
        lambda: f"invoice {rng.randrange(2015, 2027)}-{rng.randrange(10**4, 10**5)}",
        fake.hex_color,
        fake.uri,
        lambda: f"{rng.randrange(1900, 2026)}-{rng.randrange(1900, 2026)}",
        lambda: f"std::{fake.word()}::{fake.word()}",
        lambda: f"scores 3-2, 1-1, {below(9)}-{below(9)}",
        lambda: f"api_key = os.environ['{fake.word().upper()}_KEY']",
        lambda: "password: your-password-here",
        lambda: f"the key to {fake.word()} is patience",
        lambda: f"EAN {fake.ean13()}",
        lambda: f"{fake.postcode()} {fake.city()}",
        lambda: f"127.0.0.1:{rng.randrange(1000, 9999)}",
    ]
    for number in range(n):
        text = rng.choice(AROUND).replace("{}", str(makers[number % len(makers)]()))
        yield Item(text, "", 0, 0)
