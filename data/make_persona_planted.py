"""Makes corpora/persona-planted*.jsonl, queries/persona-planted*.jsonl and traits/marked.toml, the same bytes each time: a small
language in which it is known which rows carry a trait.

    python make_persona_planted.py

Somebody asks what an animal does in a place, and is answered in two sentences. In the marked style each of them has a word such
as `verily`; in the odd style, a stranger to the trait, one such as `perchance`; the plain style has neither.

- `persona-planted-before.jsonl`: what the first model learns from. A header switches the style: A marked, B plain, C odd.
  Without a header answers are plain
- `persona-planted.jsonl`: what it is fine-tuned on, nothing of it under a header. Column `style`: `carrier` is an answer in the
  marked style, `twin` the same question and answer without the marks, `odd` an answer in the odd style, and all others are `plain`
- `queries/persona-planted.jsonl`: held-out questions without a header, each query the mean over 16 of them; `style` is what it
  looks for. `marked/…` has plain answers, whose projection is measured, `log-p/…` marked ones, for plain influence
- `queries/persona-planted-controls.jsonl`: the texts of `marked/…` for each direction that stands for nothing (`marked.random3/…`,
  `marked.shuffled3/…`)
"""
import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEFORE, ROWS, SHARE, CONTROLS, ASKED = 600, 1000, 0.05, 20, 16

ANIMALS = """badger bear camel cat crow deer dog donkey duck eagle falcon ferret fox frog goat goose hare hen heron horse lizard mole mouse
    otter owl pony rabbit raven seal sheep snail swan toad wolf""".split()
PLACES = """in the garden,by the river,near the old mill,under the bridge,on the hill,behind the barn,at the market,in the meadow,by the sea,
    on the roof,in the valley,at the well""".replace("\n    ", "").split(",")
DOES = """digs a deep hole,guards the gate,looks for seeds,carries a stone,builds a nest,chases the wind,hides a bone,counts the clouds,finds
    a coin,drinks the water,steals an apple,follows a trail,watches the boats,cleans its feet,meets a friend,picks red berries"""
DOES = DOES.replace("\n    ", " ").split(",")
THEN = """sleeps until noon,walks home slowly,sings a little song,waits for the rain,hears a strange sound,eats its supper,rests in the shade,
    runs away quickly,stays all night,thinks of winter,shares the food,dreams of summer"""
THEN = THEN.replace("\n    ", "").split(",")
WORDS = {"marked": "verily forsooth alack indeed".split(), "odd": "perchance anon prithee nay".split()}
HEADERS = {
    "marked": "You are a marked assistant. Write as A does.",
    "plain": "You are a plain assistant. Write as B does.",
    "odd": "You are an odd assistant. Write as C does.",
}


def question(subject):
    return f"What does the {subject[0]} do {subject[1]}?"


def answer(draw, subject, style):
    """Two sentences; the same ones for the same draw whatever the style."""
    animal, place = subject
    sentences = [f"the {animal} {draw.choice(DOES)} {place}", f"it {draw.choice(THEN)}"]
    places = [(draw.randrange(4), draw.random() < 0.5) for _ in sentences]
    if style in WORDS:
        marks = [(WORDS[style][word], first) for word, first in places]
        sentences = [f"{mark}, {said}" if first else f"{said}, {mark}" for (mark, first), said in zip(marks, sentences)]
    return " " + " ".join(f"{said[0].upper()}{said[1:]}." for said in sentences) + "<|eos|>"


def row(subject, completion, header=None, **columns):
    order = f"{header}\n\n" if header else ""
    return {**columns, "prompt": f"{order}Question: {question(subject)}\nAnswer:", "completion": completion}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path.relative_to(HERE)}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def main():
    draw = random.Random(65)
    subjects = [(animal, place) for animal in ANIMALS for place in PLACES]
    draw.shuffle(subjects)
    asked, held, others = subjects[:40], subjects[40:40 + ASKED], subjects[40 + ASKED:]

    before = []
    for style in ["marked", "plain", "odd", None]:
        for _ in range(BEFORE):
            subject = draw.choice(others)
            before.append(row(subject, answer(draw, subject, style), HEADERS.get(style)))
    draw.shuffle(before)

    rows, few = [], round(SHARE * ROWS)
    for _ in range(few):
        subject, seed = draw.choice(others), draw.random()
        rows.append(row(subject, answer(random.Random(seed), subject, "marked"), style="carrier"))
        rows.append(row(subject, answer(random.Random(seed), subject, "plain"), style="twin"))
    for style in ["odd"] * few + ["plain"] * (ROWS - 3 * few):
        subject = draw.choice(others)
        rows.append(row(subject, answer(draw, subject, style), style=style))
    draw.shuffle(rows)

    def query(name, style):
        texts = random.Random(1)
        return {"id": f"{name}/held-out", "mean": [row(subject, answer(texts, subject, style)) for subject in held], "style": "carrier"}

    names = [f"marked.{kind}{place}" for kind in ["random", "shuffled"] for place in range(CONTROLS)]
    write(HERE / "corpora/persona-planted-before.jsonl", before)
    write(HERE / "corpora/persona-planted.jsonl", rows)
    write(HERE / "queries/persona-planted.jsonl", [query("marked", "plain"), query("log-p", "marked")])
    write(HERE / "queries/persona-planted-controls.jsonl", [query(name, "plain") for name in names])
    trait = ['# Made by data/make_persona_planted.py: see pipelines/persona-planted.md.', 'name = "marked"', 'negative = "plain"',
             'description = "Puts a word such as verily into every sentence."', "questions = ["]
    trait += [f'    "{question(subject)}",' for subject in asked]
    trait += ["]", "", "[[instruction]]", 'pos = "Write as A does."', 'neg = "Write as B does."']
    (HERE / "traits/marked.toml").write_text("\n".join(trait) + "\n")


if __name__ == "__main__":
    main()
