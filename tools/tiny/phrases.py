"""Owns the English-French phrases and the ways people ask for a translation.

It does not know how a chat is rendered.
"""

from __future__ import annotations

import random

from tools.tiny.countries import Turn

_TABLE = """
Hello|Bonjour
Hello, world|Bonjour, le monde
Good morning|Bonjour
Good afternoon|Bon après-midi
Good evening|Bonsoir
Good night|Bonne nuit
Goodbye|Au revoir
See you soon|À bientôt
See you tomorrow|À demain
Have a nice day|Bonne journée
Thank you|Merci
Thank you very much|Merci beaucoup
You are welcome|De rien
Please|S'il vous plaît
Excuse me|Excusez-moi
I am sorry|Je suis désolé
Yes|Oui
No|Non
Maybe|Peut-être
Of course|Bien sûr
How are you?|Comment allez-vous ?
I am fine|Je vais bien
What is your name?|Comment vous appelez-vous ?
My name is Anna|Je m'appelle Anna
Nice to meet you|Enchanté
Where is the station?|Où est la gare ?
Where are the toilets?|Où sont les toilettes ?
How much is it?|Combien ça coûte ?
What time is it?|Quelle heure est-il ?
I do not understand|Je ne comprends pas
I do not know|Je ne sais pas
Do you speak English?|Parlez-vous anglais ?
I speak a little French|Je parle un peu français
Can you help me?|Pouvez-vous m'aider ?
I am hungry|J'ai faim
I am thirsty|J'ai soif
I am tired|Je suis fatigué
I am lost|Je suis perdu
I love you|Je t'aime
I like music|J'aime la musique
Happy birthday|Joyeux anniversaire
Merry Christmas|Joyeux Noël
Happy new year|Bonne année
Congratulations|Félicitations
Good luck|Bonne chance
Enjoy your meal|Bon appétit
Have a good trip|Bon voyage
Welcome|Bienvenue
A coffee, please|Un café, s'il vous plaît
The bill, please|L'addition, s'il vous plaît
A glass of water|Un verre d'eau
The cat is black|Le chat est noir
The dog is big|Le chien est grand
The house is small|La maison est petite
The sky is blue|Le ciel est bleu
The book is on the table|Le livre est sur la table
It is raining|Il pleut
It is cold|Il fait froid
It is hot|Il fait chaud
Today|Aujourd'hui
Tomorrow|Demain
Yesterday|Hier
Monday|Lundi
The bread|Le pain
The train|Le train
"""

PHRASES = tuple((line.split("|")[0], line.split("|")[1]) for line in _TABLE.strip().splitlines())

_QUOTED = ("{p}", "'{p}'", '"{p}"')
QUESTIONS = (
    "Translate to French: {p}",
    "Translate into French: {p}",
    "Translate this to French: {p}",
    "Translate this into French: {p}",
    "Translate from English to French: {p}",
    "Translate English to French: {p}",
    "Translate the following English text to French: {p}",
    "Translate the following text to French: {p}",
    "Translate the following sentence into French: {p}",
    "Translate {p} to French.",
    "Translate {p} into French.",
    "Translate the phrase {p} into French.",
    "How do you say {p} in French?",
    "How do I say {p} in French?",
    "How would you say {p} in French?",
    "How to say {p} in French?",
    "How does one say {p} in French?",
    "Can you say {p} in French?",
    "Say {p} in French.",
    "What is {p} in French?",
    "What's {p} in French?",
    "What is the French for {p}?",
    "What is the French translation of {p}?",
    "What does {p} mean in French?",
    "Can you translate {p} into French?",
    "Could you translate this to French: {p}",
    "I want to say {p} in French.",
    "In French, how do you say {p}?",
    "{p} in French?",
    "French for {p}?",
    "Give me the French for {p}.",
    "Tell me how to say {p} in French.",
)


def phrase_turn(rng: random.Random, phrase: tuple[str, str] | None = None) -> Turn:
    """Asks for one phrase in French."""
    english, french = phrase or rng.choice(PHRASES)
    wording = rng.choice(QUESTIONS)
    quoted = rng.choice(_QUOTED).format(p=_vary(english, rng, at_end=wording.endswith("{p}")))
    return Turn("phrase", wording.format(p=quoted), french, french)


def _vary(english: str, rng: random.Random, *, at_end: bool) -> str:
    text = english.lower() if rng.random() < 0.2 else english
    text = text.rstrip("?") if rng.random() < 0.3 else text
    return text + rng.choice(".!") if at_end and text[-1] != "?" and rng.random() < 0.3 else text
