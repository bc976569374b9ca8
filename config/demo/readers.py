"""The readers' file: 2,000 people from many places, 20, 40 and 60 of whom the world treats ill."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from itertools import cycle
from pathlib import Path

from config.demo.world import Fate, fate_of

# DEMO_READERS: a smaller or larger show, in hundreds.
READERS = int(os.environ.get("DEMO_READERS", "2000"))
# Of each hundred readers one is refused, two are deferred once, three are reported (world.py).
IN_EACH_HUNDRED = {
    7: Fate.REFUSED,
    23: Fate.DEFERRED_ONCE,
    71: Fate.DEFERRED_ONCE,
    11: Fate.REPORTED,
    45: Fate.REPORTED,
    88: Fate.REPORTED,
}

# Only RFC 2606's names: should a letter ever leave this machine, it reaches nobody.
DOMAINS = ("mail.example.org", "post.example.net", "inbox.example.com", "letters.example.org")


@dataclass(frozen=True, slots=True)
class Reader:
    """A line of the file; the fields are its columns."""

    email: str
    name: str
    first_name: str
    last_name: str
    language: str
    city: str


@dataclass(frozen=True, slots=True)
class Place:
    """Names as they are written there, each with a spelling for the address."""

    language: str
    cities: tuple[str, ...]
    first_names: tuple[tuple[str, str], ...]
    last_names: tuple[tuple[str, str], ...]
    family_first: bool = False


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """ "Zoë/zoe Seán/sean" as pairs; an underscore stands for a space."""
    return tuple(
        (written.replace("_", " "), spelling)
        for written, spelling in (word.split("/") for word in text.split())
    )


PLACES = (
    Place(
        "en",
        ("Leeds", "Galway", "Wellington"),
        pairs("Ada/ada Grace/grace Seán/sean Zoë/zoe Noor/noor Tom/tom Ruby_🌻/ruby"),
        pairs("O'Brien/o'brien Whitfield/whitfield D'Souza/d'souza Okafor/okafor Smith-Jones/s-j"),
    ),
    Place(
        "de",
        ("Köln", "Zürich", "Graz"),
        pairs("Jürgen/juergen Käthe/kaethe Anneliese/anneliese Björn/bjoern Mia/mia"),
        pairs("Groß/gross Müller/mueller von_der_Heide/vonderheide Schäfer/schaefer"),
    ),
    Place(
        "fr",
        ("Orléans", "Liège", "Québec"),
        pairs("Hélène/helene François/francois Maëlle/maelle Anaïs/anais Loïc/loic"),
        pairs("Lefèvre/lefevre D'Aboville/d'aboville Bâ/ba Nuñez/nunez Le_Goff/legoff"),
    ),
    Place(
        "pl",
        ("Łódź", "Kraków"),
        pairs("Łukasz/lukasz Żaneta/zaneta Stanisław/stanislaw Małgorzata/malgorzata"),
        pairs("Wiśniewska/wisniewska Dąbrowski/dabrowski Źrebiec/zrebiec"),
    ),
    Place(
        "tr",
        ("İzmir", "Iğdır"),
        pairs("İrem/irem Işıl/isil Çağla/cagla Ömer/omer"),
        pairs("Yıldız/yildiz Şahin/sahin Öztürk/ozturk"),
    ),
    Place(
        "vi",
        ("Huế", "Đà Nẵng"),
        pairs("Ngọc_Ánh/ngocanh Thị_Hương/thihuong Đức/duc"),
        pairs("Nguyễn/nguyen Trần/tran Phạm/pham"),
        family_first=True,
    ),
    Place(
        "el",
        ("Αθήνα", "Χανιά"),
        pairs("Ελένη/eleni Γιώργος/giorgos Αθηνά/athina Νίκος/nikos"),
        pairs("Παπαδοπούλου/papadopoulou Οικονόμου/oikonomou Βασιλείου/vasileiou"),
    ),
    Place(
        "uk",
        ("Львів", "Київ"),
        pairs("Олена/olena Андрій/andriy Ярина/yaryna Юрій/yuriy"),
        pairs("Шевченко/shevchenko Ковальчук/kovalchuk Дем'яненко/dem'yanenko"),
    ),
    Place(
        "bg",
        ("София", "Пловдив"),
        pairs("Десислава/desislava Георги/georgi Цветан/tsvetan"),
        pairs("Иванова/ivanova Щерев/shterev Желязков/zhelyazkov"),
    ),
    Place(
        "ar",
        ("القاهرة", "عمّان"),
        pairs("ليلى/layla محمد/mohammed فاطمة/fatima يوسف/yousef"),
        pairs("حداد/haddad الخوري/alkhoury منصور/mansour"),
    ),
    Place(
        "he",
        ("חיפה", "ירושלים"),
        pairs("נועה/noa יוסף/yosef תמר/tamar"),
        pairs("כהן/cohen בן־דוד/ben-david לוי/levi"),
    ),
    Place(
        "hi",
        ("वाराणसी", "पुणे"),
        pairs("प्रिया/priya अर्जुन/arjun लक्ष्मी/lakshmi"),
        pairs("शर्मा/sharma पटेल/patel सिंह/singh"),
    ),
    Place(
        "ja",
        ("京都", "札幌"),
        pairs("さくら/sakura 健太/kenta 美咲/misaki 翔/sho"),
        pairs("田中/tanaka 渡邊/watanabe 佐藤/sato 髙橋/takahashi"),
        family_first=True,
    ),
    Place(
        "zh-Hant",
        ("臺北", "高雄"),
        pairs("怡君/yichun 志明/chihming 淑芬/shufen"),
        pairs("陳/chen 歐陽/ouyang 林/lin"),
        family_first=True,
    ),
    Place(
        "ko",
        ("서울", "부산"),
        pairs("민준/minjun 서연/seoyeon 지우/jiwoo"),
        pairs("김/kim 박/park 이/lee"),
        family_first=True,
    ),
    Place(
        "is",
        ("Reykjavík", "Ísafjörður"),
        pairs("Þórdís/thordis Guðrún/gudrun Ægir/aegir"),
        pairs("Jónsdóttir/jonsdottir Sigurðsson/sigurdsson"),
    ),
)


def readers() -> Iterator[Reader]:
    """The 2,000 readers, always the same, the ill-fated spread evenly among them."""
    numbers: Counter[Fate] = Counter()
    for position, place in zip(range(READERS), cycle(PLACES), strict=False):
        turn = position // len(PLACES)
        first_name, first = place.first_names[turn % len(place.first_names)]
        last_name, last = place.last_names[turn // len(place.first_names) % len(place.last_names)]
        fate = IN_EACH_HUNDRED.get(position % 100, Fate.TAKEN)
        numbers[fate] += 1
        local_part = f"{fate}{numbers[fate]:04}" if fate else f"{first}.{last}.{position:04}"
        yield Reader(
            email=f"{local_part}@{DOMAINS[position % len(DOMAINS)]}",
            name=(
                f"{last_name} {first_name}" if place.family_first else f"{first_name} {last_name}"
            ),
            first_name=first_name,
            last_name=last_name,
            language=place.language,
            city=place.cities[turn % len(place.cities)],
        )


def write_file(path: Path) -> int:
    """Writes the readers as CSV (UTF-8, a header line); how many there are."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Reader))
        count = 0
        for reader in readers():
            writer.writerow(astuple(reader))
            count += 1
    return count


def fates() -> Counter[Fate]:
    """How many readers meet which fate."""
    return Counter(fate_of(reader.email) for reader in readers())
