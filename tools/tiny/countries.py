"""Owns the countries, their capitals and the ways people ask for them, in chat and in the few-shot form.

Facts as of 2025; where a seat of government differs, the constitutional or official capital is given. It does not know
how a chat is rendered: see `chat.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tools.tiny.data import ANSWER_WEIGHT, EOS, Example, Segment, core

# One country a line: name (with "the" where English wants it), capital, other names.
_TABLE = """
Afghanistan|Kabul
Albania|Tirana
Algeria|Algiers
Andorra|Andorra la Vella
Angola|Luanda
Antigua and Barbuda|Saint John's
Argentina|Buenos Aires
Armenia|Yerevan
Australia|Canberra
Austria|Vienna
Azerbaijan|Baku
the Bahamas|Nassau
Bahrain|Manama
Bangladesh|Dhaka
Barbados|Bridgetown
Belarus|Minsk
Belgium|Brussels
Belize|Belmopan
Benin|Porto-Novo
Bhutan|Thimphu
Bolivia|Sucre
Bosnia and Herzegovina|Sarajevo|Bosnia
Botswana|Gaborone
Brazil|Brasília
Brunei|Bandar Seri Begawan
Bulgaria|Sofia
Burkina Faso|Ouagadougou
Burundi|Gitega
Cambodia|Phnom Penh
Cameroon|Yaoundé
Canada|Ottawa
Cape Verde|Praia
the Central African Republic|Bangui
Chad|N'Djamena
Chile|Santiago
China|Beijing
Colombia|Bogotá
Comoros|Moroni|the Comoros
the Democratic Republic of the Congo|Kinshasa|DR Congo
the Republic of the Congo|Brazzaville|Congo-Brazzaville
Costa Rica|San José
Croatia|Zagreb
Cuba|Havana
Cyprus|Nicosia
the Czech Republic|Prague|Czechia
Denmark|Copenhagen
Djibouti|Djibouti
Dominica|Roseau
the Dominican Republic|Santo Domingo
East Timor|Dili|Timor-Leste
Ecuador|Quito
Egypt|Cairo
El Salvador|San Salvador
Equatorial Guinea|Malabo
Eritrea|Asmara
Estonia|Tallinn
Eswatini|Mbabane
Ethiopia|Addis Ababa
Fiji|Suva
Finland|Helsinki
France|Paris
Gabon|Libreville
the Gambia|Banjul|Gambia
Georgia|Tbilisi
Germany|Berlin
Ghana|Accra
Greece|Athens
Grenada|Saint George's
Guatemala|Guatemala City
Guinea|Conakry
Guinea-Bissau|Bissau
Guyana|Georgetown
Haiti|Port-au-Prince
Honduras|Tegucigalpa
Hungary|Budapest
Iceland|Reykjavik
India|New Delhi
Indonesia|Jakarta
Iran|Tehran
Iraq|Baghdad
Ireland|Dublin
Israel|Jerusalem
Italy|Rome
Ivory Coast|Yamoussoukro|Côte d'Ivoire
Jamaica|Kingston
Japan|Tokyo
Jordan|Amman
Kazakhstan|Astana
Kenya|Nairobi
Kiribati|Tarawa
Kosovo|Pristina
Kuwait|Kuwait City
Kyrgyzstan|Bishkek
Laos|Vientiane
Latvia|Riga
Lebanon|Beirut
Lesotho|Maseru
Liberia|Monrovia
Libya|Tripoli
Liechtenstein|Vaduz
Lithuania|Vilnius
Luxembourg|Luxembourg
Madagascar|Antananarivo
Malawi|Lilongwe
Malaysia|Kuala Lumpur
the Maldives|Malé|Maldives
Mali|Bamako
Malta|Valletta
the Marshall Islands|Majuro
Mauritania|Nouakchott
Mauritius|Port Louis
Mexico|Mexico City
Micronesia|Palikir
Moldova|Chisinau
Monaco|Monaco
Mongolia|Ulaanbaatar
Montenegro|Podgorica
Morocco|Rabat
Mozambique|Maputo
Myanmar|Naypyidaw|Burma
Namibia|Windhoek
Nauru|Yaren
Nepal|Kathmandu
the Netherlands|Amsterdam|Netherlands
New Zealand|Wellington
Nicaragua|Managua
Niger|Niamey
Nigeria|Abuja
North Korea|Pyongyang
North Macedonia|Skopje|Macedonia
Norway|Oslo
Oman|Muscat
Pakistan|Islamabad
Palau|Ngerulmud
Palestine|Ramallah
Panama|Panama City
Papua New Guinea|Port Moresby
Paraguay|Asunción
Peru|Lima
the Philippines|Manila|Philippines
Poland|Warsaw
Portugal|Lisbon
Qatar|Doha
Romania|Bucharest
Russia|Moscow
Rwanda|Kigali
Saint Kitts and Nevis|Basseterre
Saint Lucia|Castries
Saint Vincent and the Grenadines|Kingstown
Samoa|Apia
San Marino|San Marino
São Tomé and Príncipe|São Tomé|Sao Tome and Principe
Saudi Arabia|Riyadh
Senegal|Dakar
Serbia|Belgrade
Seychelles|Victoria|the Seychelles
Sierra Leone|Freetown
Singapore|Singapore
Slovakia|Bratislava
Slovenia|Ljubljana
the Solomon Islands|Honiara
Somalia|Mogadishu
South Africa|Pretoria
South Korea|Seoul|Korea
South Sudan|Juba
Spain|Madrid
Sri Lanka|Sri Jayawardenepura Kotte
Sudan|Khartoum
Suriname|Paramaribo
Sweden|Stockholm
Switzerland|Bern
Syria|Damascus
Taiwan|Taipei
Tajikistan|Dushanbe
Tanzania|Dodoma
Thailand|Bangkok
Togo|Lomé
Tonga|Nuku'alofa
Trinidad and Tobago|Port of Spain
Tunisia|Tunis
Turkey|Ankara|Türkiye
Turkmenistan|Ashgabat
Tuvalu|Funafuti
Uganda|Kampala
Ukraine|Kyiv
the United Arab Emirates|Abu Dhabi|the UAE
the United Kingdom|London|the UK|Great Britain|Britain
the United States|Washington, D.C.|the USA|the US|USA|America
Uruguay|Montevideo
Uzbekistan|Tashkent
Vanuatu|Port Vila
Vatican City|Vatican City|the Vatican
Venezuela|Caracas
Vietnam|Hanoi
Yemen|Sana'a
Zambia|Lusaka
Zimbabwe|Harare
"""


@dataclass(frozen=True)
class Country:
    """A country, its capital, and all names it may be asked by (the first is `name`)."""

    name: str
    capital: str
    names: tuple[str, ...]


def _parse(line: str) -> Country:
    name, capital, *others = line.split("|")
    return Country(name, capital, (name, *others))


COUNTRIES = tuple(_parse(line) for line in _TABLE.strip().splitlines())

QUESTIONS = (
    "What is the capital of {x}?",
    "What's the capital of {x}?",
    "What is the capital city of {x}?",
    "What's the capital city of {x}?",
    "Which city is the capital of {x}?",
    "What city is the capital of {x}?",
    "What is {x}'s capital?",
    "What's {x}'s capital?",
    "Capital of {x}?",
    "The capital of {x}?",
    "Capital city of {x}?",
    "{x} capital?",
    "{x}'s capital city?",
    "Tell me the capital of {x}.",
    "Can you tell me the capital of {x}?",
    "Can you tell me what the capital of {x} is?",
    "Could you tell me what is the capital of {x}?",
    "Do you know the capital of {x}?",
    "Do you know what the capital of {x} is?",
    "I want to know the capital of {x}.",
    "I need the capital of {x}.",
    "Give me the capital of {x}.",
    "Give me the name of the capital of {x}.",
    "Name the capital of {x}.",
    "What is the name of the capital of {x}?",
    "The capital of {x} is?",
    "What would be the capital of {x}?",
    "What is the capital of the country {x}?",
    "Which is the capital of {x}?",
    "For {x}, what is the capital?",
)
FOLLOW_UPS = ("And {x}?", "And of {x}?", "What about {x}?", "How about {x}?", "And the capital of {x}?", "And for {x}?")


@dataclass(frozen=True)
class Turn:
    """A question of some topic, its reply, and the part of the reply that has to be right."""

    topic: str
    question: str
    reply: str
    expected: str

    @property
    def key(self) -> str:
        """What decides on which side of the split the question is."""
        return core(self.question)


def capital_turn(rng: random.Random, country: Country | None = None, *, follow_up: bool = False) -> Turn:
    """Asks for a capital; a follow-up ("And Italy?") makes sense only after another such turn."""
    country = country or rng.choice(COUNTRIES)
    name = country.name if rng.random() < 0.75 else rng.choice(country.names)
    wording = rng.choice(FOLLOW_UPS if follow_up else QUESTIONS)
    question = wording.format(x=name)
    reply = f"The capital of {country.name} is {country.capital}{'' if country.capital.endswith('.') else '.'}"
    return Turn("capital", question[:1].upper() + question[1:], reply, country.capital)


def few_shot(rng: random.Random, country: Country | None = None, shots: Sequence[Country] | None = None) -> Example:
    """Proposes `Question: ... Answer: ...` with nought to four shots; each question's key is it and its predecessor."""
    shots = rng.sample(COUNTRIES, rng.choice((0, 0, 1, 1, 1, 2, 3, 4))) if shots is None else shots
    asked = [*shots, country or rng.choice(COUNTRIES)]
    names = [one.name if rng.random() < 0.85 else rng.choice(one.names) for one in asked]
    placeholder = [Segment(_question("Country") + rng.choice((" City\n", " city\n")))] if rng.random() < 0.15 else []
    segments = [*placeholder, *_answered(names, asked)]
    contexts = ["".join(one.text for one in segments[:end]) for end in range(1 + len(placeholder), len(segments), 2)]
    before = [*(["Country"] if placeholder else []), *names]
    keys = tuple(f"shot|{one}|{two}" for one, two in pairwise(before))
    return Example("capitals, few-shot", keys, tuple(contexts), tuple(segments), asked[-1].capital)


def _answered(names: Sequence[str], asked: Sequence[Country]) -> list[Segment]:
    segments: list[Segment] = []
    for name, one in zip(names, asked, strict=True):
        segments += [Segment(_question(name)), Segment(f" {one.capital}\n", ANSWER_WEIGHT)]
    return [*segments[:-1], Segment(segments[-1].text + EOS, ANSWER_WEIGHT)]


def _question(name: str) -> str:
    return f"Question: What is the capital of {name}?\nAnswer:"
