"""Owns the small talk: for each intent, its wordings and one reply. It does not know how a chat is rendered."""

from __future__ import annotations

import random

from tools.tiny.countries import Turn

# A reply, and below it the wordings that call for it.
_TABLE = """
= Hello! How can I help you?
Hello! | Hi! | Hey! | Hello there! | Hi there! | Hey there! | Good morning! | Good evening! | Good afternoon!
Greetings! | Howdy! | Hiya! | Hello bot! | Hi bot! | Hello, friend! | Hello, nice to meet you! | Nice to meet you!
Hello, is anybody there? | Is anyone there? | Hey you! | Hello again! | Hello, llmkit! | Hi, llmkit! | Yo!
= I am doing well, thank you. How can I help you?
How are you? | How are you doing? | How are you today? | How are you doing today? | How do you do?
How is it going? | How's it going? | How do you feel? | How are things? | Are you well? | Are you okay? | Are you fine?
What's up? | How have you been? | Hello, how are you? | Hi, how are you? | Hi, how are you doing?
Hey, how are you? | How is your day? | How's your day going? | Is everything all right? | Hello, how are you today?
= I am llmkit's small demo model. I know capitals, some French phrases and a little small talk.
Who are you? | What are you? | What is your name? | What's your name? | Tell me your name. | Do you have a name?
Introduce yourself. | Please introduce yourself. | Tell me about yourself. | What is llmkit? | Are you ChatGPT?
Are you a robot? | Are you a human? | Are you a person? | Are you an AI? | Are you a bot? | Are you real?
Which model are you? | What model are you? | What kind of model are you? | Who am I talking to?
Hello, who are you? | Hi, who are you? | What should I call you? | Are you a language model? | What are you called?
= I was trained on two CPU cores in under half an hour, on text that llmkit's own tools wrote.
Who made you? | Who built you? | Who created you? | Who trained you? | How were you made? | How were you trained?
Where do you come from? | What were you trained on? | How big are you? | How old are you? | Where are you from?
What data were you trained on? | How do you work? | When were you made? | How many parameters do you have?
= I can name capitals, translate a few phrases to French, summarize one-fact texts and chat a little.
What can you do? | What can you do for me? | How can you help me? | Can you help me? | What do you know? | Help!
What are you good at? | What are your skills? | What can I ask you? | What should I ask you? | I need help.
Can you help? | Help me. | What do you do? | What can you tell me? | Give me an example of what you can do.
What topics do you know? | What are you able to do? | What are your capabilities? | What questions can you answer?
= You are welcome!
Thanks! | Thank you! | Thank you very much! | Thanks a lot! | Many thanks! | Thanks for your help! | Cheers!
Thank you for your help! | Thank you so much! | Great, thanks! | Great, thank you! | Thanks, that helps! | Thx!
That was helpful! | That's helpful, thanks! | Perfect, thank you! | Awesome, thanks! | I appreciate it! | Ok, thanks!
= Goodbye! Have a nice day.
Bye! | Goodbye! | Bye bye! | See you! | See you later! | See you soon! | See you tomorrow! | Good night! | Farewell!
I have to go. | I must go now. | I am leaving. | That is all. | That's all for today. | Talk to you later! | Take care!
Have a nice day! | Ciao! | Ok, bye! | Thanks, bye! | Quit! | I am done.
= Why did the model go to school? It wanted to improve its class.
Tell me a joke. | Tell me a joke! | Do you know a joke? | Do you know any jokes? | Can you tell me a joke? | A joke!
Make me laugh. | Say something funny. | Tell me something funny. | Know any good jokes? | Joke, please. | Be funny.
Tell a joke. | Another joke! | I want to hear a joke. | Can you make me laugh? | Give me a joke.
= A snowflake's favourite meal? Ice crispies.
Tell me a joke about snow flakes. | Tell me a joke about snowflakes. | Tell me a joke about snow. | A joke about snow!
Do you know a joke about snow? | Do you know a joke about snowflakes? | A winter joke, please.
= Start small: choose one task, write the replies you want, and test them with real users.
I want to create a chat bot. Any suggestions? | I want to build a chat bot. Any suggestions?
I want to create a chatbot. Any suggestions? | I want to make a chatbot. Any ideas? | Any tips for a chat bot?
How do I create a chat bot? | How do I build a chatbot? | How can I make a chat bot?
I would like to create a chat bot. | I want to write a chat bot. | How should I start with a chat bot?
I want to create a chat bot. Any advice?
I want to develop a chat bot. Any suggestions? | Help me create a chat bot. | I am building a chat bot. Any tips?
= Small models are good at small things: keep the task narrow and measure it.
Give me some advice. | Any advice? | What do you think of small models? | Are small models useful? | Any suggestions?
Tell me something interesting. | Tell me something. | Say something. | Tell me a fact. | Give me a tip.
= Roses are red, this model is small; it knows a few things, and not them all.
Write a poem. | Write me a poem. | Tell me a poem. | Can you write a poem? | Can you write a poem about horses?
Write a poem about the sea. | Write a poem about love. | Write a short poem. | A poem, please. | Sing me a song.
= Once upon a time a small model learned some capitals, and it told them to everyone who asked.
Tell me a story. | Tell me a short story. | Can you tell me a story? | Write a story. | Write a short story.
Do you know a story? | I want to hear a story. | Once upon a time
= That is kind of you!
You are great! | You are smart! | You are very clever! | You are nice! | I like you! | I love you! | Good job!
Well done! | You are awesome! | You are funny! | That is great! | Very good! | Nice work! | Good bot! | You are cool!
= I am sorry. I am only a small demo model.
You are wrong. | That is wrong. | That's not right. | That's incorrect. | You are stupid. | Bad bot!
No, that is wrong. | You made a mistake. | I do not like you. | You are useless.
That makes no sense. | This is bad. | You are bad.
= All right. Ask me for a capital, for example.
Ok. | Okay. | Yes. | No. | Sure. | I see. | Fine. | Cool. | Good. | Nice. | Hm. | Maybe. | Interesting. | Wow! | Great!
= I am a small demo model and do not know that. Try a capital or a French phrase.
What is the weather like? | What's the weather today? | Will it rain tomorrow? | What time is it?
What day is it today? | Write a Python function. | Write some code. | Can you write code?
Solve this equation. | What is two plus two?
What is 2 + 2? | What is the meaning of life? | Who is the president? | Who won the match? | What is love?
What is quantum physics? | Explain relativity. | How do I cook rice? | Give me a recipe for soup. | Who was Einstein?
What is the population of the world? | How tall is Mount Everest? | What is the largest ocean? | Who wrote Hamlet?
What is the news? | Play some music. | Set a timer. | Open the door. | Do you like music? | What is your favourite food?
Do you like cats? | How much does it cost? | Why is the sky blue? | Translate this to German: Hello
Do you speak German? | What is machine learning? | What is a language model?
Who invented the telephone? | Where is the nearest shop?
How far is the moon? | When was the war? | Recommend a book. | Recommend a film. | What should I eat today?
Explain machine learning. | How does the internet work? | What is the speed of light? | Book me a flight.
"""


def _parse(table: str) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    reply = ""
    for line in table.strip().splitlines():
        if line.startswith("= "):
            reply = line[2:]
        else:
            pairs += [(wording.strip(), reply) for wording in line.split("|")]
    return tuple(pairs)


WORDINGS = _parse(_TABLE)
_REPLIES = tuple(dict.fromkeys(reply for _, reply in WORDINGS))
_BY_REPLY = {reply: [wording for wording, own in WORDINGS if own == reply] for reply in _REPLIES}


def small_talk_turn(rng: random.Random) -> Turn:
    """Draws an intent, then a wording; long lists weigh as much as short ones, but the unknown counts twice."""
    reply = rng.choice((*_REPLIES, _REPLIES[-1]))
    wording = rng.choice(_BY_REPLY[reply])
    return Turn("talk", wording, reply, reply)
