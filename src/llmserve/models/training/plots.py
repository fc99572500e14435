"""The sentences stories are made of: a plot is a row of beats, a beat a choice of sentences.

A key in braces is a role of the story, spelt as `stories.cast` spells it; a key that begins with a
capital begins a sentence.
"""

OPENINGS = """Once upon a time there was {a_hero} who lived near {a_place}.
Once upon a time, {a_hero} lived near {a_place}.
There was once {a_hero} who lived beside {a_place}.
Long ago, near {a_place}, there lived {a_hero}.
In a land far away, {a_hero} lived close to {a_place}.
Not far from {a_place} lived {a_hero}.
One day, {a_hero} came to {a_place}.
One morning, {a_hero} walked to {a_place}.
Near {a_place} there was {a_hero} whom everybody knew.
This is the story of {a_hero} and {a_place}."""
NAMING = """{His} name was {name}.
Everyone called {him} {name}.
{His} friends called {him} {name}.
{The_hero} was called {name}."""
PLOTS = {
    "find": [
        "One day {hero} found {a_thing} near {place}.|Early one morning {hero} saw {a_thing} on "
        "the ground.|On the way to {place}, {hero} found {a_thing}.|Under some leaves {hero} "
        "found {a_thing}.|There, in the grass, lay {a_thing}.",
        '"Whose {thing} is this?" asked {hero}.|"What a strange {thing}!" said {hero}.|{Hero} had '
        "never seen such {a_plain} before.|{Hero} looked at the {thing} for a long time.|The "
        "{thing} was warm, as if someone had just left it there.",
        "{He} took the {thing} to {a_friend}.|Then {a_friend} came by and looked at the {thing}.|"
        '{He} showed the {thing} to {a_friend}.|"That is my {thing}!" cried {a_friend}.',
        '"I lost it last winter," said {friend}.|"I think it is magic," said {friend}.|"Let us '
        'keep it safe," said {friend}.|{Friend} smiled and told {hero} where the {thing} came '
        "from.|{Friend} laughed, because the {thing} had been lost for years.",
        "So {hero} and {friend} carried the {thing} to {place}.|Together they brought the {thing} "
        "back to {place}.|{Hero} gave the {thing} to {friend}, and they danced.|They put the "
        "{thing} in the middle of {place} for everyone to see.",
    ],
    "lose": [
        "{Hero} had {a_thing} and loved it very much.|More than anything, {hero} loved {his} "
        "{thing}.|{Hero} owned {a_thing} and took it everywhere.|{Hero} was very proud of {his} "
        "{thing}.",
        "But one day the {thing} was gone.|But one windy night the {thing} disappeared.|One "
        "morning {he} could not find the {thing}.|Then, near {place}, {hero} lost the {thing}.",
        '"Where is my {thing}?" cried {hero}.|{Hero} looked under the bed, but the {thing} was '
        "not there.|{Hero} searched all day long.|{Hero} sat down and cried a little.",
        "{A_friend} heard {him} and came to help.|{A_friend} stopped and asked what was wrong.|"
        "Luckily {a_friend} was passing by.|{He} asked {a_friend} for help.",
        '"We will find your {thing} together," said {friend}.|"Have you looked near the '
        '{place_word}?" asked {friend}.|{Friend} had sharp eyes and a good idea.|"Do not be sad," '
        "said {friend}.",
        "At last they found the {thing} behind {place}.|They found the {thing} in a hole near "
        "{place}.|The {thing} had been near {place} all the time.|There it was: the {thing}, safe "
        "and dry.",
    ],
    "mend": [
        "{Hero} wanted to use {his} {thing}, but it was broken.|One day the {thing} of {hero} "
        "broke in two.|{Hero} had {a_thing} that did not work any more.|{Hero} dropped {a_thing}, "
        "and it broke.",
        '"Can anybody mend {a_plain}?" asked {hero}.|{Hero} did not know how to mend it.|{He} '
        "tried and tried, but the {thing} stayed broken.|{Hero} carried the {thing} to {place}.",
        "Near {place} {he} met {a_friend}.|{A_friend} lived there and was good with tools.|"
        "Everyone said that {a_friend} could mend anything.|Then {a_friend} knocked on the door.",
        '"Give me the {thing} and some time," said {friend}.|{Friend} turned the {thing} around '
        "and nodded.|{Friend} worked all night.|With a little glue, {friend} put the {thing} "
        "together.",
        "In the morning the {thing} was as good as new.|The {thing} was even better than before.|"
        "Now the {thing} worked again.|{Hero} was so happy that {he} jumped up and down.",
    ],
    "quarrel": [
        "{Hero} and {a_friend} both wanted the same {thing}.|One day {hero} and {a_friend} saw "
        "{a_thing} at the same time.|{Hero} and {a_friend} could not agree about {a_thing}.",
        '"It is my {thing}!" said {hero}.|"I saw the {thing} first," said {hero}.|{Hero} pulled '
        "at the {thing}.",
        '"No, the {thing} is mine!" said {friend}.|{Friend} would not let go of the {thing}.|'
        '{Friend} got angry and shouted so loud that all of {place} heard it.|"You always want '
        'everything," said {friend}.',
        "They did not speak for three days.|{Hero} went home alone and felt bad.|That night "
        "{hero} could not sleep.|The wind blew around {place}, and both of them were lonely.",
        '"I am sorry," said {hero} the next day.|Then {friend} had an idea.|At last {hero} said '
        "sorry.|In the morning {friend} came back and smiled.",
        "They decided to share the {thing}.|From then on the {thing} belonged to both of them.|"
        "One day {hero} had the {thing}, and the next day {friend} had it.|They took the {thing} "
        "to {place} and used it together.",
    ],
    "gift": [
        "Soon it was the birthday of {a_friend}.|{Hero} had a good friend, {a_friend}.|{Hero} "
        "wanted to make {a_friend} happy.",
        "{Hero} had no money, but {he} had {a_thing}.|{He} wanted to give {friend} something "
        "special: {a_thing}.|In a shop near {place}, {hero} saw {a_thing}.|{Hero} made {a_thing} "
        "out of wood and paper.",
        "{He} wrapped the {thing} in paper and walked to {place}.|It rained, but {hero} kept the "
        "{thing} dry.|{Hero} carried the {thing} all the way past {place}.|{He} hid the {thing} "
        "and waited.",
        '"Is that {a_plain}? For me?" asked {friend}.|{Friend} opened the paper and saw the '
        "{thing}.|When {friend} saw the {thing}, {friend} could not say a word.",
        '"It is the best {thing} in the world," said {friend}.|"Thank you, {name}!" said '
        "{friend}.|{Friend} put the {thing} by the window.|{Friend} never went anywhere without "
        "the {thing} again.",
    ],
    "journey": [
        "{Hero} wanted to see {place} with {his} own eyes.|One day {hero} set out for {place}.|A "
        "letter came: somebody needed help at {place}.|{Hero} dreamed of {place} every night.",
        "{He} took only {a_thing} and some bread.|In {his} bag {he} had {a_thing}.|{He} carried "
        "{a_thing}, because you never know.|{He} packed {a_thing} and said goodbye.",
        "On the way {he} met {a_friend}.|Half way there, {a_friend} stood on the road.|After two "
        "days {he} met {a_friend}, who was lost.",
        '"May I come with you?" asked {friend}.|"Beware of the storm," said {friend}.|"What is '
        'the {thing} for?" asked {friend}.|{Friend} was afraid of the dark.',
        "Then a storm came, and the sky turned black.|Night fell, and they could not see the "
        "way.|Suddenly they stood in front of a deep river.|A thick fog came, and they were lost.",
        "But {hero} had the {thing}, and the {thing} saved them.|{Hero} took out the {thing} and "
        "had a clever idea.|With the {thing} they found the way.|{Friend} held the {thing}, and "
        "{hero} went ahead.",
        "In the end they reached {place}.|At sunrise they saw {place}.|When they came to {place}, "
        "everybody cheered.",
    ],
    "secret": [
        "Every night a sound came from {place}.|People said that there was a secret near {place}.|"
        "At night a light moved around {place}.",
        "{Hero} was not afraid and went to look.|{Hero} wanted to know why.|{Hero} could not "
        "sleep, so {he} went to see.",
        "There {he} saw {a_friend} with {a_thing}.|Behind a door {he} found {a_friend} and "
        "{a_thing}.|In the dark sat {a_friend}, holding {a_thing}.",
        '"Please do not tell anybody about my {thing}," said {friend}.|"This {thing} sings at '
        'night," said {friend}.|"I have nobody to show my {thing} to," said {friend}.',
        '"Your secret is safe with me," said {hero}.|{Hero} sat down and listened to the {thing}.|'
        '"May I try the {thing}?" asked {hero}.',
        "Since that night {hero} and {friend} met at {place} every week.|From then on {friend} "
        "was not alone any more.|And the {thing} shone as it had never shone before.",
    ],
}
ENDINGS = """And they all lived happily ever after.
From that day on, {hero} and {friend} were best friends.
{Hero} was happy and went home.
And {hero} never forgot the {thing}.
That night {hero} slept very well.
Everyone near {place} still tells the story of {hero} and the {thing}.
{Hero} learned that friends are worth more than gold.
{Hero} learned that it is good to ask for help.
"What a day!" said {hero}, and {friend} laughed.
And if you go to {place}, you can still see the {thing} there.
The end."""
LINKS = """The next day, something new happened.
A week later, the sun was shining again.
But that was not the end of the story.
When spring came, there was more to do.
Some time later, {hero} thought of {friend} again.
In the winter, snow fell on {place}.
The following summer was long and warm.
Then came a day that {hero} would remember for ever."""
PLAIN = """The sun was warm.
The birds were singing.
It was a cold day.
The sky was full of stars.
Nobody said a word.
The wind was soft.
It was very quiet.
They laughed and laughed.
A small cloud passed over {place}.
{Hero} took a deep breath."""
